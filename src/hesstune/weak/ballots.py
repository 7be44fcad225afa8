"""Votes one a row: memory grows with the votes, not with examples × labelers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ballots"]


@dataclass(frozen=True)
class Ballots:
    """The votes that were given; an abstention has no row.

    Attributes:
        example: (V,) int64, the example of each vote.
        labeler: (V,) int64, who gave it.
        vote: (V,) int64, the class voted for.
        n: Number of examples N.
        m: Number of labelers.
        k: Number of classes K.

    Example:
        >>> two = Ballots(np.array([0, 0, 1]), np.array([0, 1, 1]), np.array([1, 1, 0]), n=2, m=2, k=2)
        >>> two.counts.tolist(), two.each.tolist()
        ([[0.0, 2.0], [1.0, 0.0]], [2, 1])
    """

    example: NDArray[np.int64]
    labeler: NDArray[np.int64]
    vote: NDArray[np.int64]
    n: int
    m: int
    k: int

    def __len__(self) -> int:
        return len(self.vote)

    def where(self, chosen: NDArray[np.bool_]) -> Ballots:
        """Return the votes on some examples, (N,) of bool; examples keep their numbers."""
        kept = chosen[self.example]
        return Ballots(self.example[kept], self.labeler[kept], self.vote[kept], self.n, self.m, self.k)

    def only(self, chosen: NDArray[np.bool_]) -> Ballots:
        """Return the votes on some examples, (N,) of bool, which are numbered anew."""
        kept, place = chosen[self.example], np.cumsum(chosen) - 1
        n = int(chosen.sum())
        return Ballots(place[self.example[kept]], self.labeler[kept], self.vote[kept], n, self.m, self.k)

    def summed(self, weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Return (N, K): the sum of each example's votes for each class, each by its weight, (V,)."""
        cell = self.example * self.k + self.vote
        found = np.bincount(cell, weights, self.n * self.k).reshape(self.n, self.k)
        return found.astype(np.float64)

    @cached_property
    def counts(self) -> NDArray[np.float64]:
        """(N, K): votes for each class."""
        return self.summed()

    @cached_property
    def each(self) -> NDArray[np.int64]:
        """(N,): votes on each example."""
        return np.bincount(self.example, minlength=self.n)

    @cached_property
    def by_labeler(self) -> NDArray[np.int64]:
        """(m,): votes of each labeler."""
        return np.bincount(self.labeler, minlength=self.m)

    def joint(self, q: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (m, K, K): the summed posterior of class y where a labeler votes v, at [labeler, v, y].

        Args:
            q: (V, K) a posterior for each vote's example.
        """
        cell = self.labeler * self.k + self.vote
        found = np.empty((self.m * self.k, self.k))
        for y in range(self.k):
            found[:, y] = np.bincount(cell, q[:, y], self.m * self.k)
        return found.reshape(self.m, self.k, self.k)
