"""The pages of figures are what their records make them: no figure is typed by hand."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_benchmarks_page_is_made_from_the_records(monkeypatch):

    import write_docs

    assert write_docs.PAGE.read_text() == write_docs.page()


def test_measure_page_is_made_from_the_records(monkeypatch):

    import write_measure

    assert write_measure.PAGE.read_text() == write_measure.page()


def test_own_loop_page_holds_the_examples_that_are_run(monkeypatch):

    import write_own_loop

    assert write_own_loop.PAGE.read_text() == write_own_loop.page()
    told = {name for name, _ in write_own_loop.SECTIONS.values()}
    assert told | {"sentiment_rules"} == {path.stem for path in (ROOT / "examples").glob("*.py")}


@pytest.mark.parametrize(
    "writer", ["write_noise", "write_certificates", "write_methods", "write_scaling", "write_gap"]
)
def test_pages_on_noise_certificates_and_methods_are_made_from_the_records(monkeypatch, writer):

    module = importlib.import_module(writer)
    assert module.PAGE.read_text(encoding="utf-8") == module.page()


def test_methods_page_names_every_method():
    from hesstune.methods import method_names

    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert [name for name in method_names() if f"\n## {name}\n" not in text] == []


def test_navigation_has_every_page():
    pages = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    listed = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert set(listed) == pages
