"""Commands read tables by a path and named columns, and dry runs say what the data holds."""

import json
from pathlib import Path

import pytest
import yaml

from commands import inside, refused

COLUMNS = ["--text-column", "review", "--label-column", "stars", "--id-column", "key"]


@pytest.fixture
def reviews(tmp_path):
    rows = [{"review": f"text {n}", "stars": "ab"[n % 2] if n else None, "key": f"k{n}"} for n in range(12)]
    path = tmp_path / "reviews.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize(
    "command",
    [["finetune"], ["clean", "--out", "x.csv"], ["compare", "--methods", "vanilla", "--seeds", "1"]],
)
def test_a_dry_run_reads_the_data_and_writes_nothing(reviews, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    lines = inside(*command, "--data", reviews, *COLUMNS, "--dry-run", "--json").stdout.splitlines()
    record = json.loads(lines[-1])["data"]
    facts = record[0] if isinstance(record, list) else record
    assert (facts["kind"], facts["examples"], facts["classes"]) == ("text", 11, {"a": 5, "b": 6})
    assert any("1 of 12 examples without a label" in line for line in lines)
    assert any(f"is read as jsonl:{reviews}" in line for line in lines)
    assert list(tmp_path.iterdir()) == [reviews]
    assert "'stars'" in refused(*command, "--data", reviews, *COLUMNS[:3], "star", "--dry-run")
    if command == ["finetune"]:
        assert yaml.safe_load("\n".join(lines[:-1]))["text_column"] == "review"


def test_texts_have_a_default_model_with_its_own_learning_rate(reviews):
    def resolved(*more):
        found = yaml.safe_load(inside("finetune", "--data", reviews, *COLUMNS, *more, "--dry-run").stdout)
        return found["model"], found["lr"]

    assert resolved() == ("minilm", 5e-5)
    assert resolved("--train", "head") == ("minilm", 1e-2)
    assert resolved("--lr", "1e-3") == ("minilm", 1e-3)
    assert resolved("--model", "efficientnet_lite0") == ("efficientnet_lite0", 1e-4)
    plan = inside("compare", "--data", reviews, *COLUMNS, "--methods", "vanilla", "--seeds", "1", "--dry-run")
    assert "1 cells" in plan.stdout


def test_confidences_need_soft_labels(reviews):
    command = ["finetune", "--data", reviews, *COLUMNS, "--confidence-column", "x", "--dry-run"]
    assert "--soft-labels" in refused(*command)


def test_a_dry_run_of_label_counts_votes_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("votes.csv").write_text("id,a,b\n1,yes,no\n2,yes,\n3,no,no\n")
    done = inside("label", "--votes", "votes.csv", "--out", "l.csv", "--dry-run", "--json")
    found = json.loads(done.stdout.splitlines()[-1])
    counts = {"examples": 3, "annotators": 2, "votes": 5, "classes": ["no", "yes"]}
    assert counts.items() <= found["data"].items()
    assert [path.name for path in tmp_path.iterdir()] == ["votes.csv"]
