"""The pages of figures are what their records make them: no figure is typed by hand."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_benchmarks_page_is_made_from_the_records(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import write_docs

    assert write_docs.PAGE.read_text() == write_docs.page()


def test_measure_page_is_made_from_the_records(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import write_measure

    assert write_measure.PAGE.read_text() == write_measure.page()
