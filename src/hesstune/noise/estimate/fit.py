"""What every estimate goes through: calibration before it, likelihood and smoothing after it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hesstune.checks import integer_labels
from hesstune.noise.estimate.posteriors import check_probabilities
from hesstune.noise.matrix import NoiseMatrix

__all__ = [
    "MOST_CONDITION",
    "RIDGES",
    "best_by_likelihood",
    "calibrate",
    "log_likelihoods",
    "simplex_projection",
    "well_conditioned",
]

RIDGES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
# Beyond this the consistent loss warns of its own noise.
MOST_CONDITION = 100.0
# A share of uniform in every prediction, so that a zero is costly but not infinitely so.
FLOOR = 1e-3


def simplex_projection(points: ArrayLike) -> NDArray[np.float64]:
    """Return the Euclidean projection of each row, (N, K), onto the probability simplex.

    Source: Held, Wolfe, Crowder 1974; Duchi et al. 2008, figure 1.

    Example:
        >>> simplex_projection([[1.2, -0.2], [0.5, 0.5]]).tolist()
        [[1.0, 0.0], [0.5, 0.5]]
    """
    rows = np.atleast_2d(np.asarray(points, dtype=np.float64))
    ordered = -np.sort(-rows, axis=1)
    excess = (np.cumsum(ordered, axis=1) - 1) / np.arange(1, rows.shape[1] + 1)
    last = (ordered > excess).sum(axis=1) - 1
    result: NDArray[np.float64] = np.maximum(rows - excess[np.arange(len(rows)), last][:, None], 0)
    return result


def calibrate(probs: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], float]:
    """Return probabilities g^(1/τ), renormalised, and the temperature τ that fits the noisy labels best.

    Args:
        probs: g, (N, K), out of sample.
        labels: Noisy labels, (N,).

    Source: Guo et al. 2017, section 4.2, with noisy labels in place of clean ones.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import softmax

    g = check_probabilities(probs, len(np.asarray(labels)))
    given = integer_labels(labels, g.shape[1], "noisy labels")
    logs = np.log(np.clip(g, 1e-12, None))

    def tempered(log_temperature: float) -> NDArray[np.float64]:
        return np.asarray(softmax(logs / np.exp(log_temperature), axis=1))

    def loss(log_temperature: float) -> float:
        return float(-np.log(tempered(log_temperature)[np.arange(len(given)), given] + 1e-300).mean())

    found = minimize_scalar(loss, bounds=(np.log(0.1), np.log(10.0)), method="bounded")
    return tempered(float(found.x)), float(np.exp(found.x))


def log_likelihoods(noise_matrix: NoiseMatrix, probs: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """Return the forward-corrected log-likelihood of each held-out noisy label, (N,).

    The clean posterior is the projection of g F⁻¹ onto the simplex, and the noisy one that posterior
    times F. A matrix whose rows do not enclose the probabilities loses likelihood by the projection.

    Raises:
        NoiseMatrixError: If F is singular.
    """
    g = check_probabilities(probs, len(np.asarray(labels)))
    given = integer_labels(labels, g.shape[1], "noisy labels")
    noisy = simplex_projection(g @ noise_matrix.inverse) @ noise_matrix.array
    k = g.shape[1]
    logs: NDArray[np.float64] = np.log((1 - FLOOR) * noisy[np.arange(len(given)), given] + FLOOR / k)
    return logs


def best_by_likelihood(
    candidates: Sequence[NoiseMatrix], probs: ArrayLike, labels: ArrayLike
) -> tuple[list[int], list[float | None]]:
    """Find the candidates whose noisy likelihood is the best, or within one standard error of it.

    A matrix nearer to the identity encloses more probabilities, so likelihood alone never speaks for
    noise; among the returned candidates it does not tell.

    Returns:
        Their indices (none where every candidate is too ill-conditioned), and the mean
        log-likelihood of each candidate (None where it is).
    """
    usable = [c.condition <= MOST_CONDITION for c in candidates]
    values = [
        log_likelihoods(c, probs, labels) if ok else None for c, ok in zip(candidates, usable, strict=True)
    ]
    means = [None if v is None else float(v.mean()) for v in values]
    known = [(v.mean(), i) for i, v in enumerate(values) if v is not None]
    if not known:
        return [], means
    top = values[max(known)[1]]
    assert top is not None
    near = []
    for i, v in enumerate(values):
        if v is not None:
            gap = top - v
            if gap.mean() <= gap.std() / np.sqrt(len(gap)) + 1e-12:
                near.append(i)
    return near, means


def well_conditioned(
    noise_matrix: NoiseMatrix, probs: ArrayLike | None = None, labels: ArrayLike | None = None
) -> tuple[NoiseMatrix, float]:
    """Return ((1 − λ)F + λI) and the λ chosen: the least that noisy likelihood does not speak against.

    Among the λ of RIDGES with a condition number of at most MOST_CONDITION, the smallest whose
    likelihood is within one standard error of the best; without probabilities the smallest.
    """
    candidates = [noise_matrix.regularized(ridge) for ridge in RIDGES]
    if probs is None or labels is None:
        near = [i for i, c in enumerate(candidates) if c.condition <= MOST_CONDITION]
    else:
        near, _ = best_by_likelihood(candidates, probs, labels)
    at = near[0] if near else len(RIDGES) - 1
    return candidates[at], RIDGES[at]
