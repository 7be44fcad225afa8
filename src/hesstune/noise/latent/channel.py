"""What is observed of an example's true class: given labels, hard or soft, through a noise matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from hesstune.noise.rates import rate_matrix
from hesstune.noise.shrinkage import drawn_to

__all__ = ["SHAPES", "LabelChannel", "Shape", "shrunk"]

# What F is allowed to be, the simplest first: the identity, as told, one rate for all, or any near that.
Shape = Literal["none", "told", "symmetric", "full"]
SHAPES: tuple[Shape, ...] = ("none", "told", "symmetric", "full")
# Where the symmetric and the full one start from.
START_RATE = 0.3
# In a start by pairs: the share of a class's labels that go to its other one, and that of each further class;
# a log-likelihood that no assignment takes; and the share of wrong labels in pairs that is most of them. EM
# from pairs ended at .81 or more on development tasks with noise in pairs, and at .32 or less elsewhere.
PAIRED, TRACE, NEVER, MOSTLY = 0.45, 1e-3, 1e6, 2 / 3


def shrunk(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return rows of counts drawn to the symmetric matrix of their pooled rate, (K, K).

    K² free entries are too many for a thousand examples, unless their rows differ: the evidence says.
    """
    return drawn_to(counts, _pooled(counts))


def _pooled(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    rate = (counts.sum() - np.trace(counts) + 1) / (counts.sum() + len(counts))
    return rate_matrix("symmetric", len(counts), float(rate))


@dataclass(frozen=True)
class LabelChannel:
    """Labels given through F: P(given | class) of each example, and F from a posterior.

    A soft label s counts as its expected log-likelihood: ln P(s | class i) = Σ_j s_j ln F[i, j]; several
    labels of an example, counted in s, are independent given its class.

    Attributes:
        matrix: F, (K, K).
        shape: What F is allowed to be.
    """

    matrix: NDArray[np.float64]
    shape: Shape

    @classmethod
    def start(cls, k: int, shape: Shape) -> LabelChannel:
        """Return the channel to start from: symmetric of rate START_RATE, or noiseless."""
        return cls.symmetric(k, 0.0 if shape == "none" else START_RATE, shape)

    @classmethod
    def symmetric(cls, k: int, rate: float, shape: Shape) -> LabelChannel:
        """Return the channel that changes a label with probability `rate`, to every other class alike."""
        return cls(rate_matrix("symmetric", k, rate), shape)

    @property
    def rate(self) -> float:
        """The mean probability, over classes, that a label is wrong."""
        return float(1 - np.trace(self.matrix) / len(self.matrix))

    def paired(self) -> LabelChannel:
        """Return the channel to start from where each class is mixed up with one other, no two with the same.

        Of all such, the likeliest by this one. EM from a symmetric start may halve a pair the wrong way, and
        spread another class over all; as a whole its end still says who goes with whom.
        """
        rows, other = self._pairs()
        found = np.full(self.matrix.shape, TRACE)
        np.fill_diagonal(found, 1 - PAIRED)
        found[rows, other] = PAIRED
        return LabelChannel(found / found.sum(axis=1, keepdims=True), "full")

    @property
    def in_pairs(self) -> bool:
        """Whether labels that leave their class go mostly to one other, of more than two."""
        leaving = float(len(self.matrix) - np.trace(self.matrix))
        return len(self.matrix) > 2 and float(self.matrix[self._pairs()].sum()) > MOSTLY * leaving

    def _pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        scores = np.log(np.maximum(self.matrix, 1e-12))
        np.fill_diagonal(scores, -NEVER)
        rows, other = linear_sum_assignment(scores, maximize=True)
        return rows, other

    def likelihood(self, given: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return P(given | class), (N, K), of one-hot or soft labels or counts of labels, (N, K)."""
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
