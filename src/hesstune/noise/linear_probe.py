"""Linear probes: logistic regression on frozen features, and its out-of-sample probabilities."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hesstune.checks import class_count, integer_labels, positive
from hesstune.errors import ConfigError, DataError
from hesstune.runtime.device import one_thread


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier on features.

    Attributes:
        weight: (D, K).
        bias: (K,); −∞ for a class that its own data does not have.
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]

    def probabilities(self, features: ArrayLike) -> NDArray[np.float64]:
        """Return P(class | features), (N, K)."""
        from scipy.special import softmax

        logits = np.asarray(features, dtype=np.float64) @ self.weight + self.bias
        return np.asarray(softmax(logits, axis=1))


def fit_probe(
    features: ArrayLike, labels: ArrayLike, k: int, *, strength: float = 1.0, steps: int = 300
) -> LinearProbe:
    """Fit multinomial logistic regression with an L2 penalty (scikit-learn's C = strength).

    A fit that has not come to rest after its steps is a probe all the same; where all labels are of one
    class, the probe knows no other.

    Args:
        features: (N, D).
        labels: (N,) class indices; classes may be missing.
        k: Number of classes.
        strength: Inverse of the penalty.
        steps: At most so many steps of L-BFGS.

    Example:
        >>> probe = fit_probe([[0.0], [0.2], [1.0]], [0, 0, 2], k=3)
        >>> probe.probabilities([[0.0]]).round(2).tolist()
        [[0.71, 0.0, 0.29]]
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    x = np.asarray(features, dtype=np.float64)
    y = integer_labels(labels, k, "labels")
    present = np.unique(y)
    # A row a class in memory, as scikit-learn's own: products with it then agree to the last digit.
    weight, bias = np.zeros((k, x.shape[1])).T, np.full(k, -np.inf)
    if len(present) == 1:
        bias[present] = 0.0
        return LinearProbe(weight, bias)
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(C=positive("strength", strength), max_iter=steps).fit(x, y)
    if len(present) == 2:
        bias[present] = 0.0, fitted.intercept_[0]
        weight[:, present[1]] = fitted.coef_[0]
    else:
        weight[:, present], bias[present] = fitted.coef_.T, fitted.intercept_
    return LinearProbe(weight, bias)


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
    its penalty has the largest held-out likelihood of the noisy labels. A class that a fold's probe has
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
            g[rows] = _held_out_probabilities(x[rest], given[rest], x[rows], k, strength)
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


def _held_out_probabilities(
    x: NDArray[np.float64], y: NDArray[np.int64], new: NDArray[np.float64], k: int, strength: float
) -> NDArray[np.float64]:
    g = fit_probe(x, y, k, strength=strength, steps=200).probabilities(new)
    floor = 1.0 / (len(y) + k)
    return np.asarray((g + floor * (g == 0)) / (1 + floor * (g == 0).sum(axis=1, keepdims=True)))
