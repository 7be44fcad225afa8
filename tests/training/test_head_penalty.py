"""A plain head has a penalty, chosen on its noisy labels; what is given is taken, and others have none."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import hesstune as ht
from hesstune.training.estimates import head_penalty


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


def test_methods_that_resist_noise_have_a_tenth_of_it(tmp_path, tiny):
    options = {**tiny, "train": "head", "epochs": 2, "warmup_epochs": 1}
    found = {
        name: ht.finetune(options, method=name, keep_weights=False, out=str(tmp_path / name))
        for name in ("vanilla", "mixup", "gce", "elr", "forward", "co_teaching")
    }
    plain = found["vanilla"].config.weight_decay
    assert plain > 0
    assert found["mixup"].config.weight_decay == plain
    for name in ("gce", "elr", "forward", "co_teaching"):
        assert found[name].config.weight_decay == pytest.approx(plain / 10)
        assert any("0.1 times what was found" in note for note in found[name].record["notes"])


def test_a_comparison_finds_the_penalty_once(tmp_path, tiny, monkeypatch):
    from hesstune.training import estimates as penalty

    seen = []
    found = penalty._fitted
    monkeypatch.setattr(penalty, "_fitted", lambda *given: seen.append(1) or found(*given))
    options = {name: value for name, value in tiny.items() if name not in ("method", "seed", "out")}
    options |= {"train": "head", "epochs": 1}
    ht.compare(options, methods=["vanilla", "mixup", "gce"], seeds=1, out=str(tmp_path / "c"))
    assert len(seen) == 1


OWN = [{"method": "constraint"}, {"method": "robust_plus", "radius": 1.0}, {"method": "l2_sp"}]


@pytest.mark.parametrize("changed", [*OWN, {"train": "last:2"}])
def test_others_have_none(tmp_path, tiny, changed):
    options = {**tiny, "method": "vanilla", "train": "head", "epochs": 2, "warmup_epochs": 1, **changed}
    assert ht.finetune(**options, out=str(tmp_path / "a")).config.weight_decay == 0
