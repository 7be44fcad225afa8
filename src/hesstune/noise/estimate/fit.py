"""What every estimate goes through: calibration before it, likelihood and smoothing after it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hesstune.checks import integer_labels
from hesstune.noise.estimate.posteriors import check_probabilities
from hesstune.noise.latent.choose import within_errors
from hesstune.noise.matrix import NoiseMatrix

__all__ = [
    "MOST_CONDITION",
    "RIDGES",
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


def well_conditioned(
    noise_matrix: NoiseMatrix, probs: ArrayLike | None = None, labels: ArrayLike | None = None
) -> tuple[NoiseMatrix, float]:
    """Return ((1 − λ)F + λI) and λ.

    λ is the smallest of RIDGES with a condition number of at most MOST_CONDITION and, with probabilities, a
    likelihood of the given labels within one standard error of the best.
    """
    tried = [(noise_matrix.regularized(ridge), ridge) for ridge in RIDGES]
    usable = [one for one in tried if one[0].condition <= MOST_CONDITION] or tried[-1:]
    if probs is None or labels is None or len(usable) == 1:
        return usable[0]
    scores = [log_likelihoods(matrix, probs, labels) for matrix, _ in usable]
    best = max(scores, key=lambda own: float(own.mean()))
    return next(one for one, own in zip(usable, scores, strict=True) if within_errors(own, best))
