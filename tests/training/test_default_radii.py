"""Radii nobody gave: of a head by what penalised cross-entropy fits, of other layers by their norms."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import hesstune as ht
from hesstune.inputs.features import frozen_features
from hesstune.methods.constrained import Constraint
from hesstune.training.finetune import FACTORS


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


def test_a_head_alone_has_twice_the_norm_of_the_fitted_head(plain):
    penalised = ht.finetune({**plain, "method": "vanilla", "train": "head"}, keep_weights=False)
    fitted = fitted_norm(plain, penalised.config.weight_decay)
    run = ht.finetune({**plain, "train": "head"}, keep_weights=False)
    assert run.outcome.radii == pytest.approx({f"{run.facts.head}.weight": 2 * fitted}, rel=0.02)
    assert run.config.radius is None
    half = ht.finetune({**plain, "train": "head", "method_options": {"head_share": 1.0}}, keep_weights=False)
    assert half.outcome.radii == pytest.approx({f"{run.facts.head}.weight": fitted}, rel=0.02)


def test_beside_other_layers_it_has_a_quarter_and_they_a_share_of_their_norms(plain):
    run = ht.finetune(plain)
    head = f"{run.facts.head}.weight"
    alone = ht.finetune({**plain, "train": "head"}, keep_weights=False).outcome.radii[head]
    norms = {name: float(run.reference()[name].norm()) for name in run.outcome.radii}
    assert len(norms) > 1
    expected = {name: alone / 4 if name == head else 0.003 * norm for name, norm in norms.items()}
    assert run.outcome.radii == pytest.approx(expected, rel=1e-5)
    assert all(d <= run.outcome.radii[n] * (1 + 1e-5) for n, d in run.outcome.distances.items())
    half = ht.finetune({**plain, "method_options": {"layer_share": 0.0015}}, keep_weights=False).outcome.radii
    assert half == pytest.approx({n: r if n == head else r / 2 for n, r in expected.items()}, rel=1e-5)


def test_the_last_layer_alone_is_a_head_alone(plain):
    one, two = (
        ht.finetune({**plain, "train": t}, keep_weights=False).outcome.radii for t in ("head", "last:1")
    )
    assert one == two


def test_layers_without_a_head_have_shares_alone(plain):
    run = ht.finetune({**plain, "train": "0.*"})
    assert run.outcome.radii["0.weight"] == pytest.approx(0.003 * float(run.reference()["0.weight"].norm()))
    assert run.outcome.distances["0.weight"] > 0


def test_a_method_of_ones_own_has_default_radii_without_declaring_their_options(plain):
    class Held(Constraint):
        own_options = {}

    kinds = (Held, "constraint")
    of_own, usual = (ht.finetune(plain, method=kind, keep_weights=False).outcome.radii for kind in kinds)
    assert of_own == usual


def test_a_share_beside_a_given_radius_is_said_to_have_no_effect(plain):
    told = ht.finetune({**plain, "radius": 0.5, "method_options": {"head_share": 1.0}}, keep_weights=False)
    assert set(told.outcome.radii.values()) == {0.5}
    assert any("no effect of the method options head_share" in note for note in told.facts.notes)
    told = ht.finetune({**plain, "train": "head", "method_options": {"layer_share": 0.1}}, keep_weights=False)
    assert "the head alone is trained: no effect of the method options layer_share" in told.facts.notes


def test_the_balls_follow_the_scale_of_what_the_head_is_given():
    """Labels alone decide how sure a head may be: features ten times smaller need a head ten times longer."""
    from hesstune.training.estimates import penalised_head

    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    x = np.eye(3)[y] + rng.normal(size=(300, 3))
    noisy = np.where(rng.random(300) < 0.5, rng.integers(0, 3, 300), y)
    size = [np.linalg.norm(penalised_head(scale * x, np.eye(3)[y])[1]) for scale in (1.0, 0.1)]
    assert size[1] == pytest.approx(10 * size[0], rel=1e-2)
    assert np.linalg.norm(penalised_head(x, np.eye(3)[noisy])[1]) < size[0]


def test_the_path_of_radius_auto_starts_from_them(plain, tmp_path):
    (own,) = ht.finetune({**plain, "train": "head"}, keep_weights=False).outcome.radii.values()
    run = ht.finetune({**plain, "train": "head", "radius": "auto"}, out=str(tmp_path / "a"))
    record = json.loads((run.path / "radius.json").read_text())
    assert record["chosen"] in FACTORS
    assert record["radius"] == pytest.approx({"head": own * record["chosen"]})


def test_a_continued_run_is_held_by_radii_of_the_examples_it_sees(plain, tmp_path):
    """What is trained again on some of a run's examples must not know the others by its radii."""
    from hesstune.training.prepare import Prepared, choose_from_examples

    seen = []
    run = ht.finetune({**plain, "train": "head"}, out=str(tmp_path / "run"), observe=seen.append)
    task = seen[0].task
    few = type(task)(**{**vars(task), "train": task.train.take(np.arange(len(task.train) // 2))})
    device = next(seen[0].loaded.model.parameters()).device
    again = [choose_from_examples(Prepared.of(run, part, device)).radius for part in (task, few)]
    assert again[0] == pytest.approx(run.outcome.radii)
    assert again[1] != pytest.approx(run.outcome.radii)
