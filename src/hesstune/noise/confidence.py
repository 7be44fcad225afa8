"""Exact confidence intervals of binomial rates, and the confidence set of a noise matrix."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from hesstune.checks import unit_interval
from hesstune.errors import ConfigError, NoiseMatrixError


def failure_probability(delta: float) -> float:
    """Return delta as a float; raise ConfigError unless it lies strictly between 0 and 1."""
    if not 0 < unit_interval("delta", delta) < 1:
        raise ConfigError(f"delta must lie strictly between 0 and 1; got {delta}")
    return float(delta)


def confidence_upper(errors: int, n: int, delta: float) -> float:
    """Return the Clopper–Pearson upper bound on an error rate from `errors` of n held-out examples.

    The largest p with P(Binomial(n, p) ≤ errors) ≥ δ, rounded up. Clopper & Pearson (1934).

    Example:
        >>> round(confidence_upper(0, 100, 0.05), 4)  # 1 − 0.05^(1/100)
        0.0295
    """
    if not 0 <= errors <= n or n < 1:
        raise ConfigError(f"errors must be between 0 and n, with n at least 1; got {errors} of {n}")
    if errors == n:
        return 1.0
    quantile = float(stats.beta.ppf(1 - failure_probability(delta), errors + 1, n - errors))
    return min(1.0, quantile * (1 + 1e-9))


def confidence_interval(count: int, n: int, delta: float) -> tuple[float, float]:
    """Return the two-sided Clopper–Pearson interval, each side failing with probability at most δ/2."""
    if n == 0:
        return 0.0, 1.0
    return 1.0 - confidence_upper(n - count, n, delta / 2), confidence_upper(count, n, delta / 2)


class NoiseConfidenceSet:
    """All noise matrices whose entries lie in simultaneous Clopper–Pearson intervals.

    Made from a clean sample: examples with both their true and their noisy label, drawn independently
    of each other and of the examples that a certificate counts on. With probability at least 1 − δ the true
    F lies in the set: each of the K² entries has a two-sided interval at level δ/K².

    Args:
        counts: N[i, j], how many examples have true label i and noisy label j, (K, K) integers.
        delta: The probability with which the set may miss F.

    Attributes:
        lower: (K, K) lower ends; 0 in a row without examples.
        upper: (K, K) upper ends; 1 in a row without examples.
        centre: (K, K) smoothed relative frequencies; rows sum to 1.

    Raises:
        NoiseMatrixError: If counts are not a square matrix of whole numbers of at least 0.
        ConfigError: If delta is not in (0, 1).

    Example:
        >>> noise = NoiseConfidenceSet([[90, 10], [20, 80]], delta=0.01)
        >>> noise.lower.round(2).tolist()
        [[0.78, 0.03], [0.1, 0.66]]
    """

    def __init__(self, counts: ArrayLike, delta: float) -> None:
        table = np.asarray(counts)
        square = table.ndim == 2 and table.shape[0] == table.shape[1] >= 2
        if not square or np.any(table < 0) or np.any(table != np.floor(table)):
            raise NoiseMatrixError(
                f"counts must be whole numbers, (K, K), counts[true, noisy]; got shape {table.shape}"
            )
        self.k, self.delta = len(table), failure_probability(delta)
        self.counts = table.astype(int)
        totals = self.counts.sum(axis=1)
        intervals = np.array(
            [
                [confidence_interval(int(c), int(n), delta / self.k**2) for c in row]
                for row, n in zip(self.counts, totals, strict=True)
            ]
        )
        self.lower, self.upper = np.maximum(intervals[..., 0], 0.0), intervals[..., 1]
        self.centre = (table + 1 / self.k) / (totals[:, None] + 1)
