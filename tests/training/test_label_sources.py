"""Estimated noise, votes, soft labels and checked labels in a fine-tune."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import hesstune as ht
from hesstune.errors import ConfigError, DataError
from hesstune.losses.consistent import ConsistentLoss
from hesstune.noise.estimate import from_posterior
from hesstune.runs.loading import run_task
from hesstune.training import estimates
from hesstune.weak.votes import Votes


def test_votes_go_straight_into_a_run_and_their_noise_is_estimated(tiny, voted, tmp_path):
    options = tiny | {"data": f"csv:{voted}", "inject_noise": None, "train": "head", "epochs": 1}
    run = ht.finetune(options, noise_matrix="estimate:labelmodel", out=str(tmp_path / "run"))
    assert run.record["unlabelled"] == 2
    assert sum(run.record["examples"].values()) == 22
    record = json.loads((run.path / "noise_matrix.json").read_text())
    assert record["method"] == "labelmodel"
    assert record["made_from"]["examples"] == run.record["examples"]["train"]
    # Labels are the majority of the votes.
    with voted.open(newline="") as file:
        votes = {r["image"]: [r[c] for c in ("vote_a", "vote_b", "vote_c")] for r in csv.DictReader(file)}
    for row in run.labels():
        assert votes[row["id"]].count(row["label"]) >= 2
    with pytest.raises(ConfigError, match="needs votes"):
        ht.finetune(tiny, noise_matrix="estimate:labelmodel")


def test_the_matrix_of_rules_that_abstain_is_near_the_truth():
    # Eight rules, each for one class and silent on most texts: a model of features and votes that ignores
    # abstaining merges the classes, and finds a noise rate of 45 %.
    rng = np.random.default_rng(0)
    true = rng.choice(2, 900, p=[0.55, 0.45])
    features = rng.standard_normal((900, 10))
    features[:, 0] += 1.2 * (2 * true - 1)
    votes = np.full((900, 8), -1)
    for rule in range(8):
        speaks = rng.random(900) < np.where(true == rule % 2, 0.35, 0.06)
        votes[speaks, rule] = rule % 2
    spoken = (votes >= 0).any(axis=1)
    given = (votes == 1).sum(axis=1) > (votes == 0).sum(axis=1)
    wrong = (given != true)[spoken].mean()
    part = SimpleNamespace(votes=Votes(votes[spoken], 2))
    posterior, _ = estimates._posterior(part, features[spoken], None, seed=0)
    assert abs(from_posterior(posterior, given[spoken].astype(int)).matrix.rate - wrong) < 0.15


def test_soft_labels_train_and_are_consistent(tiny, voted):
    options = tiny | {"data": f"csv:{voted}", "inject_noise": None, "epochs": 1, "soft_labels": True}
    run = ht.finetune(options, method="vanilla")
    assert run.record["soft_labels"]
    with pytest.raises(ConfigError, match="takes no soft labels"):
        ht.finetune(options, method="gce", noise_matrix=None)
    with pytest.raises(ConfigError, match="neither columns p_CLASS nor votes"):
        ht.finetune(tiny | {"inject_noise": None}, method="vanilla", soft_labels=True)
    F = ht.NoiseMatrix.from_array([[0.7, 0.3], [0.2, 0.8]])
    logits = torch.randn(5, 2, dtype=torch.float64)
    soft = torch.softmax(torch.randn(5, 2, dtype=torch.float64), 1)
    hard = [ConsistentLoss(F, "none")(logits, torch.full((5,), j)) for j in range(2)]
    torch.testing.assert_close(
        ConsistentLoss(F, "none")(logits, soft), soft[:, 0] * hard[0] + soft[:, 1] * hard[1]
    )


# The file of noise is extreme on purpose.
@pytest.mark.filterwarnings("ignore:noise matrix:hesstune.errors.HesstuneWarning")
def test_checked_labels_replace_noisy_ones_and_are_not_corrected(tiny, tmp_path):
    config = tiny | {"inject_noise": "symmetric:0.4", "train": "head", "epochs": 1}
    wrong = [
        r for r in ht.finetune(config).labels() if r["part"] == "train" and r["label"] != r["true_label"]
    ]
    assert wrong
    path = tmp_path / "checked.csv"
    path.write_text("id,label\n" + "".join(f"{r['id']},{r['true_label']}\n" for r in wrong))
    run = ht.finetune(config, checked_labels=str(path), noise_matrix="estimate:holdout")
    assert run.record["checked_labels"] == len(wrong)
    assert all(r["label"] == r["true_label"] for r in run.labels() if r["part"] == "train")
    task = run_task(run.config, run.config.seed)
    assert (task.train.given != task.train.labels).sum() == len(wrong)
    for text, message in (
        ("nowhere.png,dark", r"1 of the 1 .*nowhere"),
        (f"{wrong[0]['id']},drak", "did you mean 'dark'"),
        (f"{wrong[0]['id']},", "no label in its column"),
    ):
        path.write_text(f"id,label\n{text}\n")
        with pytest.raises(DataError, match=message):
            ht.finetune(config, checked_labels=str(path))
    for method, message in (("holdout", "needs checked labels"), ("confidant", "did you mean 'confident'")):
        with pytest.raises(ConfigError, match=message):
            ht.finetune(config, noise_matrix=f"estimate:{method}")


def test_a_resumed_run_takes_the_estimate_it_began_with(tiny, voted, tmp_path, interrupt, monkeypatch):
    options = tiny | {"data": f"csv:{voted}", "inject_noise": None, "train": "head", "epochs": 3}
    options |= {"noise_matrix": "estimate:labelmodel", "method": "robust"}
    made = []
    gather = estimates.gather
    monkeypatch.setattr(estimates, "gather", lambda *a, **k: made.append(1) or gather(*a, **k))
    before = None
    for at, keep in enumerate((True, False, False)):
        out = tmp_path / str(at)
        interrupt(options, out=out)
        path = out / "noise_matrix.json"
        # A mark that no second estimate would leave: what is kept is used, not made again.
        before = json.loads(path.read_text()) | {"matrix": [[0.8, 0.2], [0.3, 0.7]]}
        # An estimate that was made from something else, or is damaged, is not used.
        texts = [json.dumps(before), "{", json.dumps(before | {"made_from": {"seed": 1}})]
        path.write_text(texts[at])
        made.clear()
        run = ht.finetune(options, out=out, resume=True)
        assert len(made) == (0 if keep else 1)
        assert (run.noise_matrix.array.tolist() == before["matrix"]) == keep
        assert (run.record["noise"]["loss_matrix_rate"] == pytest.approx(0.25)) == keep
