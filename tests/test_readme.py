"""The README's Python runs as it stands there, and its figures are the record's."""

import json
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.S)


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_python_blocks_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


def test_versions_stated_are_those_that_passed():
    record = json.loads((ROOT / "benchmarks" / "results" / "versions.json").read_text())
    stated = re.search(r"Versions: (.*?)\n\n", README, flags=re.S)[1]
    for package, words in (("torch", "torch"), ("peft", "peft from"), ("lightning", "Lightning from")):
        told = re.search(rf"{words} ([\d.]+\d)(?: and ([\d.]+\d))?", stated)
        for version in filter(None, told.groups()):
            assert any(e["versions"].get(package) == version and not e["failed"] for e in record["tried"])
    oldest = re.search(r"transformers from ([\d.]+\d)", stated)[1]
    assert any(e["versions"]["transformers"] == oldest and not e["failed"] for e in record["tried"])
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert oldest.startswith(extras["transformers"][0].removeprefix("transformers>="))


def test_demo_table_is_the_record_and_shows_the_gain(monkeypatch):

    import demo

    record = json.loads(demo.RESULT.read_text())
    assert demo.table(record) in README
    accuracy = {(r["method"], r["seed"]): r["test_accuracy"] for r in record["runs"]}
    assert len(accuracy) == 6
    gains = [accuracy["robust", s] - accuracy["vanilla", s] for s in range(3)]
    assert sum(gains) / 3 >= 0.10
