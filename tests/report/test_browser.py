"""The pages in a real browser: no errors, no requests, readable at 400 pixels, sortable, accessible."""

import importlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from report_runs import EVIL, run_folder
from study_results import study_results
from suspected import ODD, suspected

from hesstune.data.decisions import COLUMNS
from hesstune.labeling.review import apply_decisions
from hesstune.report.clean_page import MOST_ROWS, render_clean
from hesstune.report.run_page import render_run
from hesstune.report.study_page import render_study
from hesstune.storage.tables import write_csv

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


# The review of suspected label errors


def counts(page):
    return page.locator("#counts").inner_text()


def name(page):
    return page.locator("#name").text_content()


def download(page):
    with page.expect_download() as made:
        page.keyboard.press("d")
    assert made.value.suggested_filename == "decisions.csv"
    return Path(made.value.path())


def test_labels_are_decided_by_keyboard_remembered_and_downloaded(opened, tmp_path):
    found = suspected()
    page = opened(render_clean(found), width=1280)
    ids, given = found.ids, [ODD[c] for c in found.given]
    assert name(page) == ids[0]
    page.keyboard.press("k")
    page.keyboard.press("s")
    page.keyboard.press("r")
    page.keyboard.press("5")
    page.keyboard.press("o")
    page.locator("#class").select_option(index=0)
    page.keyboard.press("Enter")
    page.keyboard.press("6")  # the class that is given: the label is kept
    assert counts(page).startswith("6 of 40 decided (2 kept, 3 changed, 1 removed)")
    page.keyboard.press("r")
    page.keyboard.press("u")
    assert name(page) == ids[6]
    page.keyboard.press("Control+z")
    assert name(page) == ids[5]
    page.keyboard.press("k")
    page.keyboard.press("End")
    assert name(page) == ids[39]
    page.keyboard.press("s")
    assert name(page) == ids[39]
    page.keyboard.press("c")
    page.keyboard.press("s")
    decided = [
        ("keep", given[0]), ("change", ODD[2]), ("remove", ""), ("change", ODD[4]), ("change", ODD[0]),
        ("keep", given[5]), *[None] * 33, ("change", ODD[4]),
    ]  # fmt: skip
    rows = [
        [ids[at], given[at], *own, found.contents[ids[at]]]
        for at, own in enumerate(decided)
        if own is not None
    ]
    write_csv(tmp_path / "expected.csv", COLUMNS, rows)
    path = download(page)
    assert path.read_bytes() == (tmp_path / "expected.csv").read_bytes()
    page.reload()
    assert counts(page).startswith("7 of 40 decided (2 kept, 4 changed, 1 removed)")
    assert name(page) == ids[6]  # the first that is undecided
    assert download(page).read_bytes() == path.read_bytes()
    reviewed = apply_decisions(found.target, path)
    assert reviewed.counts == {"kept": 2, "changed": 4, "removed": 1, "undecided": 33, "not_found": 0}
    assert reviewed.labels[1] == ODD[2]
    assert ids[2] not in reviewed.ids


def test_decisions_belong_to_the_data_and_survive_another_page_of_it(opened, tmp_path):
    found = suspected(8)
    page = opened(render_clean(found))
    page.keyboard.press("k")
    page.keyboard.press("End")
    page.keyboard.press("r")
    given = list(found.target.true)
    assert page.evaluate("localStorage.length") == 2
    other = replace(found, target=replace(found.target, true=[given[1], *given[1:]]))
    fewer = replace(found, posterior=found.posterior.copy())
    fewer.posterior[0] = 0
    fewer.posterior[0, found.given[0]] = 1
    contents = dict.fromkeys(found.ids, "00" * 16)
    for text, expected in (
        (render_clean(other), "0 of 8 decided"),
        (
            render_clean(fewer),
            "1 of 7 decided (0 kept, 0 changed, 1 removed); 1 on examples of earlier pages",
        ),
        (render_clean(replace(found, contents=contents)), "0 of 8 decided"),
    ):
        (tmp_path / "other.html").write_text(text)
        page.goto((tmp_path / "other.html").as_uri())
        assert counts(page).startswith(expected)
        if "earlier" in expected:  # all decisions are downloaded
            path = download(page)
            assert apply_decisions(found.target, path).counts["kept"] == 1


