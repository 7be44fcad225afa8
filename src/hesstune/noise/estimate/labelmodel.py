"""The noise matrix of the label trained on, from a label model's posterior."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hesstune.checks import integer_labels
from hesstune.noise.estimate.posteriors import check_probabilities
from hesstune.noise.estimate.record import Estimate, row_stderr
from hesstune.noise.matrix import NoiseMatrix

__all__ = ["from_posterior"]


def from_posterior(posterior: ArrayLike, labels: ArrayLike, method: str = "labelmodel") -> Estimate:
    """Estimate F[i, j] = Σ_n P(y_n = i | votes)[ỹ_n = j] / Σ_n P(y_n = i | votes).

    Exact in expectation where the posterior is calibrated; the standard errors are those of a
    multinomial with Σ_n P(y_n = i | votes) draws and do not cover a wrong label model.

    Args:
        posterior: P(true = i | votes), (N, K).
        labels: The labels trained on, (N,), or soft ones, (N, K).
        method: The name recorded.

    Example:
        >>> from_posterior([[0.9, 0.1], [0.1, 0.9]], [0, 1]).matrix.array.tolist()
        [[0.9, 0.1], [0.1, 0.9]]
    """
    q = check_probabilities(posterior, len(np.asarray(labels)))
    k = q.shape[1]
    soft = np.asarray(labels).ndim == 2
    given = check_probabilities(labels, len(q)) if soft else np.eye(k)[integer_labels(labels, k, "labels")]
    joint: NDArray[np.float64] = q.T @ given
    mass = joint.sum(axis=1)
    # A class without mass has nothing to tell: its labels are taken as right.
    matrix = np.where(mass[:, None] > 1e-9, joint / np.maximum(mass, 1e-300)[:, None], np.eye(k))
    notes = [f"no example is believed to be of class {c}: its row is the identity's" for c in range(k)]
    return Estimate(
        NoiseMatrix(matrix),
        method,
        len(given),
        stderr=row_stderr(matrix, mass),
        notes=tuple(n for n, m in zip(notes, mass, strict=True) if m <= 1e-9),
    )
