"""The compact form of a comparison gives back what was written, number for number."""

import csv
import json

import pytest

from hesstune import compare
from hesstune.errors import ConfigError, RunError
from hesstune.study.compact import cells_of, expanded, factored, table_rows
from hesstune.study.plan import Settings, make_study_plan
from hesstune.study.records import CellRecord, StudyResults
from hesstune.study.results import check_unchanged, read_compact, write_compact


def cell(**more):
    made = {"task": "a", "method": "vanilla", "seed": 0, "fingerprint": "0123", "status": "done"}
    return CellRecord(**{**made, "error": None, "metrics": {}, **more})


def there_and_back(cells):
    header, rows = table_rows(cells)
    return cells_of(dict(zip(header, row, strict=True)) for row in rows)


@pytest.mark.parametrize(
    "metrics",
    [
        {"gap": 0.1 + 0.2, "epochs": 15, "loss": 1e-300},
        {"certificate": None, "measure": 0.0},
        {"certificate": {"risk": None, "why": 'noise, "unknown"'}},
        {},
    ],
)
def test_numbers_come_back_as_they_were(metrics):
    cells = [cell(metrics=metrics), cell(seed=1, metrics={"gap": 1.0})]
    again = there_and_back(cells)
    assert again == cells
    assert json.dumps([c.to_dict() for c in again]) == json.dumps([c.to_dict() for c in cells])
    assert json.dumps(again[0].to_dict()["metrics"]) == json.dumps(metrics)


def test_failures_and_searches_come_back():
    search = {"trials": [{"options": {"lr": 0.1}, "val_loss": 0.5, "error": None}], "chosen": 0}
    cells = [
        cell(status="failed", error='a "quoted", long\nstory'),
        cell(seed=1, status="pending"),
        cell(seed=2, metrics={"gap": 2.0}, search=search),
    ]
    assert there_and_back(cells) == cells


@pytest.mark.parametrize(
    "configs",
    [
        {},
        {"a": {"x": {"data": "a.csv", "lr": 1}}, "b": {"x": {"data": "b.csv", "lr": 1}}},
        {"a": {"x": {"data": "a.csv"}, "y": {"data": "a"}}, "b": {"x": {"data": "c"}, "y": {"data": "d"}}},
        {"a": {"x": {"lr": 1}, "y": {}}, "b": {"x": {"lr": 1}, "y": {"lr": 2}}},
        {"a": {"x": {"text": "{task} is a"}}, "b": {"x": {"text": "{task} is a"}}},
        {"a": {"x": {"flag": True}}, "b": {"x": {"flag": 1}}},
        {"a": {"x": {"lr": 1}}, "b": {"x": {"lr": 1}, "y": {"lr": 2}}},
    ],
)
def test_options_come_back(configs):
    again = expanded(json.loads(json.dumps(factored(configs))))
    assert json.dumps(again, sort_keys=True) == json.dumps(configs, sort_keys=True)


def test_what_is_common_is_told_once():
    methods = {"x": {"lr": 0.1}, "y": {"lr": 0.2}}
    configs = {
        task: {name: {"data": f"csv:{task}-1.csv", "limit": limit, **own} for name, own in methods.items()}
        for task, limit in (("photo", 10), ("sketch", 20))
    }
    told = factored(configs)
    assert told["methods"] == methods
    assert told["tasks"]["photo"] == {"data": "csv:photo-1.csv", "limit": 10}
    assert told["cells"] == {}


def test_a_comparison_is_the_same_read_from_the_compact_form(tmp_path):
    few = {"data": "digits", "train": "head", "image_size": 16, "limit": 40, "epochs": 1}
    made = compare(few, methods=["vanilla", "gce"], seeds=2, measure_examples=0, out=tmp_path / "a").results
    write_compact(tmp_path / "kept.csv", made)
    assert json.dumps(read_compact(tmp_path / "kept.csv").to_dict()) == json.dumps(made.to_dict())
    assert "means" not in json.loads((tmp_path / "kept.json").read_text())
    with (tmp_path / "kept.csv").open(newline="") as file:
        assert len(list(csv.reader(file))) == 5


def test_a_damaged_compact_form_is_refused(tmp_path):
    kept = tmp_path / "kept.csv"
    with pytest.raises(RunError, match=r"kept\.json cannot be read"):
        read_compact(kept)
    (tmp_path / "kept.json").write_text('{"format": 99}')
    kept.write_text("task,method\n")
    with pytest.raises(RunError, match="no comparison of this version"):
        read_compact(kept)
    (tmp_path / "kept.json").write_text('{"format": 1, "configs": {"tasks": {}, "methods": {}, "cells": {}}}')
    kept.write_text("task,method\na,vanilla\n")
    with pytest.raises(RunError, match=r"kept\.csv cannot be read as a comparison's cells"):
        read_compact(kept)


def test_an_option_of_an_older_name_is_named_as_it_is_called_now(tmp_path):
    options = {"data": "digits", "image_size": 16, "limit": 40, "inject_noise": "symmetric:0.2"}
    plan = make_study_plan(options, None, ["vanilla"], [0], Settings())
    before = StudyResults(
        tasks=[],
        methods=[],
        baseline="vanilla",
        cells=[cell(task=plan.cells[0].task, fingerprint="other")],
        shared={"noise": "symmetric:0.4"},
    )
    with pytest.raises(ConfigError, match=r"made with --inject-noise symmetric:0\.4, not symmetric:0\.2"):
        check_unchanged(plan, before, tmp_path)
