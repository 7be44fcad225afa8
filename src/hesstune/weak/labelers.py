"""Weak labelers of our own: linear probes on frozen features of other domains' data."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hesstune.checks import integer_labels, positive
from hesstune.errors import DataError
from hesstune.weak.votes import Votes

__all__ = ["Probe", "probe", "votes_of"]


@dataclass(frozen=True)
class Probe:
    """A linear classifier on features.

    Attributes:
        name: The labeler's name, such as its domain.
        weight: (D, K).
        bias: (K,); −∞ for a class that its own data does not have.
    """

    name: str
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]

    def probabilities(self, features: ArrayLike) -> NDArray[np.float64]:
        """Return P(class | features), (N, K)."""
        logits = np.asarray(features, dtype=np.float64) @ self.weight + self.bias
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def probe(name: str, features: ArrayLike, labels: ArrayLike, k: int, strength: float = 1.0) -> Probe:
    """Fit multinomial logistic regression with an L2 penalty (scikit-learn's C = strength).

    Args:
        name: The labeler's name.
        features: (N, D).
        labels: (N,) class indices; classes may be missing, two must be there.
        k: Number of classes.
        strength: Inverse of the penalty.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    x = np.asarray(features, dtype=np.float64)
    y = integer_labels(labels, k, "labels")
    present = np.unique(y)
    if len(present) < 2:
        raise DataError(f"the labeler {name} needs examples of two classes at least; got {len(present)}")
    with warnings.catch_warnings():
        # A fit that stops early is a labeler all the same.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(C=positive("strength", strength), max_iter=300).fit(x, y)
    weight, bias = np.zeros((x.shape[1], k)), np.full(k, -np.inf)
    if len(present) == 2:
        bias[present[0]], bias[present[1]] = 0.0, fitted.intercept_[0]
        weight[:, present[1]] = fitted.coef_[0]
    else:
        weight[:, present], bias[present] = fitted.coef_.T, fitted.intercept_
    return Probe(name, weight, bias)


def votes_of(probes: Sequence[Probe], features: ArrayLike, threshold: float = 0.0) -> Votes:
    """Let probes vote: the most probable class, or abstain below a threshold; soft votes are kept."""
    soft = np.stack([p.probabilities(features) for p in probes], axis=1)
    table = np.where(soft.max(axis=2) >= threshold, soft.argmax(axis=2), -1)
    kept = soft * (table >= 0)[:, :, None]
    return Votes(table, soft.shape[2], [p.name for p in probes], kept)
