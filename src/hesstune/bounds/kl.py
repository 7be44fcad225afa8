"""Kullback–Leibler divergences and their inversion, rounded so that bounds can only become larger."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hesstune.errors import ConfigError
from hesstune.noise.confidence import failure_probability

MIN_EXAMPLES = 8  # Maurer's constant 2√n is proved for n of at least 8
_EPS = float(np.finfo(np.float64).eps)
# Units of rounding by which the computed kl may be too large: each logarithm, product and sum rounds once.
_ROUNDINGS = 8

Array = NDArray[np.float64]


def _surely_above(q: Array, p: Array, c: Array) -> NDArray[np.bool_]:
    """Return whether kl(q‖p) = q ln(q/p) + (1 − q) ln((1 − q)/(1 − p)) ≥ c for any rounding, elementwise."""
    with np.errstate(divide="ignore", invalid="ignore"):
        first = np.where(q > 0, q * (np.log(q) - np.log(p)), 0.0)
        second = np.where(q < 1, (1 - q) * (np.log1p(-q) - np.log1p(-p)), 0.0)
        size = np.where(q > 0, q * (1 + np.abs(np.log(q)) + np.abs(np.log(p))), 0.0)
        size = size + np.where(q < 1, (1 - q) * (1 + np.abs(np.log1p(-q)) + np.abs(np.log1p(-p))), 0.0)
        return np.asarray(first + second - _ROUNDINGS * _EPS * size >= c)


def kl_inverse(q: ArrayLike, c: ArrayLike) -> NDArray[np.float64]:
    """Return kl⁻¹(q, c) = max{p in [q, 1] : kl(q‖p) ≤ c}, never below the true value; elementwise.

    Bisection that keeps the upper end: the returned p satisfies kl(q‖p) ≥ c in exact arithmetic, or
    is 1. It exceeds the true value by a few units of rounding only. q are means in [0, 1], c at least 0, in
    nats; infinite gives 1.

    Example:
        >>> round(float(kl_inverse(0.0, 0.1)), 6)  # 1 − exp(−c) at q = 0
        0.095163
    """
    q, c = (np.array(a) for a in np.broadcast_arrays(np.asarray(q, np.float64), np.asarray(c, np.float64)))
    if not (np.all(q >= 0) and np.all(q <= 1)):
        raise ConfigError(f"the mean to invert must lie in [0, 1]; got {q}")
    if not np.all(c >= 0):
        raise ConfigError(f"the right-hand side of a kl bound must be at least 0; got {c}")
    low, high = q.copy(), np.ones_like(q)
    for _ in range(200):
        middle = low + (high - low) / 2
        above = _surely_above(q, middle, c)
        high = np.where(above, middle, high)
        low = np.where(above, low, middle)
        if np.all(high - low <= _EPS * high):
            break
    return high


def complexity(kl: float, n: int, delta: float, family: int = 1) -> float:
    """Return (KL + ln(2√n · J/δ)) / n, the right-hand side of the PAC-Bayes-kl bound.

    Maurer, A note on the PAC-Bayesian theorem (2004), for n of at least 8 independent examples. J members of
    a finite family of priors (and losses), fixed before seeing the data, share δ equally.
    """
    if not isinstance(n, int | np.integer) or n < MIN_EXAMPLES:
        raise ConfigError(f"the PAC-Bayes-kl bound needs at least {MIN_EXAMPLES} examples; got {n}")
    if not kl >= 0:
        raise ConfigError(f"a KL divergence must be at least 0; got {kl}")
    if family < 1:
        raise ConfigError(f"a family of priors needs at least one member; got {family}")
    return float(
        (kl + math.log(2 * math.sqrt(n)) + math.log(family) - math.log(failure_probability(delta))) / n
    )


def monte_carlo_upper(mean: float, draws: int, delta: float) -> float:
    """Return kl⁻¹(mean, ln(1/δ′)/m): an upper bound on an expectation over the posterior.

    m counts independent draws of the *weights*, fixed beforehand, never examples; each value lies in [0, 1].
    Langford & Caruana (2002), section 4; the Chernoff bound in its kl form.
    """
    if draws < 1:
        raise ConfigError(f"the Monte-Carlo step needs at least one draw; got {draws}")
    return float(kl_inverse(mean, -math.log(failure_probability(delta)) / draws))
