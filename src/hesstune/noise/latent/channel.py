"""What is observed of an example's true class: given labels, hard or soft, through a noise matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

__all__ = ["SHAPES", "LabelChannel", "Shape", "shrunk", "symmetric"]

# What F is allowed to be, the simplest first: the identity, as told, one rate for all, or any near that.
Shape = Literal["none", "told", "symmetric", "full"]
SHAPES: tuple[Shape, ...] = ("none", "told", "symmetric", "full")
# Where the symmetric and the full one start from.
START_RATE = 0.3
# Strengths tried for the symmetric matrix that a full one is drawn to, in examples a row.
STRENGTHS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)


def shrunk(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return rows of counts drawn to the symmetric matrix of their pooled rate, (K, K).

    Row i is the mean of a Dirichlet posterior, (s·S_i + counts_i)/(s + Σ counts_i), S symmetric. The
    strength s maximises the evidence Σ_i ln DirMult(counts_i | s·S_i) over STRENGTHS (empirical Bayes): K²
    free entries are too many for a thousand examples, unless their rows differ.
    """
    k = len(counts)
    base = _pooled(counts)

    def evidence(strength: float) -> float:
        alpha, rows = strength * np.clip(base, 1e-3, None), counts.sum(axis=1)
        total = alpha.sum(axis=1)
        inner = (gammaln(alpha + counts) - gammaln(alpha)).sum(axis=1)
        return float((gammaln(total) - gammaln(total + rows) + inner).sum())

    drawn = max(STRENGTHS, key=evidence) * base + counts
    assert drawn.shape == (k, k)
    return np.asarray(drawn / drawn.sum(axis=1, keepdims=True))


def _pooled(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    k = len(counts)
    return symmetric(k, float((counts.sum() - np.trace(counts) + 1) / (counts.sum() + k)))


def symmetric(k: int, rate: float) -> NDArray[np.float64]:
    """Return the matrix that changes a label with probability `rate`, to every other class alike."""
    return np.asarray(np.full((k, k), rate / (k - 1)) + (1 - rate * k / (k - 1)) * np.eye(k))


@dataclass(frozen=True)
class LabelChannel:
    """Labels given through F: P(given | class) of each example, and F from a posterior.

    A soft label s counts as its expected log-likelihood: ln P(s | class i) = Σ_j s_j ln F[i, j].

    Attributes:
        matrix: F, (K, K).
        shape: What F is allowed to be.
    """

    matrix: NDArray[np.float64]
    shape: Shape

    @classmethod
    def start(cls, k: int, shape: Shape) -> LabelChannel:
        """Return the channel to start from: symmetric of rate START_RATE, or noiseless."""
        return cls(symmetric(k, 0.0 if shape == "none" else START_RATE), shape)

    @property
    def rate(self) -> float:
        """The mean probability, over classes, that a label is wrong."""
        return float(1 - np.trace(self.matrix) / len(self.matrix))

    def likelihood(self, given: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return P(given | class), (N, K), of one-hot or soft labels, (N, K)."""
        return np.asarray(np.exp(given @ np.log(np.clip(self.matrix, 1e-12, None)).T))

    def refitted(
        self,
        given: NDArray[np.float64],
        posterior: NDArray[np.float64],
        weight: NDArray[np.float64] | None = None,
    ) -> LabelChannel:
        """Return the channel that a posterior, (N, K), speaks for; a matrix that was told stays."""
        if self.shape == "told":
            return self
        counted = posterior if weight is None else posterior * weight[:, None]
        counts = counted.T @ given
        return LabelChannel(_pooled(counts) if self.shape == "symmetric" else shrunk(counts), self.shape)
