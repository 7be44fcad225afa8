"""What is known of the true classes: labels given through a noise matrix, and human-checked ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

from hesstune.noise.matrix import rate_matrix

# Strengths tried for a prior matrix, in pseudo-examples a row.
STRENGTHS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)


def prior_strength(counts: NDArray[np.float64], prior: NDArray[np.float64]) -> float:
    """Choose the strength of a prior matrix by the evidence of counts (empirical Bayes).

    The strength s maximises Σ_i ln DirMult(counts_i | s·prior_i) over STRENGTHS.

    Args:
        counts: (K, K) how often each true label (row) had each given one (column); may be expected counts.
        prior: (K, K) rows of probabilities.
    """
    from scipy.special import gammaln

    def evidence(strength: float) -> float:
        alpha = strength * np.clip(prior, 1e-3, None)
        total, rows = alpha.sum(axis=1), counts.sum(axis=1)
        inner = (gammaln(alpha + counts) - gammaln(alpha)).sum(axis=1)
        return float((gammaln(total) - gammaln(total + rows) + inner).sum())

    return max(STRENGTHS, key=evidence)


# What F is allowed to be, the simplest first: the identity, as given, one rate for all, or any near that.
Shape = Literal["none", "given", "symmetric", "full"]
SHAPES: tuple[Shape, ...] = ("none", "given", "symmetric", "full")
# The rate that EM starts from for the symmetric and the full shape.
START_RATE = 0.3
# In a start by pairs: the share of a class's labels that go to its other one, and that of each further class;
# a log-likelihood that no assignment takes; and the share of wrong labels in pairs that is most of them. EM
# from pairs ended at .81 or more on development tasks with noise in pairs, and at .32 or less elsewhere.
PAIRED_SHARE, OTHER_SHARE, EXCLUDED_LOG, MIN_PAIRED_SHARE = 0.45, 1e-3, 1e6, 2 / 3


def shrink_to_symmetric(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rows of counts shrunk to the symmetric matrix of their pooled rate, (K, K).

    Row i is the mean of a Dirichlet posterior, (s·prior_i + counts_i)/(s + Σ counts_i), with s of
    `prior_strength`.
    """
    pooled = _pooled(counts)
    joined = prior_strength(counts, pooled) * pooled + counts
    return np.asarray(joined / joined.sum(axis=1, keepdims=True))


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
        """Return the channel to start from if each class is confused with one other class, in pairs.

        It has the pairs that are most probable under this channel. EM from a symmetric start shows which
        classes are paired after a few rounds; later it may converge with some pairs wrong.
        """
        rows, other = self._pairs()
        found = np.full(self.matrix.shape, OTHER_SHARE)
        np.fill_diagonal(found, 1 - PAIRED_SHARE)
        found[rows, other] = PAIRED_SHARE
        return LabelChannel(found / found.sum(axis=1, keepdims=True), "full")

    @property
    def in_pairs(self) -> bool:
        """Whether labels that leave their class go mostly to one other, of more than two."""
        leaving = float(len(self.matrix) - np.trace(self.matrix))
        return len(self.matrix) > 2 and float(self.matrix[self._pairs()].sum()) > MIN_PAIRED_SHARE * leaving

    @property
    def in_order(self) -> bool:
        """Whether no permutation of the classes makes more labels right on average."""
        rows, best = linear_sum_assignment(self.matrix, maximize=True)
        return float(self.matrix[rows, best].sum()) <= float(np.trace(self.matrix)) + 1e-9

    def _pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Match each class with the other class that most of its labels go to."""
        scores = np.log(np.maximum(self.matrix, 1e-12))
        np.fill_diagonal(scores, -EXCLUDED_LOG)
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
        """Return the channel of the largest likelihood under a posterior, (N, K); a given matrix stays."""
        if self.shape == "given":
            return self
        counted = posterior if weight is None else posterior * weight[:, None]
        counts = counted.T @ given
        return LabelChannel(
            _pooled(counts) if self.shape == "symmetric" else shrink_to_symmetric(counts), self.shape
        )


Checked = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Rows and true labels of examples that a person has checked."""


@dataclass(frozen=True)
class Observed:
    """Labels of N examples, and what is known of them.

    Attributes:
        given: (N, K) one-hot or soft labels as given; or counts of votes; each vote is a given label.
        noise_matrix: F, (K, K), if it is known.
        checked: Examples with a known true class.
        weight: (N,) how much each example counts; None: once.
        copies: (N,) the group of each example, the same for copies of one example; None if unknown.
    """

    given: NDArray[np.float64]
    noise_matrix: NDArray[np.float64] | None = None
    checked: Checked | None = None
    weight: NDArray[np.float64] | None = None
    copies: NDArray[np.int64] | None = None

    @classmethod
    def of(
        cls,
        labels: ArrayLike,
        k: int,
        noise_matrix: NDArray[np.float64] | None = None,
        checked: Checked | None = None,
        weight: NDArray[np.float64] | None = None,
        copies: ArrayLike | None = None,
    ) -> Observed:
        """Return what is known, from class indices, (N,), or soft labels or counts of votes, (N, K).

        Example:
            >>> Observed.of([0, 1], 2).given.tolist()
            [[1.0, 0.0], [0.0, 1.0]]
        """
        array = np.asarray(labels)
        given = np.eye(k)[array.astype(np.int64)] if array.ndim == 1 else array.astype(np.float64)
        groups = None if copies is None else np.asarray(copies, dtype=np.int64)
        return cls(given, noise_matrix, checked, weight, groups)

    def __len__(self) -> int:
        return len(self.given)

    @property
    def k(self) -> int:
        """The number of classes."""
        return int(self.given.shape[1])

    def arrays(self) -> dict[str, NDArray[Any] | None]:
        """Return all that is known, by name."""
        rows, true = (None, None) if self.checked is None else self.checked
        return {
            "given": self.given,
            "noise_matrix": self.noise_matrix,
            "rows": rows,
            "true": true,
            "weight": self.weight,
            "copies": self.copies,
        }

    def take(self, rows: NDArray[np.int64]) -> Observed:
        """Return some examples, by ascending rows."""
        checked = None
        if self.checked is not None:
            inside = np.isin(self.checked[0], rows)
            checked = np.searchsorted(rows, self.checked[0][inside]), self.checked[1][inside]
        weight = None if self.weight is None else self.weight[rows]
        copies = None if self.copies is None else self.copies[rows]
        return Observed(self.given[rows], self.noise_matrix, checked, weight, copies)

    def known(self, q: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return class probabilities, (N, K), with one-hot rows for checked examples."""
        if self.checked is None:
            return q
        found = q.copy()
        found[self.checked[0]] = np.eye(self.k)[self.checked[1]]
        return found
