"""Copies of examples: groups by features, and estimates that do not depend on how often one is stored."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from hesstune.labeling.clean import clean
from hesstune.noise.estimate import estimate_by_em
from hesstune.noise.latent.channel import Observed
from hesstune.noise.latent.copies import copies_note, feature_groups, joined, merge_copies
from hesstune.noise.latent.em import fold_rows
from hesstune.noise.probes import cross_fit


def _digits(n=150):
    x, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(x))[:n]
    wrong = rng.random(n) < 0.2
    return x[rows] / 16, np.where(wrong, (y[rows] + rng.integers(1, 10, n)) % 10, y[rows])


@pytest.mark.parametrize("jitter", [0.0, 0.01])
def test_equal_and_nearly_equal_rows_are_one_group(jitter):
    x, _ = _digits()
    three = np.tile(x, (3, 1))
    three += jitter * np.random.default_rng(1).normal(size=three.shape)
    assert (feature_groups(three) == np.tile(np.arange(len(x)), 3)).all()


@pytest.mark.parametrize("kind", ["gaussian", "clusters", "one-hot", "binary", "line"])
def test_different_examples_are_not_joined(kind):
    rng, y = np.random.default_rng(0), np.arange(300) % 3
    x = {
        "gaussian": rng.normal(size=(300, 40)),
        "clusters": np.eye(3)[y] + 0.1 * rng.normal(size=(300, 3)),
        "one-hot": np.eye(3)[y],
        "binary": (rng.random((300, 5)) < 0.5).astype(float),
        "line": rng.normal(size=(300, 1)),
    }[kind]
    assert len(np.unique(feature_groups(x))) == 300


def test_groups_are_joined_transitively():
    assert joined(np.array([0, 0, 1, 2, 3]), np.array([5, 4, 4, 3, 2])).tolist() == [0, 0, 0, 1, 2]


def test_a_group_is_one_example_with_the_mean_label():
    observed = Observed.of([0, 1, 1, 0], 2, weight=np.array([1.0, 3.0, 1.0, 1.0]), copies=[7, 7, 7, 2])
    found = merge_copies(np.arange(8.0).reshape(4, 2), observed)
    assert found.row.tolist() == [0, 0, 0, 1]
    assert found.features[0].tolist() == [2.0, 3.0]
    assert found.labels.given[0] == pytest.approx([1 / 3, 2 / 3])
    assert found.labels.weight == pytest.approx([5 / 3, 1.0])


def test_folds_keep_groups_together():
    groups = np.arange(60) // 3
    parts = fold_rows(60, 5, 0, groups)
    assert sorted(np.concatenate(parts).tolist()) == list(range(60))
    assert sum(len(np.unique(groups[rows])) for rows in parts) == 20


def test_cross_fit_does_not_see_copies():
    rng = np.random.default_rng(0)
    x, y = np.tile(rng.normal(size=(60, 50)), (3, 1)), np.tile(rng.integers(0, 2, 60), 3)
    leaking = cross_fit(x, y, 2).argmax(axis=1) == y
    apart = cross_fit(x, y, 2, groups=np.tile(np.arange(60), 3)).argmax(axis=1) == y
    assert leaking.mean() > 0.9
    assert apart.mean() < 0.7


def test_estimates_do_not_depend_on_how_often_examples_are_stored():
    x, given = _digits()
    once, rows = clean(features=x, labels=given), np.tile(np.arange(len(x)), 3)
    thrice = clean(features=x[rows], labels=given[rows])
    assert thrice.p_wrong == pytest.approx(once.p_wrong[rows], abs=1e-6)
    assert thrice.rate_interval == pytest.approx(once.rate_interval, abs=1e-6)
    assert thrice.details["copies"] == {"groups": len(x), "different_labels": 0}
    matrices = [estimate_by_em(x[r], given[r], 10, errors=False).matrix.array for r in (slice(None), rows)]
    assert matrices[0] == pytest.approx(matrices[1], abs=1e-6)


def test_different_labels_of_copies_are_counted():
    groups, labels = np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 0, 0])
    assert "1 group " in copies_note(groups, labels)[0]
    assert copies_note(np.arange(5), labels) == []
