"""Inversions, divergences and intervals against arithmetic in many digits and other libraries."""

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hesstune.bounds.kl import complexity, kl_inverse, monte_carlo_upper
from hesstune.errors import ConfigError
from hesstune.noise.confidence import confidence_interval, confidence_upper

EXACT = {"rtol": 1e-12, "atol": 1e-15}
means = st.one_of(st.just(0.0), st.floats(1e-12, 1 - 1e-9), st.just(1.0))
sides = st.floats(1e-9, 30.0)


def exact_kl(q, p):
    q, p = mpmath.mpf(q), mpmath.mpf(p)
    if p == 1 and q < 1:
        return mpmath.inf
    first = q * mpmath.log(q / p) if q > 0 else mpmath.mpf(0)
    return first + ((1 - q) * mpmath.log((1 - q) / (1 - p)) if q < 1 else 0)


def exact_inverse(q, c):
    low, high = mpmath.mpf(q), mpmath.mpf(1)
    for _ in range(180):
        middle = (low + high) / 2
        low, high = (low, middle) if exact_kl(q, middle) > c else (middle, high)
    return high


@given(means, sides)
@settings(max_examples=80, deadline=None)
def test_kl_inverse_is_never_below_the_50_digit_value_and_barely_above(q, c):
    got = float(kl_inverse(q, c))
    with mpmath.workdps(50):
        true = exact_inverse(q, c)
        assert got == 1.0 or exact_kl(q, got) >= mpmath.mpf(c)
        # kl's slope at the root says how far a rounding error of kl moves p.
        slope = (true - q) / (true * (1 - true)) if q < true < 1 else mpmath.mpf(1)
        allowed = 1e-12 * true + 1e-12 * (1 + abs(mpmath.log(max(q, 1e-300)))) / max(slope, mpmath.mpf(1e-9))
        assert got - true <= allowed


def test_kl_inverse_edges():
    assert float(kl_inverse(1.0, 0.5)) == 1.0
    assert float(kl_inverse(0.3, math.inf)) == 1.0
    assert 0.2 <= float(kl_inverse(0.2, 0.0)) <= 0.2 + 1e-6
    torch.testing.assert_close(float(kl_inverse(0.0, 0.7)), -math.expm1(-0.7), **EXACT)
    assert kl_inverse([0.1, 0.2], [0.1, 0.3]).shape == (2,)


@pytest.mark.parametrize(
    ("train", "kl", "published"),
    # Dziugaite & Roy (2017), table 1: the networks T-600 and T-1200, n = 55,000. Their errors are
    # printed to three digits and their Monte-Carlo step (m = 150,000) is repeated here.
    [(0.028, 5144, 0.161), (0.027, 5977, 0.179)],
)
def test_published_values_are_recomputed(train, kl, published):
    upper = monte_carlo_upper(train, draws=150_000, delta=0.01)
    assert float(kl_inverse(upper, complexity(kl, 55_000, 0.025))) == pytest.approx(published, abs=0.003)


def test_family_delta_and_draws_are_paid_for():
    base = complexity(10.0, 100, 0.05)
    torch.testing.assert_close(base, (10 + math.log(2 * math.sqrt(100) / 0.05)) / 100, **EXACT)
    torch.testing.assert_close(complexity(10.0, 100, 0.05, 7) - base, math.log(7) / 100, **EXACT)
    assert monte_carlo_upper(0.1, 10, 0.05) > monte_carlo_upper(0.1, 1000, 0.05) > 0.1


@pytest.mark.parametrize(
    ("compute", "arguments"),
    [
        *((kl_inverse, pair) for pair in ((-0.1, 0.1), (1.1, 0.1), (0.2, -1.0), (math.nan, 0.1))),
        *((complexity, some) for some in ((1.0, 7, 0.05), (-1.0, 100, 0.05), (1.0, 100, 0.0))),
        (complexity, (1.0, 100, 0.05, 0)),
        (monte_carlo_upper, (0.1, 0, 0.05)),
        *((confidence_upper, some) for some in ((3, 2, 0.05), (0, 0, 0.05), (0, 2, 1.0))),
    ],
)
def test_impossible_numbers_are_refused(compute, arguments):
    with pytest.raises(ConfigError):
        compute(*arguments)


@given(st.integers(1, 300), st.floats(0, 1), st.floats(0.001, 0.4))
@settings(max_examples=40)
def test_clopper_pearson_inverts_the_binomial_tail(n, share, delta):
    errors = round(share * n)
    upper = confidence_upper(errors, n, delta)
    if errors < n:
        assert stats.binom.cdf(errors, n, upper) <= delta * (1 + 1e-12)
        assert stats.binom.cdf(errors, n, upper * (1 - 1e-6)) > delta
    low, high = confidence_interval(errors, n, delta)
    interval = stats.binomtest(errors, n).proportion_ci(1 - delta)
    torch.testing.assert_close((low, high), (interval.low, interval.high), rtol=1e-6, atol=1e-7)
