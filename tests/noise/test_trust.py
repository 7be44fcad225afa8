"""What the bootstrap says of F by EM: near the spread over data sets, and noise by place is found out."""

from __future__ import annotations

import numpy as np
import pytest

from hesstune.noise.estimate import estimate_noise, latent_truth_estimate, with_trust

F = np.array([[0.8, 0.15, 0.05], [0.1, 0.7, 0.2], [0.25, 0.05, 0.7]])


def drawn(seed, n=600, spread=0.45):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    x = np.eye(3)[y] + spread * rng.normal(size=(n, 3))
    x = np.concatenate([x, 0.3 * rng.normal(size=(n, 3))], axis=1)
    return x, y, rng


def by_class(seed):
    x, y, rng = drawn(seed)
    return x, (F[y].cumsum(axis=1) < rng.random((len(y), 1))).sum(axis=1)


def by_place(seed):
    """Half of the labels on one side are wrong, none on the other; side and class have nothing in common."""
    x, y, rng = drawn(seed)
    wrong = (x[:, 3] > 0) & (rng.random(len(y)) < 0.6)
    return x, np.where(wrong, (y + 1 + (x[:, 4] > 0)) % 3, y)


def told(x, labels):
    return with_trust(latent_truth_estimate(x, labels, 3), x, labels)


@pytest.mark.slow
def test_errors_are_those_that_fresh_data_show():
    matrices = np.stack([latent_truth_estimate(*by_class(seed), 3).matrix.array for seed in range(5)])
    found = told(*by_class(0))
    assert found.matrix.array == pytest.approx(matrices[0])
    spread = matrices.std(axis=0, ddof=1).mean()
    assert spread / 2 < found.stderr.mean() < 2 * spread
    assert found.details["bootstrap"]["row_tv"]["median"] < 0.15


def test_noise_by_place_is_rejected_and_noise_by_class_is_not():
    assert told(*by_class(1)).details["by_class_alone"]["p_value"] > 0.001
    found = told(*by_place(1))
    assert found.details["by_class_alone"]["p_value"] < 0.001
    assert any("not depend on the class alone" in said for said in found.notes)


def test_the_estimator_tells_it_by_its_name():
    x, labels = by_class(2)
    g = np.full((len(labels), 3), 0.1) + 0.7 * np.eye(3)[labels]
    record = estimate_noise(g, labels, "em", features=x).to_dict()
    assert set(record["details"]) >= {"bootstrap", "by_class_alone", "chosen"}
    assert np.isfinite(record["stderr"]).all()
