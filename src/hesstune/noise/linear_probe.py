"""A linear probe: logistic regression on frozen features, of labels among which classes may be missing."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hesstune.checks import integer_labels, positive
from hesstune.runtime.threads import one_thread

__all__ = ["LinearProbe", "fit_probe"]


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
