"""The page in a real browser: no errors, no requests, readable at 400 pixels, sortable, accessible."""

import shutil

import pytest
from report_runs import run_folder

from hesstune.report.run_page import render_run

pytestmark = pytest.mark.slow
FLAGS = ("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
         "disable-component-update", "disable-sync")  # fmt: skip


@pytest.fixture(scope="module")
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api")
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("Chromium is not installed (Debian's package: chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=[f"--{flag}" for flag in FLAGS])
        yield browser
        browser.close()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1000), ("dark", 400)])
def test_page_in_a_browser(chromium, tmp_path, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    file = tmp_path / "report.html"
    file.write_text(render_run(run_folder(tmp_path)))
    page = chromium.new_context(color_scheme=scheme, viewport={"width": width, "height": 800}).new_page()
    trouble, requests = [], []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("dialog", lambda dialog: trouble.append(dialog.message))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    serious = [
        v for v in axe.Axe().run(page).response["violations"] if v["impact"] in ("serious", "critical")
    ]
    assert serious == []
    table = page.locator("table[data-sort]")
    column = table.locator("tbody tr td:nth-child(3)")
    table.locator("thead button").nth(2).click()
    falling = [float(text) for text in column.all_inner_texts()]
    table.locator("thead button").nth(2).click()
    rising = [float(text) for text in column.all_inner_texts()]
    assert (falling, rising) == (sorted(falling, reverse=True), sorted(rising))
    ink = page.evaluate("getComputedStyle(document.body).color")
    assert (ink == "rgb(238, 238, 238)") == (scheme == "dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert trouble == []
    assert all(url.startswith(("file:", "data:")) for url in requests)
