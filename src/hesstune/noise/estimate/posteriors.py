"""Noise matrices from out-of-sample probabilities of the noisy labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hesstune.checks import integer_labels
from hesstune.errors import DataError, NoiseMatrixError
from hesstune.noise.matrix import NoiseMatrix

__all__ = ["check_probabilities", "confident"]

PROBABILITY_TOLERANCE = 1e-3


def check_probabilities(probs: ArrayLike, n: int | None = None) -> NDArray[np.float64]:
    """Return (N, K) probabilities as a float64 copy whose rows sum to 1.

    Raises:
        DataError: If they are not finite, not in [0, 1], or a row's sum is off by more than 1e-3.
    """
    array = np.array(probs, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] < 2 or not len(array):
        raise DataError(f"probabilities must be (N, K) with K of at least 2; got shape {array.shape}")
    if n is not None and len(array) != n:
        raise DataError(f"{len(array)} rows of probabilities do not match {n} labels")
    if not np.isfinite(array).all() or (array < 0).any():
        raise DataError("probabilities must be finite and not negative")
    sums = array.sum(axis=1, keepdims=True)
    worst = int(np.abs(sums - 1).argmax())
    if abs(sums[worst, 0] - 1) > PROBABILITY_TOLERANCE:
        raise DataError(f"each row of probabilities must sum to 1; row {worst} sums to {sums[worst, 0]:.4g}")
    return np.asarray(array / sums, dtype=np.float64)


def confident(probs: ArrayLike, labels: ArrayLike) -> NoiseMatrix:
    """Estimate F from the confident joint of given and true labels.

    An example counts for (ỹ, i) if g(x)[i] reaches the mean of g[i] over the examples labelled i; of several
    such classes the most probable one counts. Each row of the joint is scaled to the number of examples with
    that label. Source: Northcutt, Jiang, Chuang 2021, equations 1 to 3.

    Args:
        probs: g(x)[j] = P(given label = j | x), (N, K), out of sample.
        labels: (N,) given labels; every class must occur.

    Raises:
        NoiseMatrixError: If a class is never given as a label.

    Example:
        >>> confident([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.9, 0.1]], [0, 0, 1, 1]).array.round(2).tolist()
        [[0.67, 0.33], [0.0, 1.0]]
    """
    g = check_probabilities(probs, len(np.asarray(labels)))
    k = g.shape[1]
    given = integer_labels(labels, k, "noisy labels")
    counts = np.bincount(given, minlength=k)
    if absent := np.flatnonzero(counts == 0).tolist():
        raise NoiseMatrixError(f"no example is labelled {absent[0]}; confident needs every class")
    threshold = np.array([g[given == i, i].mean() for i in range(k)])
    above = g >= threshold - 1e-6
    joint = np.zeros((k, k))  # given label, true class
    rows = above.any(axis=1)
    np.add.at(joint, (given[rows], np.where(above, g, -1.0).argmax(axis=1)[rows]), 1)
    np.fill_diagonal(joint, np.maximum(np.diagonal(joint), 1))
    joint *= (counts / joint.sum(axis=1))[:, None]
    return NoiseMatrix((joint / joint.sum(axis=0)).T)
