"""Noise matrices from out-of-sample probabilities of the noisy labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hesstune.checks import integer_labels, unit_interval
from hesstune.errors import DataError, MissingExtraError, NoiseMatrixError
from hesstune.noise.matrix import NoiseMatrix

__all__ = ["anchor", "check_probabilities", "confident", "dual_t", "smoothable_dual_t"]

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


def anchor(probs: ArrayLike, percentile: float = 1.0) -> NoiseMatrix:
    """Estimate F from anchor points: F[i, :] = g(xⁱ), xⁱ the example most surely of class i.

    g(x)[j] = P(noisy = j | x). Where some example belongs to class i with certainty, g is row i of F
    there. Source: Patrini et al. 2017, equations 12 and 13.

    Args:
        probs: g, (N, K), out of sample.
        percentile: In (0, 1]: take the example at this quantile of g(·)[i] instead of the largest,
            against outliers.

    Example:
        >>> anchor([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]]).array.tolist()
        [[0.9, 0.1], [0.2, 0.8]]
    """
    g = check_probabilities(probs)
    share = unit_interval("the percentile", percentile)
    at = np.argsort(g, axis=0, kind="stable")[max(0, int(np.ceil(share * len(g))) - 1)]
    return NoiseMatrix(g[at])


def dual_t(probs: ArrayLike, labels: ArrayLike, weight: float = 1.0) -> NoiseMatrix:
    """Estimate F = T♣ T♠: true to intermediate, then intermediate to noisy labels.

    The intermediate class of x is argmax g(x). T♣ comes from anchor points of g, T♠[l, j] is the share
    of noisy label j among examples of intermediate class l. Source: Yao et al. 2020, section 3. Where
    g is overconfident (a network that has fitted its labels), T♣ is near I and the product near F.
    Where g is perfectly calibrated, T♣ = F and, with nearly deterministic classes, T♠ = F, so the
    product is F²: `weight` w tempers it, ((1 − w)I + wT♣)T♠. The posteriors are not changed.

    Args:
        probs: g, (N, K), out of sample.
        labels: Noisy labels, (N,).
        weight: In [0, 1]; 1 is the published estimator.

    Raises:
        NoiseMatrixError: If no example's most probable class is some class, so its row is unknown; if no
            example is labelled so; or if the product is singular (`estimate_noise` smooths it).
    """
    found = smoothable_dual_t(probs, labels, weight)
    if found.condition == float("inf"):
        raise NoiseMatrixError(
            "the estimate by dual_t is singular: some classes' labels are distributed alike; use "
            "estimate_noise, which smooths it, or method anchor"
        )
    return found


def smoothable_dual_t(probs: ArrayLike, labels: ArrayLike, weight: float = 1.0) -> NoiseMatrix:
    """Estimate as `dual_t`, a singular product included: smoothing may still make it of use."""
    g = check_probabilities(probs, len(np.asarray(labels)))
    k = g.shape[1]
    given = integer_labels(labels, k, "noisy labels")
    weight = unit_interval("the weight", weight)
    _every_class_labelled(given, k, "dual_t")
    counts = np.zeros((k, k))
    np.add.at(counts, (g.argmax(axis=1), given), 1)
    absent = np.flatnonzero(counts.sum(axis=1) == 0)
    if absent.size:
        raise NoiseMatrixError(
            f"no example's most probable class is {absent[0]}, so dual_t has nothing for its row; "
            "use method anchor, or more examples of it"
        )
    second = counts / counts.sum(axis=1, keepdims=True)
    return NoiseMatrix(((1 - weight) * np.eye(k) + weight * anchor(g).array) @ second)


def _every_class_labelled(given: NDArray[np.int64], k: int, who: str) -> None:
    absent = np.flatnonzero(np.bincount(given, minlength=k) == 0)
    if absent.size:
        raise NoiseMatrixError(f"no example is labelled {absent[0]}; {who} needs every class")


def confident(probs: ArrayLike, labels: ArrayLike) -> NoiseMatrix:
    """Estimate F from the confident joint of noisy and true labels, by cleanlab.

    An example counts for (ỹ, i) where g(x)[i] reaches the mean of g[i] over the examples labelled i.
    Source: Northcutt, Jiang, Chuang 2021, equations 1 and 2. cleanlab's matrix has columns that sum
    to 1; this one has rows that do.

    Args:
        probs: g, (N, K), out of sample.
        labels: Noisy labels, (N,); every class must occur.

    Raises:
        MissingExtraError: If cleanlab is not installed.
        NoiseMatrixError: If a class is never given as a label.
    """
    try:
        from cleanlab.count import compute_confident_joint, estimate_latent
    except ImportError:
        raise MissingExtraError("cleanlab", "noise", "the confident joint") from None
    g = check_probabilities(probs, len(np.asarray(labels)))
    given = integer_labels(labels, g.shape[1], "noisy labels")
    _every_class_labelled(given, g.shape[1], "the confident joint")
    joint = compute_confident_joint(given, g)
    _, columns, _ = estimate_latent(joint, given)
    return NoiseMatrix.from_column_stochastic(np.clip(columns, 0, None) / np.clip(columns, 0, None).sum(0))
