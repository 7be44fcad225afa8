"""Losses that bound the clean risk from noisy labels: exact coverage, meaning, and refusals."""

from fractions import Fraction
from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hesstune.bounds.noisy import (
    TEST_SHARE,
    check_floor,
    check_noisy_risk,
    clean_losses,
    inverse_loss,
    linear_program_loss,
    margin_loss,
    margin_of,
    noise_floors,
    read_noise,
    shortfall,
    worst_product,
    zero_one_loss,
)
from hesstune.errors import ConfigError, NoiseMatrixError, RefutedNoiseError
from hesstune.noise.confidence import NoiseConfidenceSet
from hesstune.noise.matrix import NoiseMatrix

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
SYMMETRIC = np.array([[0.8, 0.2], [0.2, 0.8]])
HIDING = np.array([[1.0, 0.0], [0.8, 0.2]])


def random_noise(k, seed, keep=0.6):
    rng = np.random.default_rng(seed)
    return read_noise(keep * np.eye(k) + (1 - keep) * rng.dirichlet(np.ones(k), k))


def counted(matrix, n, seed=0):
    rng = np.random.default_rng(seed)
    return NoiseConfidenceSet(np.array([rng.multinomial(n, row) for row in matrix]), delta=0.01)


def exactly_covers(matrix, loss):
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
@settings(max_examples=20, deadline=None)
def test_every_loss_covers_the_clean_one_in_exact_arithmetic(k, seed, keep):
    noise = random_noise(k, seed, keep)
    for loss in clean_losses(noise):
        assert exactly_covers(noise, loss.matrix), loss.name
        assert loss.low < loss.high


def test_inverse_loss_is_indexed_by_noisy_label_then_prediction():
    matrix = np.array([[0.9, 0.1, 0.0], [0.0, 0.8, 0.2], [0.3, 0.0, 0.7]])
    loss = inverse_loss(matrix)
    torch.testing.assert_close(loss.matrix, 1 - np.linalg.inv(matrix), **CLOSE)
    # For an asymmetric F the transposed index would not be unbiased.
    torch.testing.assert_close(matrix @ loss.matrix, 1 - np.eye(3), **CLOSE)
    assert np.abs(matrix @ loss.matrix.T - (1 - np.eye(3))).max() > 0.05
    for noisy, predicted in np.ndindex(3, 3):  # scaled to the unit interval, and back
        corner = np.zeros((3, 3))
        corner[noisy, predicted] = 1.0
        expected = float(min(1.0, loss.matrix[noisy, predicted]))
        torch.testing.assert_close(loss.risk(loss.unit(corner)), expected, **CLOSE)


@pytest.mark.parametrize("seed", [310, 823])
def test_a_well_conditioned_inverse_loss_is_not_lost_by_rounding(seed):
    rng = np.random.default_rng(seed)
    k, rate = int(rng.integers(2, 30)), rng.uniform(0, 0.6)
    matrix = read_noise((1 - rate) * np.eye(k) + rate * rng.dirichlet(np.full(k, 0.5), k))
    loss = inverse_loss(matrix)
    assert shortfall(matrix, loss.matrix) <= 0
    np.testing.assert_allclose(loss.matrix, 1 - np.linalg.inv(matrix), atol=1e-11)


def test_margin_loss_is_the_margin_bound():
    matrix = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.1, 0.6]])
    loss = margin_loss(matrix)
    confusion = np.array([[0.2, 0.05, 0.05], [0.1, 0.2, 0.05], [0.05, 0.05, 0.25]])
    noisy_risk = 1 - np.trace(confusion)
    floor, gamma = 1 - 0.8, 0.6 - 0.3
    torch.testing.assert_close(loss.risk(loss.unit(confusion)), (noisy_risk - floor) / gamma, **CLOSE)


def test_the_margin_of_a_set_holds_for_every_matrix_in_it():
    rng = np.random.default_rng(0)
    noise = NoiseConfidenceSet(np.array([[80, 15, 5], [10, 85, 5], [4, 6, 90]]), 0.05)
    floor, gamma = margin_of(noise)
    for _ in range(200):
        rows = noise.lower + rng.random((3, 3)) * (noise.upper - noise.lower)
        rows /= rows.sum(axis=1, keepdims=True)
        if (rows < noise.lower).any() or (rows > noise.upper).any():
            continue
        flipped = 1 - rows  # P(ỹ ≠ h | y) for h right, on the diagonal, and wrong
        wrong = flipped[~np.eye(3, dtype=bool)]
        assert flipped.diagonal().min() >= floor
        assert wrong.min() >= floor + gamma - 1e-12


def test_linear_program_trades_mean_for_range():
    noise = random_noise(6, 3, 0.45)
    losses = [linear_program_loss(noise, t) for t in (0.0, 0.05, 0.2, 0.4)]
    ranges = [loss.high - loss.low for loss in losses]
    assert all(a >= b - 1e-9 for a, b in pairwise(ranges))
    assert ranges[-1] < 0.9 * ranges[0]
    torch.testing.assert_close(losses[0].matrix, inverse_loss(noise).matrix, rtol=1e-6, atol=1e-6)


def test_linear_program_exists_for_a_singular_matrix_if_its_rows_differ():
    # Three distinct rows of rank two: the third is the mean of the others.
    matrix = np.array([[0.8, 0.0, 0.2], [0.0, 0.8, 0.2], [0.4, 0.4, 0.2]])
    for make in (inverse_loss, margin_loss):
        with pytest.raises(NoiseMatrixError):
            make(matrix)
    assert exactly_covers(matrix, linear_program_loss(matrix, 0.1).matrix)


