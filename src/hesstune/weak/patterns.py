"""The distinct rows of a table of votes: label models of hard votes need no more than these."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hesstune.weak.votes import Votes

__all__ = ["Patterns", "patterns"]


@dataclass(frozen=True)
class Patterns:
    """Distinct rows of votes, and which examples have which.

    Attributes:
        votes: Each distinct row once, soft votes left out.
        weight: (P,) float64, how many examples have it.
        of: (N,) the distinct row of each example.
    """

    votes: Votes
    weight: NDArray[np.float64]
    of: NDArray[np.int64]


def patterns(votes: Votes) -> Patterns:
    """Find the distinct rows of votes; m labelers of K classes have at most (K + 1)^m.

    Example:
        >>> found = patterns(Votes([[0, 1], [1, -1], [0, 1]], k=2))
        >>> found.votes.table.tolist(), found.weight.tolist(), found.of.tolist()
        ([[0, 1], [1, -1]], [2.0, 1.0], [0, 1, 0])
    """
    key = np.zeros(len(votes), dtype=np.int64)
    span = 1
    for column in votes.table.T:
        if span > np.iinfo(np.int64).max // (votes.k + 1):
            # The number in base K + 1 would not fit: only what has occurred is counted on.
            _, key = np.unique(key, return_inverse=True)
            span = int(key.max(initial=0)) + 1
        key = key * (votes.k + 1) + column + 1
        span *= votes.k + 1
    _, first, of, counts = np.unique(key, return_index=True, return_inverse=True, return_counts=True)
    # In the order in which they first occur.
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    distinct = Votes(votes.table[first[order]], votes.k, votes.names)
    return Patterns(distinct, counts[order].astype(np.float64), place[of])
