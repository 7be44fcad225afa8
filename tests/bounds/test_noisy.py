"""Losses that bound the clean risk from noisy labels: exact coverage, meaning, and refusals."""

from fractions import Fraction
from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hesstune.bounds.noisy import (
    KnownNoise,
    NoiseConfidenceSet,
    clean_losses,
    inverse_loss,
    linear_program_loss,
    margin_loss,
    zero_one_loss,
)
from hesstune.errors import ConfigError, NoiseMatrixError

CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def random_noise(k: int, seed: int, keep: float = 0.6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    matrix = keep * np.eye(k) + (1 - keep) * rng.dirichlet(np.ones(k), k)
    return matrix / matrix.sum(axis=1, keepdims=True)


def exactly_covers(matrix: np.ndarray, loss: np.ndarray) -> bool:
    """F L ≥ 1 − I in rational arithmetic, each row of F divided by its exact sum."""
    f = [[Fraction(float(v)) for v in row] for row in matrix]
    entries = [[Fraction(float(v)) for v in row] for row in loss]
    k = len(f)
    return all(
        sum(f[y][j] * entries[j][h] for j in range(k)) / sum(f[y]) >= (h != y)
        for y in range(k)
        for h in range(k)
    )


@given(st.integers(2, 5), st.integers(0, 10_000), st.floats(0.35, 0.95))
@settings(max_examples=40, deadline=None)
def test_every_loss_covers_the_clean_one_in_exact_arithmetic(k, seed, keep):
    noise = KnownNoise(random_noise(k, seed, keep))
    for loss in clean_losses(noise):
        assert exactly_covers(noise.centre, loss.matrix), loss.name
        assert loss.low < loss.high


def test_inverse_loss_is_indexed_by_noisy_label_then_prediction():
    matrix = np.array([[0.9, 0.1, 0.0], [0.0, 0.8, 0.2], [0.3, 0.0, 0.7]])
    loss = inverse_loss(KnownNoise(matrix))
    torch.testing.assert_close(loss.matrix, 1 - np.linalg.inv(matrix), **CLOSE)
    # For an asymmetric F the transposed index would not be unbiased.
    torch.testing.assert_close(matrix @ loss.matrix, 1 - np.eye(3), **CLOSE)
    assert np.abs(matrix @ loss.matrix.T - (1 - np.eye(3))).max() > 0.05


def test_expectation_over_noisy_labels_is_the_clean_risk():
    k, n = 4, 200_000
    rng = np.random.default_rng(0)
    matrix = random_noise(k, 1, 0.7)
    true = rng.integers(0, k, n)
    predicted = np.where(rng.random(n) < 0.2, (true + 1) % k, true)
    noisy = np.array([rng.choice(k, size=n, p=row) for row in matrix])[true, np.arange(n)]
    confusion = np.zeros((k, k))
    np.add.at(confusion, (noisy, predicted), 1 / n)
    risk = (true != predicted).mean()
    for loss in clean_losses(KnownNoise(matrix)):
        values = loss.matrix[noisy, predicted]
        mean, error = values.mean(), values.std() / np.sqrt(n)
        torch.testing.assert_close(loss.risk(loss.unit(confusion)), float(mean), **CLOSE)
        if loss.name == "inverse":
            assert abs(mean - risk) <= 5 * error
        assert mean >= risk - 5 * error


def test_scaled_loss_lies_in_the_unit_interval_and_goes_back():
    loss = inverse_loss(KnownNoise(random_noise(3, 5)))
    for noisy, predicted in np.ndindex(3, 3):
        corner = np.zeros((3, 3))
        corner[noisy, predicted] = 1.0
        expected = float(min(1.0, loss.matrix[noisy, predicted]))
        torch.testing.assert_close(loss.risk(loss.unit(corner)), expected, **CLOSE)


def test_margin_loss_is_the_margin_bound():
    matrix = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.1, 0.6]])
    loss = margin_loss(KnownNoise(matrix))
    confusion = np.array([[0.2, 0.05, 0.05], [0.1, 0.2, 0.05], [0.05, 0.05, 0.25]])
    noisy_risk = 1 - np.trace(confusion)
    floor, gamma = 1 - 0.8, 0.6 - 0.3
    torch.testing.assert_close(loss.risk(loss.unit(confusion)), (noisy_risk - floor) / gamma, **CLOSE)


