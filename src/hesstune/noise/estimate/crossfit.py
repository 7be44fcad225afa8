"""Out-of-sample probabilities of the noisy labels, by cross-fitting a linear probe on frozen features."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hesstune.checks import class_count, integer_labels
from hesstune.errors import ConfigError, DataError
from hesstune.noise.linear_probe import fit_probe

__all__ = ["cross_fit", "reduced_features"]

FOLDS = 5
# Principal components kept: beyond these a probe on a few thousand examples fits noise.
COMPONENTS = 128
# Inverse penalties tried, on features whose mean squared norm is COMPONENTS.
STRENGTHS = (0.003, 0.03, 0.3)


def cross_fit(
    features: ArrayLike, labels: ArrayLike, k: int, *, folds: int = FOLDS, seed: int = 0
) -> NDArray[np.float64]:
    """Return g(x)[j] = P(noisy = j | x) of every example from a probe that was not trained on it.

    Folds are drawn uniformly. The probe is multinomial logistic regression on principal components;
    its penalty is the one whose held-out noisy labels are likeliest. A class that a fold's probe has
    not seen gets the share 1/(n + K) of it, never zero.

    Args:
        features: (N, D) features of the pretrained network, frozen.
        labels: Noisy labels, (N,).
        k: Number of classes.
        folds: Number of folds.
        seed: Of the folds.

    Raises:
        ConfigError: If there are more folds than examples.
        DataError: If features are not finite or do not match the labels.

    Example:
        >>> y = np.arange(60) % 2
        >>> g = cross_fit(np.eye(2)[y] + 0.1 * np.random.default_rng(0).normal(size=(60, 2)), y, 2)
        >>> bool((g.argmax(axis=1) == y).all())
        True
    """
    k = class_count(k)
    given = integer_labels(labels, k, "noisy labels")
    x = reduced_features(features, len(given))
    if not 2 <= folds <= len(given):
        raise ConfigError(f"{len(given)} examples cannot be cut into {folds} folds for cross-fitting")
    order = np.random.default_rng([seed, 0xCF]).permutation(len(given))
    parts = np.array_split(order, folds)
    best, best_fit = np.zeros((len(given), k)), -np.inf
    for strength in STRENGTHS:
        g = np.empty((len(given), k))
        for rows in parts:
            rest = np.setdiff1d(order, rows)
            g[rows] = _fitted(x[rest], given[rest], x[rows], k, strength)
        fit = float(np.log(g[np.arange(len(given)), given]).mean())
        if fit > best_fit:
            best, best_fit = g, fit
    return best


def reduced_features(features: ArrayLike, n: int) -> NDArray[np.float64]:
    """Return at most COMPONENTS centred principal components, (n, C), of mean squared norm COMPONENTS."""
    from sklearn.decomposition import PCA

    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or len(x) != n or not np.isfinite(x).all():
        raise DataError(f"features must be finite, ({n}, D), one row a label; got shape {x.shape}")
    if x.shape[1] > COMPONENTS and n > COMPONENTS:
        x = PCA(COMPONENTS, svd_solver="randomized", random_state=0).fit_transform(x)
    x = x - x.mean(axis=0)
    scale = max(float(np.sqrt((x * x).sum(axis=1).mean())), 1e-12)
    return np.asarray(x / scale * np.sqrt(COMPONENTS))


def _fitted(
    x: NDArray[np.float64], y: NDArray[np.int64], new: NDArray[np.float64], k: int, strength: float
) -> NDArray[np.float64]:
    g = fit_probe(x, y, k, strength=strength, steps=200).probabilities(new)
    floor = 1.0 / (len(y) + k)
    return np.asarray((g + floor * (g == 0)) / (1 + floor * (g == 0).sum(axis=1, keepdims=True)))
