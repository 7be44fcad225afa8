"""Every example runs as it stands and shows its benefit."""

from __future__ import annotations

import csv
import importlib.util
import re
import runpy
import sys
import warnings
from pathlib import Path

import pytest

from hesstune.data.load import load_examples
from hesstune.data.near_duplicates import near_duplicates

EXAMPLES = Path(__file__).parents[1] / "examples"
NEEDS = {
    "trainer": "transformers",
    "lightning_module": "lightning",
    "lora": "peft",
    "sentiment_rules": "vaderSentiment",
}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_each_example_shows_its_benefit(path, tmp_path, monkeypatch, capsys):
    needed = NEEDS.get(path.stem)
    if needed and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path), "0"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runpy.run_path(str(path), run_name="__main__")
    shown = re.findall(r"^(\w+): test accuracy on true labels ([\d.]+)", capsys.readouterr().out, re.M)
    assert len(shown) == 2
    before, after = (float(value) for _, value in shown)
    assert after >= before + 0.05, shown


def test_few_lines_are_added_to_a_users_loop():
    for path in EXAMPLES.glob("*.py"):
        added = [line for line in path.read_text().splitlines() if "# +" in line]
        assert len(added) <= 10, path


def test_the_rules_label_texts_from_the_command_line(tmp_path, monkeypatch, capsys):
    pytest.importorskip("vaderSentiment")
    from hesstune.cli.main import run

    monkeypatch.syspath_prepend(str(EXAMPLES))
    texts = ["a wonderful , moving film", "dull , tedious and bland", "it opens in june", "an awful mess"]
    source, out = tmp_path / "reviews.csv", tmp_path / "labels.csv"
    source.write_text("text\n" + "".join(f'"{text}"\n' for text in texts))
    command = ["label", "--target", f"csv:{source}", "--functions", "py:sentiment_rules:RULES", "--quiet"]
    with pytest.raises(SystemExit) as done:
        run([*command, "--label-model", "majority", "--out", str(out)])
    assert done.value.code == 0, capsys.readouterr().err
    with out.open(newline="") as file:
        found = {row["text"]: row["label"] for row in csv.DictReader(file)}
    assert [found.get(text) or None for text in texts] == ["positive", "negative", None, "negative"]
    assert (tmp_path / "labels.noise.json").is_file()


def test_the_texts_of_the_tutorial_have_no_near_duplicates(tmp_path, monkeypatch):
    """The accuracy on its test part would be too high."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["texts.py"])
    runpy.run_path(str(EXAMPLES / "data" / "texts.py"), run_name="__main__")
    texts = load_examples("csv:answers.csv", size=8, classes=["plots", "tables"]).examples
    (groups,) = near_duplicates([texts])
    assert len(groups) == 1200
    assert len(set(groups.tolist())) == len(groups)
