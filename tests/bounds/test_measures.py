"""The measures of numbers: closed forms, scaling laws and refusals."""

import math

import numpy as np
import pytest
import torch

from hesstune.bounds import baselines
from hesstune.bounds.hessian import (
    constrained_distance_measure,
    hessian_distance_measure,
    inverse_norm,
    noisy_hessian_distance_measure,
)
from hesstune.errors import ConfigError, NoiseMatrixError

EXACT = {"rtol": 1e-12, "atol": 1e-14}


def test_hessian_distance_measure_is_a_sum_of_roots():
    value = hessian_distance_measure([4.0, 9.0, 0.0], n=50, bound=2.0)
    torch.testing.assert_close(value, math.sqrt(8 / 50) + math.sqrt(18 / 50), **EXACT)
    torch.testing.assert_close(hessian_distance_measure([4.0, 9.0, 0.0], 200, 2.0), value / 2, **EXACT)


def test_constrained_form_is_above_the_measure_inside_the_ball():
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(3, 5, 5))
    hessians = roots @ roots.transpose(0, 2, 1)
    v = rng.normal(size=(3, 5))
    alpha = np.linalg.norm(v, axis=1)
    quadratic = np.einsum("li,lij,lj->l", v, hessians, v)
    trace = hessians.trace(axis1=1, axis2=2)
    assert constrained_distance_measure(alpha, trace, 10, 1.0) >= hessian_distance_measure(quadratic, 10, 1.0)


def test_rho_is_the_row_sum_of_the_inverse_and_bounds_the_consistent_loss():
    noise = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.0, 0.4, 0.6]])
    inverse = np.linalg.inv(noise)
    rho = inverse_norm(noise)
    rows, columns = np.abs(inverse).sum(axis=1).max(), np.abs(inverse).sum(axis=0).max()
    torch.testing.assert_close(rho, float(rows), **EXACT)
    assert abs(rows - columns) > 0.1  # the matrix tells a row sum from a column sum
    corners = np.array(np.meshgrid(*[[0.0, 1.0]] * 3)).reshape(3, -1)
    torch.testing.assert_close(float(np.abs(inverse @ corners).max()), rho, rtol=1.0, atol=0.0)
    assert np.abs(inverse @ corners).max() <= rho
    torch.testing.assert_close(
        noisy_hessian_distance_measure([1.0, 4.0], 10, 2.0, noise),
        hessian_distance_measure([1.0, 4.0], 10, 2.0 * rho),
        **EXACT,
    )


def test_symmetric_noise_has_the_known_rho():
    # F = (1 − r − r/(K−1)) I + r/(K−1) J for rate r; its inverse is (I − r/(K−1) J)/(1 − rK/(K−1)).
    k, rate = 7, 0.3
    off = rate / (k - 1)
    noise = np.full((k, k), off) + (1 - rate - off) * np.eye(k)
    expected = (1 - off + (k - 1) * off) / (1 - rate * k / (k - 1))
    torch.testing.assert_close(inverse_norm(noise), expected, **EXACT)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: hessian_distance_measure([-1.0], 5, 1.0), ConfigError, "at least 0"),
        (lambda: hessian_distance_measure([math.nan], 5, 1.0), ConfigError, "finite"),
        (lambda: hessian_distance_measure([[1.0]], 5, 1.0), ConfigError, "one number a layer"),
        (lambda: hessian_distance_measure([1.0], 0, 1.0), ConfigError, "n must be"),
        (lambda: constrained_distance_measure([1.0], [1.0, 2.0], 5, 1.0), ConfigError, "one number a layer"),
        (lambda: inverse_norm([[0.5, 0.5], [0.5, 0.5]]), NoiseMatrixError, "singular"),
        (lambda: baselines.spectral_measure([0.0, 1.0], [1.0, 1.0], 5, 1.0), ConfigError, "zero at layer 0"),
        (lambda: baselines.spectral_measure([1.0], [1.0, 1.0], 5, 1.0), ConfigError, "one number a layer"),
    ],
)
def test_refusals(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_distance_sum_adds_norms():
    torch.testing.assert_close(baselines.distance_sum([1.0, 2.5]), 3.5, **EXACT)


def spectral(factor: float, n: int = 100, margin: float = 1.0) -> list[float]:
    """Scale all weights and distances of a two-layer network by a factor."""
    norms, moved = np.array([2.0, 3.0]) * factor, np.array([0.5, 0.25]) * factor
    return [
        baselines.spectral_measure(norms, moved, n, margin),
        baselines.pac_bayes_spectral_measure(norms, moved, n, margin, width=10),
    ]


def test_margin_bounds_are_invariant_where_the_network_is():
    # Scaling both layers by t scales logits, and so the margin, by t²: the measures must not change.
    torch.testing.assert_close(spectral(3.0, margin=9.0), spectral(1.0), **EXACT)


def test_margin_bounds_fall_with_the_root_of_n():
    torch.testing.assert_close([2 * v for v in spectral(1.0, n=400)], spectral(1.0), **EXACT)


def test_spectral_measure_of_one_layer_is_the_distance():
    torch.testing.assert_close(baselines.spectral_measure([5.0], [2.0], 25, 1.0), 2.0 / 5.0, **EXACT)


def test_mars_and_parameter_count_closed_forms():
    mars = baselines.mars_measure([1.0, 2.0], [0.5, 0.5], n=100, inputs=8)
    torch.testing.assert_close(mars, math.sqrt(math.log(16)) * 2 * 4 * 0.75 / 10, **EXACT)
    torch.testing.assert_close(baselines.parameter_count_measure([3.0, 1.0], 100, 400), 1.0, **EXACT)
