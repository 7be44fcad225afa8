"""The noise matrix from a few clean labels: a posterior, and a confidence set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hesstune.checks import class_count, integer_labels, positive
from hesstune.errors import ConfigError, DataError
from hesstune.noise.estimate.record import Estimate
from hesstune.noise.matrix import NoiseMatrix
from hesstune.noise.rates import rate_matrix
from hesstune.noise.shrinkage import prior_strength

__all__ = ["ConfidenceSet", "confidence_set", "holdout", "pair_counts"]


@dataclass(frozen=True)
class ConfidenceSet:
    """A box that holds the whole of F with probability at least 1 − delta.

    Assumes that the clean-labelled examples are drawn at random, independently of their noise.

    Attributes:
        lower: (K, K) lower ends.
        upper: (K, K) upper ends.
        delta: The probability, over the clean-labelled sample, that F lies outside.
    """

    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    delta: float

    def contains(self, noise_matrix: NoiseMatrix) -> bool:
        """Tell whether every entry of a matrix lies in the box."""
        return bool(
            ((noise_matrix.array >= self.lower - 1e-12) & (noise_matrix.array <= self.upper + 1e-12)).all()
        )


def pair_counts(clean: ArrayLike, noisy: ArrayLike, k: int) -> NDArray[np.float64]:
    """Count the pairs (clean i, noisy j), (K, K).

    Raises:
        DataError: If the labels differ in number or lie outside the classes.
    """
    k = class_count(k)
    true = integer_labels(clean, k, "clean labels")
    given = integer_labels(noisy, k, "noisy labels")
    if len(true) != len(given) or not len(true):
        raise DataError(f"{len(true)} clean labels do not pair with {len(given)} noisy ones")
    counts = np.zeros((k, k))
    np.add.at(counts, (true, given), 1)
    return counts


def confidence_set(counts: ArrayLike, delta: float = 0.05) -> ConfidenceSet:
    """Return Clopper–Pearson intervals for all K² entries at once, by the union bound.

    Each entry is binomial given its row's number of examples, so each interval at level δ/K² covers,
    and all of them do together with probability at least 1 − δ. A row without examples is [0, 1].

    Source: Clopper and Pearson 1934.
    """
    from scipy.stats import beta

    table = np.asarray(counts, dtype=np.float64)
    if not 0 < delta < 1:
        raise ConfigError(f"delta must lie between 0 and 1; got {delta}")
    rows = np.broadcast_to(table.sum(axis=1, keepdims=True), table.shape)
    tail = delta / (2 * table.size)
    with np.errstate(invalid="ignore"):
        lower = np.where(table > 0, beta.ppf(tail, table, rows - table + 1), 0.0)
        upper = np.where(table < rows, beta.ppf(1 - tail, table + 1, rows - table), 1.0)
    return ConfidenceSet(lower, upper, delta)


def holdout(
    clean: ArrayLike,
    noisy: ArrayLike,
    k: int,
    *,
    prior: NoiseMatrix | None = None,
    strength: float | None = None,
    delta: float = 0.05,
) -> Estimate:
    """Estimate F from examples that have both a clean and a noisy label.

    Row i has a Dirichlet posterior with parameters strength·prior_i + counts_i; the estimate is its
    mean and `stderr` its standard deviation. The confidence set in `details` uses the counts alone.

    Args:
        clean: True labels, (N,).
        noisy: Noisy labels of the same examples, (N,).
        k: Number of classes.
        prior: A matrix believed beforehand, such as an estimate without clean labels; without it,
            the prior is symmetric with the noise rate of the counts, pooled over the classes.
        strength: Pseudo-examples a row that the prior is worth; None chooses by the evidence.
        delta: The confidence set's.

    Example:
        >>> holdout([0, 0, 0, 1, 1], [0, 0, 1, 1, 1], 2).matrix.k
        2
    """
    counts = pair_counts(clean, noisy, k)
    if prior is None:
        wrong = (counts.sum() - np.trace(counts) + 1) / (counts.sum() + k)
        prior = NoiseMatrix(rate_matrix("symmetric", k, float(wrong)))
    base = prior.sized(k)
    weight = (
        prior_strength(counts, base.array) if strength is None else positive("the prior's strength", strength)
    )
    alpha = weight * np.clip(base.array, 1e-3, None) + counts
    total = alpha.sum(axis=1, keepdims=True)
    mean = alpha / total
    box = confidence_set(counts, delta)
    absent = np.flatnonzero(counts.sum(axis=1) == 0)
    notes = [f"no clean label of class {c}: its row is the prior's" for c in absent]
    return Estimate(
        NoiseMatrix(mean),
        "holdout",
        int(counts.sum()),
        stderr=np.sqrt(mean * (1 - mean) / (total + 1)),
        notes=tuple(notes),
        details={
            "prior_strength": float(weight),
            "delta": delta,
            "lower": np.round(box.lower, 6).tolist(),
            "upper": np.round(box.upper, 6).tolist(),
            "assumption": "clean-labelled examples drawn at random, independently of their noise",
        },
    )
