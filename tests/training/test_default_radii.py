"""Radii nobody gave: shares of layers' norms, and the head's by what penalised cross-entropy fits."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import hesstune as ht
from hesstune.inputs.feature_store import frozen_features
from hesstune.training.radii import FACTORS


@pytest.fixture
def plain(tiny):
    return {**tiny, "method": "constraint", "epochs": 1}


def fitted_norm(config, penalty):
    """The norm of scikit-learn's head on the run's own features and labels, at a given weight decay."""
    seen = []
    ht.finetune({**config, "method": "vanilla", "epochs": 1, "train": "head"}, observe=seen.append)
    part, loaded = seen[0].task.train, seen[0].loaded
    x = frozen_features(loaded, part, next(loaded.model.parameters()).device)
    k = len(seen[0].task.classes)
    # Two classes as a softmax of two rows: scikit-learn's binary model has one, of twice the length.
    model = LogisticRegression(C=1 / (penalty * len(x)), max_iter=5000, tol=1e-8)
    if k == 2:
        model.set_params(C=2 / (penalty * len(x)))
        row = model.fit(x, part.labels).coef_[0]
        return float(np.linalg.norm(row) / np.sqrt(2))
    return float(np.linalg.norm(model.fit(x, part.labels).coef_))


def test_layers_have_a_share_of_their_norm_and_the_head_twice_the_fitted_heads(plain, tmp_path):
    run = ht.finetune(plain, out=str(tmp_path / "run"))
    radii, reference = run.outcome.radii, run.reference()
    head = f"{run.facts.head}.weight"
    assert set(radii) == set(reference.layers())
    for name in set(radii) - {head}:
        assert radii[name] == pytest.approx(0.05 * float(reference[name].norm()), rel=1e-5)
    penalised = ht.finetune({**plain, "method": "vanilla", "train": "head"})
    fitted = fitted_norm(plain, penalised.config.weight_decay)
    assert radii[head] == pytest.approx(0.5 * fitted, rel=0.02)
    alone = ht.finetune({**plain, "train": "head"}, keep_weights=False)
    assert alone.outcome.radii == pytest.approx({head: 2 * fitted}, rel=0.02)
    assert run.config.radius is None
    assert all(run.outcome.distances[name] <= radii[name] * (1 + 1e-5) for name in radii)


def test_shares_are_options_of_the_method(plain, tmp_path):
    one = ht.finetune(plain, keep_weights=False)
    two = ht.finetune({**plain, "method_options": {"share": 0.025, "head_share": 1.0}}, keep_weights=False)
    assert {n: 2 * r for n, r in two.outcome.radii.items()} == pytest.approx(one.outcome.radii)
    told = ht.finetune({**plain, "radius": 0.5, "method_options": {"share": 0.025}}, keep_weights=False)
    assert set(told.outcome.radii.values()) == {0.5}
    assert any("no effect of the method options share" in note for note in told.facts.notes)


def test_the_balls_follow_the_scale_of_what_the_head_is_given():
    """Labels alone decide how sure a head may be: features ten times smaller need a head ten times longer."""
    from hesstune.training.penalty import penalised_head

    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    x = np.eye(3)[y] + rng.normal(size=(300, 3))
    noisy = np.where(rng.random(300) < 0.5, rng.integers(0, 3, 300), y)
    size = [np.linalg.norm(penalised_head(scale * x, np.eye(3)[y])[1]) for scale in (1.0, 0.1)]
    assert size[1] == pytest.approx(10 * size[0], rel=1e-2)
    assert np.linalg.norm(penalised_head(x, np.eye(3)[noisy])[1]) < size[0]


def test_mars_balls_are_of_the_mars_norm(plain):
    run = ht.finetune({**plain, "norm": "mars"})
    head = f"{run.facts.head}.weight"
    reference = run.reference()
    for name in set(run.outcome.radii) - {head}:
        rows = reference[name].double().flatten(1).abs().sum(dim=1)
        assert run.outcome.radii[name] == pytest.approx(0.05 * float(rows.max()), rel=1e-5)


def test_the_path_of_radius_auto_starts_from_them(plain, tmp_path):
    (own,) = ht.finetune({**plain, "train": "head"}, keep_weights=False).outcome.radii.values()
    run = ht.finetune({**plain, "train": "head", "radius": "auto"}, out=str(tmp_path / "a"))
    record = json.loads((run.path / "radius.json").read_text())
    assert record["chosen"] in FACTORS
    assert record["radius"] == pytest.approx({"head": own * record["chosen"]})


def test_a_continued_run_is_held_by_radii_of_the_examples_it_sees(plain, tmp_path):
    """What is trained again on some of a run's examples must not know the others by its radii."""
    from hesstune.training.prepare import Prepared

    seen = []
    run = ht.finetune({**plain, "train": "head"}, out=str(tmp_path / "run"), observe=seen.append)
    task = seen[0].task
    few = type(task)(**{**vars(task), "train": task.train.take(np.arange(len(task.train) // 2))})
    device = next(seen[0].loaded.model.parameters()).device
    again = [Prepared.of(run, part, device).radius for part in (task, few)]
    assert again[0] == pytest.approx(run.outcome.radii)
    assert again[1] != pytest.approx(run.outcome.radii)


def test_where_no_layer_is_trained_no_ball_is_in_the_way(plain):
    run = ht.finetune({**plain, "train": "*.bias"}, keep_weights=False)
    assert set(run.outcome.distances.values()) == {0.0}