def test_the_list_is_filtered_and_used_by_mouse_and_touch(opened):
    found = suspected()
    page = opened(render_clean(found), width=390, has_touch=True)
    page.locator(".row").nth(2).tap()
    assert name(page) == found.ids[2]
    page.get_by_role("button", name="Remove").tap()
    page.get_by_label("Show", exact=False).first.select_option("open")
    assert page.locator(".row").first.get_attribute("aria-setsize") == "39"
    page.get_by_role("button", name="Keep").click()
    assert page.locator(".row").first.get_attribute("aria-setsize") == "38"
    assert name(page) == found.ids[4]
    page.locator("#pair").select_option(index=1)
    pair = f"{page.locator('#given').text_content()} → {page.locator('#suggested').text_content()}"
    shown = page.locator(".row .facts").evaluate_all("rows => rows.map(row => row.textContent)")
    assert len(shown) in (6, 7)
    assert all(text.startswith(pair) for text in shown)
    page.get_by_role("button", name="Undo").click()  # shows what was undone, whatever the filter
    assert name(page) == found.ids[3]
    search = page.get_by_label("With")
    search.fill("TEXT 17 ")
    assert page.locator(".row").count() == 1
    search.press("k")  # a letter in a field is no decision
    assert counts(page).startswith("1 of 40")
    assert page.get_by_text("No example matches").is_visible()
    search.fill("")
    page.get_by_label("Use these keys").uncheck()
    page.keyboard.press("r")
    assert counts(page).startswith("1 of 40")
    page.locator("#list").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    assert name(page) == found.ids[1]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
@pytest.mark.parametrize("kind", ["texts", "images", "features"])
def test_the_review_is_accessible(opened, image_folder, scheme, width, kind):
    paths = sorted(image_folder.rglob("*.png")) if kind == "images" else None
    found = suspected(24, paths=paths, texts=kind == "texts")
    page = opened(render_clean(found), scheme, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.keyboard.press("s")
    check_accessible(page)
    shown = page.locator("#seen")
    assert shown.is_visible() == (kind != "features")
    if kind == "images":
        assert page.evaluate("document.querySelector('#seen img').naturalWidth") == 24
    if kind == "texts":
        assert "<script>alert(2)</script>" in shown.inner_text()
    page.locator("#keep").focus()
    page.keyboard.press("Tab")
    focused = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(focused) == "solid"


def test_thousands_of_rows_are_rendered_when_they_are_seen(opened):
    found = suspected(MOST_ROWS + 10)
    page = opened(render_clean(found))
    assert page.get_by_text(f"the first {MOST_ROWS} of {MOST_ROWS + 10}").is_visible()
    for key in ("Home", "End", "ArrowUp"):
        page.keyboard.press(key)
        assert 5 < page.locator(".row").count() < 40
    assert page.locator(".row[aria-selected=true]").get_attribute("aria-posinset") == str(MOST_ROWS - 1)
    page.locator("#list").evaluate("list => { list.scrollTop = list.scrollHeight / 2 }")
    page.wait_for_function("document.querySelector('.row').ariaPosInSet > 2400")


def test_the_review_without_scripts_and_without_errors(opened):
    page = opened(render_clean(suspected(3)), java_script_enabled=False)
    assert page.locator("tbody tr").count() == 3
    assert not page.locator("#review").is_visible()
    none = replace(suspected(3), checked=suspected(3).checked | True)
    assert "No label is a suspected error" in opened(render_clean(none)).inner_text("main")


def test_the_policy_of_the_page_allows_its_own_script_alone(chromium, tmp_path):
    text = render_clean(suspected(3)).replace(
        "<header>", "<script>document.title = 'changed'</script><style>h1{color:#f00}</style><header>"
    )
    (tmp_path / "page.html").write_text(text)
    page = chromium.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    assert page.title() != "changed"
    assert page.evaluate("getComputedStyle(document.querySelector('h1')).color") != "rgb(255, 0, 0)"
    assert page.locator("#review").is_visible()
    assert page.evaluate("fetch('data:text/plain,a').then(() => 'sent', () => 'refused')") == "refused"
    page.close()


@pytest.mark.parametrize(("required", "ends"), [("1", pytest.fail), ("", pytest.skip)])
def test_a_browser_that_is_required_is_never_skipped(monkeypatch, required, ends):
    monkeypatch.setenv("HESSTUNE_REQUIRE_BROWSER", required)
    with pytest.raises(ends.Exception, match="Chromium is not installed"):
        absent("Chromium is not installed")
