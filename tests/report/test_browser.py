"""The pages in a real browser: no errors, no requests, readable at 400 pixels, sortable, accessible."""

import importlib
import os
import shutil

import pytest
from report_runs import EVIL, run_folder
from study_results import study_results

from hesstune.report.run_page import render_run
from hesstune.report.study_page import render_study

FLAGS = ("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
         "disable-component-update", "disable-sync")  # fmt: skip
# Layout shifts that were not caused by a person, from the page's first paint on.
SHIFT = """() => new Promise(done => { let sum = 0;
new PerformanceObserver(list => list.getEntries().forEach(e => sum += e.value))
.observe({type: "layout-shift", buffered: true}); setTimeout(() => done(sum), 200) })"""


def absent(what):
    """Skip a test for what it lacks, or fail it if a browser is required."""
    if os.environ.get("HESSTUNE_REQUIRE_BROWSER") == "1":
        pytest.fail(f"{what}, and HESSTUNE_REQUIRE_BROWSER=1 asks for the tests in a browser", pytrace=False)
    pytest.skip(what)


def needed(module):
    try:
        return importlib.import_module(module)
    except ImportError:
        return absent(f"{module} is not installed (pip install 'hesstune[dev]')")


@pytest.fixture(scope="module")
def chromium():
    sync_api = needed("playwright.sync_api")
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        absent("Chromium is not installed (Debian's package: chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=[f"--{flag}" for flag in FLAGS])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, tmp_path):
    """Open a page's text; whatever goes wrong in it fails the test."""
    trouble, requests, contexts = [], [], []

    def open_page(text, scheme="light", width=1000, **options):
        file = tmp_path / "page.html"
        file.write_text(text)
        context = chromium.new_context(
            color_scheme=scheme, viewport={"width": width, "height": 800}, **options
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("dialog", lambda dialog: trouble.append(dialog.message))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert trouble == []
    assert all(url.startswith(("file:", "data:")) for url in requests)


def check_accessible(page):
    axe = needed("axe_playwright_python.sync_playwright")
    violations = axe.Axe().run(page).response["violations"]
    assert [v for v in violations if v["impact"] in ("serious", "critical")] == []


def check_sorting(page, column=3):
    table = page.locator("table[data-sort]").first
    cells = table.locator(f"tbody tr td:nth-child({column})")
    found = []
    for _ in range(2):
        table.locator("thead button").nth(column - 1).click()
        found.append([float(text.split()[0]) for text in cells.all_inner_texts()])
    assert found == [sorted(found[0], reverse=True), sorted(found[0])]
    assert len(set(found[0])) > 1
    assert table.locator("thead th").nth(column - 1).get_attribute("aria-sort") == "ascending"


@pytest.mark.parametrize(("required", "ends"), [("1", pytest.fail), ("", pytest.skip)])
def test_a_browser_that_is_required_is_never_skipped(monkeypatch, required, ends):
    monkeypatch.setenv("HESSTUNE_REQUIRE_BROWSER", required)
    with pytest.raises(ends.Exception, match="Chromium is not installed"):
        absent("Chromium is not installed")


@pytest.mark.parametrize(
    ("scheme", "width", "column"), [("light", 1000, 7), ("dark", 400, 7), ("dark", 1000, 2)]
)
def test_pages_in_both_schemes(opened, tmp_path, scheme, width, column):
    study = column == 2
    page = opened(render_study(study_results()) if study else render_run(run_folder(tmp_path)), scheme, width)
    assert page.evaluate(SHIFT) == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    check_accessible(page)
    check_sorting(page, column)
    ink = page.evaluate("getComputedStyle(document.body).color")
    assert (ink == "rgb(238, 238, 238)") == (scheme == "dark")
    assert study or EVIL in page.locator("#suspected + p + label + ul").inner_text()


def test_everything_is_reached_by_keyboard_and_filters_hide_what_does_not_match(opened, tmp_path):
    page = opened(render_run(run_folder(tmp_path)))
    wanted = page.locator(":is(a[href], summary, button, input, [tabindex='0']):visible").count()
    assert wanted > 20
    seen = set()
    for _ in range(wanted + 5):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("[...document.querySelectorAll('*')].indexOf(document.activeElement)"))
    assert len(seen) >= wanted
    page.locator("#layer-table thead button").nth(1).focus()
    page.keyboard.press("Enter")
    assert page.locator("#layer-table th[aria-sort]").count() == 1
    page.get_by_label("Show layers with").fill("layer2")
    assert page.locator("#layer-table tbody tr:visible").count() == 1
    page.get_by_label("Show layers with").fill("")
    assert page.locator("#layer-table tbody tr:visible").count() == 4


def test_page_is_whole_on_paper_and_without_scripts(opened, tmp_path):
    text = render_run(run_folder(tmp_path))
    page = opened(text, "dark", java_script_enabled=False)
    assert page.locator("#layer-table tbody tr:visible").count() == 4
    assert not page.get_by_label("Show layers with").is_visible()
    page.emulate_media(media="print")
    assert "_layer3.weight" in page.inner_text("main")
    assert len(page.pdf()) > 10_000
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
