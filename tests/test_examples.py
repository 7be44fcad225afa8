"""Every example runs as it stands."""

from __future__ import annotations

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NEEDS = {
    "trainer": "transformers",
    "lightning_module": "lightning",
    "lora": "peft",
    "sentiment_rules": "vaderSentiment",
}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_example_runs(path: Path, tmp_path: Path):
    needed = NEEDS.get(path.stem)
    if needed and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    for line in done.stdout.splitlines():
        if line.startswith("test accuracy"):
            assert float(line.split(":")[1].split(";")[0]) > 0.5


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