def test_linear_program_trades_mean_for_range():
    noise = KnownNoise(random_noise(6, 3, 0.45))
    losses = [linear_program_loss(noise, t) for t in (0.0, 0.05, 0.2, 0.4)]
    ranges = [loss.high - loss.low for loss in losses]
    assert all(a >= b - 1e-9 for a, b in pairwise(ranges))
    assert ranges[-1] < 0.9 * ranges[0]
    torch.testing.assert_close(losses[0].matrix, inverse_loss(noise).matrix, rtol=1e-6, atol=1e-6)


def test_linear_program_exists_for_a_singular_matrix_where_classes_can_be_told_apart():
    # Three distinct rows of rank two: the third is the mean of the others.
    matrix = np.array([[0.8, 0.0, 0.2], [0.0, 0.8, 0.2], [0.4, 0.4, 0.2]])
    with pytest.raises(NoiseMatrixError, match="singular"):
        inverse_loss(KnownNoise(matrix))
    with pytest.raises(NoiseMatrixError, match="own most likely"):
        margin_loss(KnownNoise(matrix))
    loss = linear_program_loss(KnownNoise(matrix), 0.1)
    assert exactly_covers(matrix, loss.matrix)


def test_no_loss_is_left_for_labels_that_say_nothing():
    with pytest.raises(NoiseMatrixError):
        clean_losses(KnownNoise(np.full((3, 3), 1 / 3)))


@pytest.mark.parametrize("k", [2, 4])
def test_confidence_set_holds_the_truth_and_its_worst_case_is_the_vertex_minimum(k):
    matrix, rng = random_noise(k, 2), np.random.default_rng(0)
    noise = NoiseConfidenceSet(np.array([rng.multinomial(400, row) for row in matrix]), delta=0.01)
    assert (noise.lower <= matrix).all()
    assert (matrix <= noise.upper).all()
    values = rng.normal(size=(k, k))
    worst = noise.worst(values)
    # Greedy vertices in every order of classes contain the minimum of a linear function.
    for y in range(k):
        vertices = []
        for order in permutations(range(k)):
            row, left = noise.lower[y].copy(), 1 - noise.lower[y].sum()
            for j in order:
                step = min(left, noise.upper[y, j] - row[j])
                row[j] += step
                left -= step
            vertices.append(row)
        torch.testing.assert_close(worst[y], (np.array(vertices) @ values).min(axis=0), **CLOSE)


def test_losses_over_a_confidence_set_cover_every_matrix_in_it():
    rng = np.random.default_rng(1)
    matrix = random_noise(3, 4, 0.7)
    noise = NoiseConfidenceSet(np.array([rng.multinomial(300, row) for row in matrix]), delta=0.01)
    losses = clean_losses(noise)
    assert {"inverse", "margin"} < {loss.name for loss in losses}
    for loss in losses:
        assert (noise.worst(loss.matrix) >= 1 - np.eye(3)).all(), loss.name
        assert (matrix @ loss.matrix >= 1 - np.eye(3)).all()
    # The program over the set knows of the whole set, so it needs a smaller mean than the lifted inverse.
    means = {loss.name: float(np.trace(noise.centre @ loss.matrix) / 3) for loss in losses}
    assert min(v for name, v in means.items() if name.startswith("linear")) < means["inverse"]


def test_confidence_set_shrinks_to_the_matrix():
    matrix = random_noise(3, 6)
    small, large = (NoiseConfidenceSet(np.round(matrix * n), delta=0.05) for n in (100, 1_000_000))
    assert (large.upper - large.lower).max() < 0.01 < (small.upper - small.lower).min()


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: NoiseConfidenceSet([[1.5, 2], [3, 4]], 0.05), NoiseMatrixError, "whole numbers"),
        (lambda: NoiseConfidenceSet([[1, 2, 3], [3, 4, 5]], 0.05), NoiseMatrixError, "whole numbers"),
        (lambda: KnownNoise([[0.5, 0.4], [0.5, 0.5]]), NoiseMatrixError, "sum to 1"),
        (lambda: linear_program_loss(KnownNoise(np.eye(2)), -1.0), ConfigError, "trade"),
        (lambda: margin_loss(KnownNoise([[0.4, 0.6], [0.2, 0.8]])), NoiseMatrixError, "class 0"),
    ],
)
def test_refusals(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_clean_labels_need_no_correction():
    for loss in clean_losses(KnownNoise(np.eye(3))):
        torch.testing.assert_close(np.diag(loss.matrix).copy(), np.zeros(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(zero_one_loss(3).matrix, 1 - np.eye(3))
