"""The runner of benchmarks: configurations, records that are continued, and what is refused."""

import importlib
import json
import sys

import pytest

import bench
import records
from hesstune.errors import ConfigError, DataError

CONFIGS = sorted(bench.CONFIGS.glob("*.yaml"))


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(bench, "HERE", tmp_path)
    (tmp_path / "twice.py").write_text(
        "def cases(settings):\n"
        "    yield from ({'x': x} for x in settings['values'])\n"
        "    yield {'x': 9, 'seed': 5}\n"
        "def measure(case, run):\n"
        "    if case['x'] < 0:\n"
        "        raise ValueError('negative')\n"
        "    return {'twice': 2 * case['x'] + run.seed} if case['x'] else None\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "results").mkdir()
    return tmp_path


def config(folder, text):
    path = folder / "made.yaml"
    path.write_text(f"about: Twice.\ninstall: nothing\nmodule: twice\n{text}")
    return bench.read_config(path)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_has_a_module_and_distinct_cases(path):
    run = bench.read_config(path)
    module = importlib.import_module(run.module)
    cases = [dict(case) for case in bench.cases_of(run)]
    made = [records.key(case, None) for case in cases]
    assert len(set(made)) == len(made) > 0
    known = {records.key({k: v for k, v in case.items() if k != "seed"}, None) for case in cases}
    seeds = {*run.seeds, *(case["seed"] for case in cases if "seed" in case)}
    found = [line["case"] for line in records.lines(run.name) if line["seed"] in seeds]
    assert {records.key(case, None) for case in found} <= known
    assert callable(module.measure)
    assert "pip install" in run.install


@pytest.mark.parametrize("path", sorted(records.RESULTS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_records_have_one_schema_and_no_case_twice(path):
    lines = records.lines(path.stem)
    for line in lines:
        assert list(line) == ["benchmark", "case", "seed", "result", "versions", "hardware"]
        assert line["benchmark"] == path.stem
    assert len({records.key(line["case"], line["seed"]) for line in lines}) == len(lines)


def test_a_record_goes_on_where_it_stopped(results, capsys):
    run = config(results, "seeds: [0, 1]\nsettings: {values: [1, 0, -1, 2]}")
    assert bench.run_all(run, 1, "") == 2
    lines = records.lines("made")
    found = {(line["case"]["x"], line["seed"]): line["result"]["twice"] for line in lines}
    assert found == {(1, 0): 2, (1, 1): 3, (2, 0): 4, (2, 1): 5, (9, 5): 23}
    assert all(line["versions"]["torch"] and line["hardware"]["machine"] for line in lines)
    assert all(line["result"]["seconds"] >= 0 for line in lines)
    assert "negative" in capsys.readouterr().err
    assert [(case["x"], one.seed) for one, case in bench.todo(run, "")] == [(0, 0), (-1, 0), (0, 1), (-1, 1)]
    assert len(list(bench.todo(run, "", again=True))) == 9
    records.append("made", {"x": 2}, 0, {"twice": -1})
    found = {(row["x"], row["seed"]): row["twice"] for row in records.rows("made")}
    assert len(records.lines("made")) == 5
    assert (found[2, 0], found[2, 1]) == (-1, 5)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [("module: nowhere", "nowhere"), ("sedes: [1]", "seeds"), ("[", "YAML"), ("- 1", "YAML")],
)
def test_a_wrong_configuration_is_refused(results, text, wrong):
    with pytest.raises(ConfigError, match=wrong):
        config(results, text)
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        bench.read_config(results / "absent.yaml")


def test_missing_data_is_refused_with_exit_code_2_and_nothing_is_written(results, monkeypatch, capsys):
    config(results, "needs: [pacs128]")
    for more in ([], ["--data", str(results)]):
        monkeypatch.setattr(sys, "argv", ["bench.py", "run", str(results / "made.yaml"), *more])
        with pytest.raises(SystemExit) as ended:
            bench.main()
        assert ended.value.code == 2
        assert "pacs128" in capsys.readouterr().err
    assert not list((results / "results").iterdir())
    with pytest.raises(DataError):
        bench.read_config(results / "made.yaml").folder("pacs128")


def test_a_line_that_is_no_number_is_not_written(results):
    with pytest.raises(ValueError, match="JSON"):
        records.append("made", {}, 0, {"x": float("nan")})
    assert records.lines("made") == []
    records.append("made", {"x": 1}, None, {"y": 2})
    assert json.loads((results / "results" / "made.jsonl").read_text())["result"] == {"y": 2}
    assert records.rows("made") == [{"x": 1, "seed": None, "y": 2}]
    with pytest.raises(KeyError):
        records.result("made", x=2)
