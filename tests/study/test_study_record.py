"""docs/study.md is what the committed records say."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_is_written_from_the_records(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import write_study

    records = write_study.records()
    assert {"programmatic_head"} <= set(records)
    for record in records.values():
        assert {cell["status"] for cell in record["cells"]} <= {"done", "pending"}
    assert write_study.PAGE.read_text() == write_study.page(records)
