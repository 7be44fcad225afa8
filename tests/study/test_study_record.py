"""docs/study.md is what the committed records say, and a part continues from them."""

import json
from pathlib import Path

import pytest

import write_study
from hesstune.study.plan import ELSEWHERE, LATER, Settings, make_study_plan
from hesstune.study.results import check_unchanged, read_compact, read_results

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "benchmarks" / "study"
PACS = ROOT.parent / "shared" / "data" / "pacs128"


def test_the_page_is_written_from_the_records():
    records = write_study.records()
    assert {"programmatic_head"} <= set(records)
    for record in records.values():
        assert {cell["status"] for cell in record["cells"]} <= {"done", "pending"}
    assert write_study.PAGE.read_text() == write_study.page(records)


def test_a_new_option_does_not_void_the_oldest_record():
    """An option added since is named in LATER; else its default would change every fingerprint."""
    from hesstune.runs.config import FinetuneConfig
    from hesstune.study.plan import EARLIER

    record = read_compact(STUDY / "results" / "programmatic_first.csv")
    told = set(record["shared"])
    for by_method in record["configs"].values():
        for options in by_method.values():
            told |= set(options)
    now = {EARLIER.get(name, name) for name in FinetuneConfig.model_fields}
    assert now - told - set(ELSEWHERE) - {"seed"} == set(LATER)


def test_committed_records_are_a_row_a_cell():
    """What code can derive is not kept: no means, no differences, and one place for an option."""
    for path in (STUDY / "results").glob("*.csv"):
        record = read_compact(path)
        assert len(path.read_text().splitlines()) == 1 + len(record["cells"])
        told = json.loads(path.with_suffix(".json").read_text())
        assert not {"cells", "means", "differences", "ranks"} & set(told)


@pytest.mark.skipif(not PACS.is_dir(), reason="needs PACS")
def test_committed_cells_on_pictures_count_as_run(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(STUDY)
    monkeypatch.chdir(tmp_path)
    import clean
    import parts
    from labels import write_true

    for domain in clean.DOMAINS:
        write_true(PACS, domain, clean.DATA)
    settings = Settings(stability=True, measure_examples=50)
    plan = make_study_plan(clean.BUDGET, clean.tasks(100), clean.METHODS, [clean.FIRST_SEED], settings)
    record = read_compact(STUDY / "results" / "clean_full.csv")
    kept = {(c["task"], c["method"], c["seed"]): c["fingerprint"] for c in record["cells"]}
    assert plan.cells
    assert all(kept[cell.key] == cell.fingerprint for cell in plan.cells)
    parts.restore("clean_full", tmp_path / "restored")
    check_unchanged(plan, read_results(tmp_path / "restored"), tmp_path)
