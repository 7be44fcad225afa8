"""docs/study.md is what the committed records say."""

import json
from pathlib import Path

import write_study
from hesstune.study.fingerprint import ELSEWHERE, LATER
from hesstune.study.results import read_compact

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "benchmarks" / "results" / "study"


def test_the_page_is_written_from_the_records():
    records = write_study.records()
    assert {"programmatic_head"} <= set(records)
    for record in records.values():
        assert {cell["status"] for cell in record["cells"]} <= {"done", "pending"}
    assert write_study.PAGE.read_text() == write_study.page(records)


def test_a_new_option_does_not_void_the_oldest_record():
    """An option added since is named in LATER; else its default would change every fingerprint."""
    from hesstune.runs.config import FinetuneConfig
    from hesstune.study.fingerprint import EARLIER

    record = read_compact(STUDY / "programmatic_first.csv")
    told = set(record["shared"])
    for by_method in record["configs"].values():
        for options in by_method.values():
            told |= set(options)
    now = {EARLIER.get(name, name) for name in FinetuneConfig.model_fields}
    assert now - told - set(ELSEWHERE) - {"seed"} == set(LATER)


def test_committed_records_are_a_row_a_cell():
    """What code can derive is not kept: no means, no differences, and one place for an option."""
    for path in STUDY.glob("*.csv"):
        record = read_compact(path)
        assert len(path.read_text().splitlines()) == 1 + len(record["cells"])
        told = json.loads(path.with_suffix(".json").read_text())
        assert not {"cells", "means", "differences", "ranks"} & set(told)
