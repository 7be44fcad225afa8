"""docs/study.md is what the committed records say."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_is_written_from_the_records(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import write_study

    record = json.loads(write_study.RECORD.read_text())
    assert all(cell["status"] == "done" for cell in record["cells"])
    assert write_study.PAGE.read_text() == write_study.page(record)
