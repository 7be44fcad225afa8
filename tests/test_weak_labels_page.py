"""The page on weak labels does what it says: every command is run."""

import csv
import json
import shlex

import numpy as np
import pytest
from PIL import Image

import test_doc_blocks as blocks
from hesstune.cli.main import run as command_line
from sentences import sentences

PAGE = blocks.ROOT / "docs" / "howto" / "weak-labels.md"
RULES = """
def praised(row):
    return "yes" if any(w in row["text"] for w in ("good", "great", "fine")) else None

def panned(row):
    return "no" if any(w in row["text"] for w in ("bad", "awful", "poor")) else None

def long(row):
    return "yes" if len(row["text"].split()) > 6 else "no"

ALL = [praised, panned, long]
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with what the page's commands name."""
    rng = np.random.default_rng(0)
    for domain, spread in (("photos", 20), ("drawings", 5), ("renders", 35)):
        for name, level in (("dark", 60), ("light", 180)):
            (tmp_path / domain / name).mkdir(parents=True)
            for i in range(12):
                pixels = np.clip(rng.normal(level, spread, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / domain / name / f"{i:02d}.png")
    rows = sentences(60)
    (tmp_path / "rules.py").write_text(RULES)
    with (tmp_path / "reviews.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text, _ in rows)])
    with (tmp_path / "votes.csv").open("w", newline="") as file:
        turned = {"yes": "no", "no": "yes"}
        given = [[y if rng.random() < a else turned[y] for a in (0.9, 0.8, 0.7)] for _, y in rows]
        lines = [[i, text, *votes] for i, ((text, _), votes) in enumerate(zip(rows, given, strict=True))]
        csv.writer(file).writerows([["id", "text", "ann", "bob", "cid"], *lines])
    with (tmp_path / "answers.jsonl").open("w") as file:
        for i, votes in enumerate(given):
            sure = [{vote: 0.97, turned[vote]: 0.03} for vote in votes]
            file.write(json.dumps({"id": str(i), "gpt": sure[0], "llama": sure[1], "qwen": sure[2]}) + "\n")
    with (tmp_path / "answers.csv").open("w", newline="") as file:
        rows = [(i, who, vote) for i, own in enumerate(given) for who, vote in zip("abc", own, strict=True)]
        csv.writer(file).writerows([["item", "who", "said"], *rows])
    with (tmp_path / "scored.csv").open("w", newline="") as file:
        rows = [(i, own[0], 0.7 + i / 400) for i, own in enumerate(given)]
        csv.writer(file).writerows([["id", "label", "confidence"], *rows])
    monkeypatch.chdir(tmp_path)
    return tmp_path


# An estimate from two dozen images may be off.
@pytest.mark.filterwarnings("ignore:noise matrix:hesstune.errors.HesstuneWarning")
def test_every_command_on_weak_labels_runs_in_its_order(place, tiny_bert, capsys):
    small = ["--train", "head", "--epochs", "1", "--image-size", "32"]
    commands = list(blocks.commands(PAGE))
    assert [words[0] for words in commands].count("label") == 6
    for words in commands:
        words = [f"hf:{tiny_bert}" if word == "minilm" else word for word in words]
        words += small if words[0] == "finetune" else ["--image-size", "32"] if "--labelers" in words else []
        words += ["--image-size", "32", "--seeds", "1"] if words[0] == "compare" else []
        with pytest.raises(SystemExit) as ended:
            command_line(words)
        said = capsys.readouterr()
        assert ended.value.code == 0, f"{shlex.join(words)}: {said.err}"
    for name in (
        "labels.csv",
        "labels.noise.json",
        "rated.noise.json",
        "voted.csv",
        "crowd.csv",
        "judged.csv",
        "single.csv",
        "runs/weak/run.json",
    ):
        assert (place / name).is_file()
