"""The README is short, its Python runs as it stands there, and its figures are the records'."""

import re
import tomllib
from pathlib import Path

import pytest

import records

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
QUESTIONS = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.S)


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_python_blocks_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


def test_versions_stated_are_those_that_passed():
    tried = [{**line["versions"], "failed": line["result"]["failed"]} for line in records.lines("versions")]
    stated = re.search(r"Versions: (.*?)\]\(", QUESTIONS, flags=re.S)[1]
    for package, words in (("torch", "torch"), ("peft", "peft from"), ("lightning", "Lightning from")):
        told = re.search(rf"{words} ([\d.]+\d)(?: and ([\d.]+\d))?", stated)
        for version in filter(None, told.groups()):
            assert any(e.get(package) == version and not e["failed"] for e in tried)
    oldest = re.search(r"transformers from ([\d.]+\d)", stated)[1]
    assert any(e["transformers"] == oldest and not e["failed"] for e in tried)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert oldest.startswith(extras["transformers"][0].removeprefix("transformers>="))


def test_demo_record_shows_the_gain_that_the_readme_states():
    record = records.result("demo")
    accuracy = {(r["name"], r["seed"]): r["test_accuracy"] for r in record["runs"]}
    mean = {name: sum(accuracy[name, s] for s in range(3)) / 3 for name, _ in accuracy}
    assert len(accuracy) == 12
    assert mean["robust"] - mean["plain"] >= 0.10
    assert mean["auto"] >= 0.92
    gain = mean["auto"] - mean["plain, stopped"]
    assert gain == mean["auto"] - max(own for name, own in mean.items() if name != "auto")
    assert f"is {100 * gain:.1f} points above it" in README.replace("\n", " ")
