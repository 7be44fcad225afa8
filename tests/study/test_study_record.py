"""docs/study.md is what the committed records say."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_is_written_from_the_records(monkeypatch):

    import write_study

    records = write_study.records()
    assert {"programmatic_head"} <= set(records)
    for record in records.values():
        assert {cell["status"] for cell in record["cells"]} <= {"done", "pending"}
    assert write_study.PAGE.read_text() == write_study.page(records)


def test_a_new_option_does_not_void_the_oldest_record():
    """An option added since is named in LATER; else its default would change every fingerprint."""
    from hesstune.runs.config import FinetuneConfig
    from hesstune.study.plan import ELSEWHERE, LATER

    record = json.loads((ROOT / "benchmarks/study/results/programmatic_first.json").read_text())
    told = set(record["shared"])
    for by_method in record["configs"].values():
        for options in by_method.values():
            told |= set(options)
    added = set(FinetuneConfig.model_fields) - told - set(ELSEWHERE) - {"seed"}
    assert added == set(LATER)
