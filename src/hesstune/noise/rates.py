"""Noise matrices of a single rate, and whether labels under a noise matrix can be corrected at all."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hesstune.checks import class_count, one_of, unit_interval
from hesstune.errors import HesstuneWarning, NoiseMatrixError, cut

__all__ = [
    "KINDS",
    "NEAR_GUESSING",
    "guessing_rate",
    "identifiability_notes",
    "identified_matrix",
    "is_random",
    "rate_matrix",
]

KINDS = ("symmetric", "pair")
# From this share of the largest identifiable rate on, a stated rate is warned about.
NEAR_GUESSING = 0.9
# Rounding must not let a rate of exactly the limit pass.
ROUNDING = 1e-9


def rate_matrix(kind: str, k: int, rate: float) -> NDArray[np.float64]:
    """Return the noise matrix of a rate in [0, 1], (K, K), even if it does not identify the true classes.

    Args:
        kind: `symmetric`: to every other class alike; `pair`: class i to (i + 1) mod K.
        k: Number of classes.
        rate: The probability that a label changes.

    Example:
        >>> rate_matrix("pair", 3, 0.25)[0].tolist()
        [0.75, 0.25, 0.0]
    """
    one_of("kind of noise", kind, KINDS)
    k = class_count(k, NoiseMatrixError)
    rate = unit_interval("the noise rate", rate, NoiseMatrixError)
    if kind == "pair":
        return np.asarray((1.0 - rate) * np.eye(k) + rate * np.roll(np.eye(k), 1, axis=1))
    matrix = np.full((k, k), rate / (k - 1))
    np.fill_diagonal(matrix, 1.0 - rate)
    return matrix


def guessing_rate(k: int) -> float:
    """Return (K − 1)/K, the noise rate of labels that are drawn uniformly at random."""
    return 1 - 1 / k


def identified_matrix(kind: str, k: int, rate: float) -> NDArray[np.float64]:
    """Return `rate_matrix` of a rate that a user states.

    Raises:
        NoiseMatrixError: If the true class is not the most probable given label: from rate (K − 1)/K on for
            `symmetric`, from 1/2 on for `pair`. A rate near that is a `HesstuneWarning`.
    """
    matrix = rate_matrix(kind, k, rate)
    rate, limit = float(1 - matrix[0, 0]), 0.5 if kind == "pair" else guessing_rate(k)
    if rate >= limit * (1 - ROUNDING):
        raise NoiseMatrixError(
            f"{kind} noise of rate {rate:.3g} with {k} classes: from rate {limit:.3g} on, the true class is "
            "not the most probable given label, so labels cannot be corrected; give a rate below "
            f"{limit:.3g}"
        )
    if rate > NEAR_GUESSING * limit:
        warnings.warn(
            f"{kind} noise of rate {rate:.3g} with {k} classes is close to {limit:.3g}, from which on labels "
            "cannot be corrected: the corrected loss will be very noisy",
            HesstuneWarning,
            stacklevel=3,
        )
    return matrix


def is_random(matrix: NDArray[np.float64]) -> bool:
    """Tell whether labels under a noise matrix are right no more often than labels drawn at random."""
    return bool(1 - np.diagonal(matrix).mean() >= guessing_rate(len(matrix)) * (1 - ROUNDING))


def identifiability_notes(
    matrix: NDArray[np.float64], classes: Sequence[str] | None = None, near: float = NEAR_GUESSING
) -> list[str]:
    """Say what makes labels under a noise matrix hard to correct, or impossible.

    That its rate is near (K − 1)/K, the rate of labels drawn at random, or beyond it; or that the most
    probable given label of some class is another class.

    Args:
        matrix: F, (K, K), rows sum to 1.
        classes: The classes' names.
        near: The share of (K − 1)/K from which on a rate is named.

    Example:
        >>> identifiability_notes(np.array([[0.4, 0.6], [0.1, 0.9]]), ["cat", "dog"])
        ['examples of class cat are labelled dog (0.6) more often than cat (0.4)']
    """
    k = len(matrix)
    rate, guessing = float(1 - np.diagonal(matrix).mean()), guessing_rate(k)
    notes = []
    if rate > near * guessing * (1 - ROUNDING):
        how = "is not below" if is_random(matrix) else "is close to"
        notes.append(f"its rate {rate:.3g} {how} that of labels drawn at random ({guessing:.3g})")
    weak = np.flatnonzero(np.diagonal(matrix) < matrix.max(axis=1))
    for i in weak[:1].tolist():
        j = int(matrix[i].argmax())
        own, other = (str(at) if classes is None else cut(classes[at], 40) for at in (i, j))
        more = f", and {len(weak) - 1} more classes likewise" if len(weak) > 1 else ""
        notes.append(
            f"examples of class {own} are labelled {other} ({matrix[i, j]:.3g}) more often than {own} "
            f"({matrix[i, i]:.3g}){more}"
        )
    return notes
