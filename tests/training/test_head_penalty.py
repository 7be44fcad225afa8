"""A plain head has a penalty, chosen on its noisy labels; what is given is taken, and others have none."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import hesstune as ht
from hesstune.training.penalty import head_penalty


def test_it_is_near_the_best_of_scikit_learns_on_the_same_labels():
    from sklearn.model_selection import cross_val_score

    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 400)
    x = np.concatenate([np.eye(3)[y] + 0.6 * rng.normal(size=(400, 3)), rng.normal(size=(400, 60))], axis=1)
    noisy = np.where(rng.random(400) < 0.4, rng.integers(0, 3, 400), y)
    penalty = head_penalty(x, np.eye(3)[noisy])

    def loss(strength):
        model = LogisticRegression(C=strength, max_iter=2000)
        return -cross_val_score(model, x, noisy, cv=5, scoring="neg_log_loss").mean()

    ours = loss(1 / (penalty * 400))
    grid = [loss(c) for c in np.geomspace(1e-4, 1e2, 13)]
    assert ours < min(grid) + 0.01
    assert ours < grid[-1] - 0.1


def test_penalties_follow_the_features_scale():
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 200)
    x = np.eye(2)[y] + rng.normal(size=(200, 2))
    one = head_penalty(x, np.eye(2)[y])
    assert head_penalty(10 * x, np.eye(2)[y]) == pytest.approx(100 * one, rel=1e-3)


def test_a_plain_head_under_noise_gains_by_it_and_says_so(tmp_path):
    shared = {"data": "digits", "train": "head", "method": "vanilla", "inject_noise": "symmetric:0.4",
              "image_size": 32, "limit": 300}  # fmt: skip
    run = ht.finetune(**shared, out=str(tmp_path / "a"))
    assert run.config.weight_decay > 0
    assert any("cross-validation on the labels as given" in note for note in run.record["notes"])
    plain = ht.finetune(**shared, weight_decay=0, out=str(tmp_path / "b"))
    assert plain.config.weight_decay == 0
    assert run.result["test_accuracy"] > plain.result["test_accuracy"]


@pytest.mark.parametrize("changed", [{"method": "constraint"}, {"train": "last:2"}])
def test_others_have_none(tmp_path, tiny, changed):
    options = {**tiny, "method": "vanilla", "train": "head", "epochs": 1, **changed}
    assert ht.finetune(**options, out=str(tmp_path / "a")).config.weight_decay == 0