@pytest.mark.parametrize("k", [2, 4])
def test_confidence_set_holds_the_truth_and_its_worst_case_is_the_vertex_minimum(k):
    matrix = random_noise(k, 2)
    noise = counted(matrix, 400)
    assert (noise.lower <= matrix).all()
    assert (matrix <= noise.upper).all()
    values = np.random.default_rng(0).normal(size=(k, k))
    worst = worst_product(noise, values)
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
    large = counted(matrix, 1_000_000)
    assert (large.upper - large.lower).max() < 0.01 < (noise.upper - noise.lower).min()


def test_losses_over_a_confidence_set_cover_every_matrix_in_it():
    matrix = random_noise(3, 4, 0.7)
    noise = counted(matrix, 300, seed=1)
    losses = clean_losses(noise)
    assert {"inverse", "margin"} < {loss.name for loss in losses}
    for loss in losses:
        assert (worst_product(noise, loss.matrix) >= 1 - np.eye(3)).all(), loss.name
        assert (matrix @ loss.matrix >= 1 - np.eye(3)).all()
    # The program over the set needs a smaller mean than the lifted inverse.
    means = {loss.name: float(np.trace(noise.centre @ loss.matrix) / 3) for loss in losses}
    assert min(v for name, v in means.items() if name.startswith("linear")) < means["inverse"]


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: NoiseConfidenceSet([[1.5, 2], [3, 4]], 0.05), NoiseMatrixError, "whole numbers"),
        (lambda: NoiseConfidenceSet([[1, 2, 3], [3, 4, 5]], 0.05), NoiseMatrixError, "whole numbers"),
        (lambda: NoiseConfidenceSet([[1, 2], [3, 4]], 1.0), ConfigError, "delta"),
        (lambda: read_noise([[0.5, 0.4], [0.5, 0.5]]), NoiseMatrixError, "sum to 1"),
        (lambda: linear_program_loss(np.eye(2), -1.0), ConfigError, "trade"),
        (lambda: margin_loss(np.array([[0.4, 0.6], [0.2, 0.8]])), NoiseMatrixError, "class 0"),
        (lambda: clean_losses(np.full((3, 3), 1 / 3)), NoiseMatrixError, "singular"),
    ],
)
def test_refusals(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_clean_labels_need_no_correction():
    for loss in clean_losses(np.eye(3)):
        torch.testing.assert_close(np.diag(loss.matrix).copy(), np.zeros(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(zero_one_loss(3).matrix, 1 - np.eye(3))


# -- the noise floor ---------------------------------------------------------------------------


def test_the_floor_is_the_least_error_of_any_classifier_under_any_class_frequencies():
    rng = np.random.default_rng(0)
    for k in (2, 3, 5):
        matrix = rng.dirichlet(np.ones(k), k)
        floors = noise_floors(matrix)
        for _ in range(50):
            prior = rng.dirichlet(np.full(k, 0.1))
            assert np.all(1 - prior @ matrix >= floors - 1e-12)
        # Attained if every example is of the class that agrees most.
        assert np.allclose(floors, [1 - matrix[matrix[:, h].argmax(), h] for h in range(k)])
    counts = NoiseConfidenceSet([[80, 20], [20, 80]], 0.01)
    assert np.all(noise_floors(counts) <= noise_floors(SYMMETRIC))


@pytest.mark.parametrize("matrix", [SYMMETRIC, NoiseMatrix.symmetric(4, 0.3).array, HIDING])
def test_a_true_matrix_is_refused_no_more_often_than_the_level(matrix):
    """The best classifier on its easiest distribution; a large delta, so that refusals occur."""
    delta, trials = 20.0, 300
    k, rng, n, refused = len(matrix), np.random.default_rng(1), 120, 0
    for _ in range(trials):
        true = rng.integers(0, k, n)
        noisy = (rng.random(n)[:, None] > np.cumsum(matrix, axis=1)[true]).sum(axis=1).clip(max=k - 1)
        confusion = np.zeros((k, k), int)
        np.add.at(confusion, (noisy, true), 1)
        try:
            check_floor(confusion, matrix, delta)
        except RefutedNoiseError:
            refused += 1
    assert refused <= stats.binom.ppf(0.999, trials, TEST_SHARE * delta)


def test_one_predicted_class_alone_refutes_the_matrix():
    """The floor over all classes is 0; a label 1 is right for one in five examples at most."""
    with pytest.raises(RefutedNoiseError, match="of class 1"):
        check_floor([[100, 60], [0, 40]], HIDING, 0.05)
    check_floor([[100, 80], [0, 20]], HIDING, 0.05)
    with pytest.raises(RefutedNoiseError):
        check_noisy_risk(0.19, SYMMETRIC, 0.01)
    check_noisy_risk(0.21, SYMMETRIC, 0.01)


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
    for loss in clean_losses(matrix):
        values = loss.matrix[noisy, predicted]
        mean, error = values.mean(), values.std() / np.sqrt(n)
        torch.testing.assert_close(loss.risk(loss.unit(confusion)), float(mean), **CLOSE)
        if loss.name == "inverse":
            assert abs(mean - risk) <= 5 * error
        assert mean >= risk - 5 * error
