"""The generated parts of the pages are what records, code and examples say, and the pages are complete."""

import re
from pathlib import Path

import pytest

import tables

ROOT = Path(__file__).parents[1]
PAGES = {page: page.read_text(encoding="utf-8") for page in tables.pages()}
SHOWN = [
    pytest.param(page, name, id=f"{page.name}-{name}")
    for page, text in PAGES.items()
    for name in re.findall(r"<!-- generated: (\w+) -->", text)
]


def cells(text):
    """The cells of a text's tables, row by row."""
    return [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("|")]


@pytest.mark.parametrize(("page", "name"), SHOWN)
def test_a_generated_part_has_the_cells_or_the_code_of_its_source(page, name):
    part = rf"<!-- generated: {name} -->(.*?)<!-- end of generated -->"
    shown, made = re.search(part, PAGES[page], flags=re.S)[1], tables.TABLES[name]()
    assert cells(shown) == cells(made)
    assert cells(shown) or shown.split() == made.split()
    assert shown.strip()


def test_every_table_is_shown():
    assert {param.values[1] for param in SHOWN} == set(tables.TABLES)


def test_markers_of_a_page_are_replaced_and_its_prose_stays(monkeypatch):
    monkeypatch.setitem(tables.TABLES, "one", lambda: tables.markdown(["a", "b"], [["1", "2"]]))
    page = "Before.\n\n<!-- generated: one -->\n\n| old |\n\n<!-- end of generated -->\n\nAfter.\n"
    made = tables.filled(page)
    assert cells(made)[-1] == ["", "1", "2", ""]
    assert "old" not in made
    assert made.startswith("Before.\n")
    assert made.endswith("\nAfter.\n")
    assert tables.filled(made) == made
    with pytest.raises(KeyError, match="two"):
        tables.filled(page.replace("one", "two"))


def test_methods_page_names_every_method():
    from hesstune.methods import method_names

    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert [name for name in method_names() if f"\n## {name}\n" not in text] == []


def test_navigation_has_every_page():
    pages = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    listed = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert set(listed) == pages
