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
    """Return kl⁻¹(q, c) = max{p in [q, 1] : kl(q‖p) ≤ c}, never below the true value.

    Bisection that keeps the upper end: the returned p satisfies kl(q‖p) ≥ c in exact arithmetic, or
    is 1. It exceeds the true value by a few units of rounding only.

    Args:
        q: Empirical means in [0, 1].
        c: Right-hand sides, at least 0, in nats; infinite gives 1.

    Returns:
        An array of the broadcast shape; a scalar array for scalars.

    Raises:
        ConfigError: If q leaves [0, 1], or c is negative or not a number.

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


def gaussian_kl(
    squared_distance: ArrayLike,
    prior: ArrayLike,
    posterior: ArrayLike | None = None,
    dimension: ArrayLike = 1,
) -> float:
    """Return KL(N(Ŵ, σ²I) ‖ N(W⁽ˢ⁾, s²I)) summed over independent blocks, in nats.

    Σ_i [ ‖v_i‖²/(2 s_i²) + d_i/2 · (σ_i²/s_i² − 1 − ln(σ_i²/s_i²)) ].

    Args:
        squared_distance: ‖v_i‖² of each block (or of each weight, with dimension 1).
        prior: s_i, the prior's standard deviations, above 0.
        posterior: σ_i, the posterior's; default: the prior's.
        dimension: d_i, the number of weights of each block.

    Raises:
        ConfigError: If a standard deviation is not above 0 or a distance is negative.

    Example:
        >>> gaussian_kl([4.0, 1.0], [1.0, 0.5])
        4.0
    """
    square, s, d = (np.asarray(a, np.float64) for a in (squared_distance, prior, dimension))
    sigma = s if posterior is None else np.asarray(posterior, np.float64)
    if not (np.all(np.isfinite(s)) and np.all(s > 0) and np.all(np.isfinite(sigma)) and np.all(sigma > 0)):
        raise ConfigError("standard deviations of prior and posterior must be finite and above 0")
    if not (np.all(square >= 0) and np.all(d >= 0)):
        raise ConfigError("squared distances and dimensions must be at least 0")
    # expm1-like form: r − 1 − ln r loses all digits near r = 1, so r − 1 is formed first.
    excess = (sigma - s) * (sigma + s) / s**2
    spread = excess - np.log1p(excess)
    return float(np.sum(square / (2 * s**2) + d / 2 * np.maximum(spread, 0.0)))


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


def pac_bayes_kl(empirical: float, kl: float, n: int, delta: float, family: int = 1) -> float:
    """Return the upper bound kl⁻¹(R̂, (KL + ln(2√n · J/δ))/n) on the risk of the randomised predictor.

    For a loss in [0, 1], n independent examples, and any posterior: with probability at least
    1 − δ. Maurer (2004), Theorem 5; Seeger (2002).

    Example:
        >>> round(pac_bayes_kl(empirical=0.028, kl=5144.0, n=55000, delta=0.035), 3)
        0.161
    """
    return float(kl_inverse(empirical, complexity(kl, n, delta, family)))


def monte_carlo_upper(mean: float, draws: int, delta: float) -> float:
    """Return kl⁻¹(mean, ln(1/δ′)/m): an upper bound on an expectation over the posterior.

    m counts independent draws of the *weights*, fixed beforehand, never examples. Each draw's value
    lies in [0, 1] and the draws' expectations average to what is bounded. Langford & Caruana (2002),
    section 4; the Chernoff bound in its kl form.
    """
    if draws < 1:
        raise ConfigError(f"the Monte-Carlo step needs at least one draw; got {draws}")
    return float(kl_inverse(mean, -math.log(failure_probability(delta)) / draws))
