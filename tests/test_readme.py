"""The README's Python runs as it stands there, and its figures are the record's."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.S)


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_python_blocks_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


def test_demo_table_is_the_record_and_shows_the_gain(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import demo

    record = json.loads(demo.RESULT.read_text())
    assert demo.table(record) in README
    accuracy = {(r["method"], r["seed"]): r["test_accuracy"] for r in record["runs"]}
    assert len(accuracy) == 6
    gains = [accuracy["robust", s] - accuracy["vanilla", s] for s in range(3)]
    assert sum(gains) / 3 >= 0.10
