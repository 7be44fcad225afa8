"""A table of votes: the class that each annotator gave each example, with abstentions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hesstune.checks import class_count, integer_labels
from hesstune.errors import DataError, listed


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


ABSTAIN = -1
# Cells of a table of examples × labelers, 8 bytes each, beyond which votes stay one a row.
MOST_CELLS = 50_000_000


class Votes:
    """Votes of m labelers on N examples.

    Votes of a crowd are kept one a row (`of_ballots`), and its table of examples × labelers is made only
    where it is asked for.

    Attributes:
        k: Number of classes K.
        names: The labelers' names.
        soft: (N, m, K) probabilities of each labeler, or None; rows of abstentions are zero.

    Raises:
        DataError: If a vote is outside the classes, or shapes do not fit.

    Example:
        >>> votes = Votes([[0, 0], [1, -1], [-1, -1]], k=2)
        >>> votes.coverage.round(2).tolist(), votes.silent.tolist()
        ([0.67, 0.33], [2])
    """

    def __init__(
        self, table: ArrayLike, k: int, names: Sequence[str] = (), soft: ArrayLike | None = None
    ) -> None:
        k = class_count(k)
        array = np.asarray(table)
        if array.ndim != 2 or not array.shape[1] or not np.issubdtype(array.dtype, np.integer):
            raise DataError(f"votes must be integers, (N, m), -1 where a labeler abstains; got {array.shape}")
        wrong = np.argwhere((array < ABSTAIN) | (array >= k))
        names = list(names) or [f"labeler{j}" for j in range(array.shape[1])]
        if len(names) != array.shape[1] or len(set(names)) < len(names):
            raise DataError(f"{array.shape[1]} labelers need as many different names; got {listed(names)}")
        if len(wrong):
            n, j = wrong[0]
            raise DataError(
                f"votes must be classes in [0, {k}), or -1 to abstain; labeler {names[j]} gave "
                f"{array[n, j]} to example {n}"
            )
        self._table: NDArray[np.int64] | None = array.astype(np.int64)
        self._n, self._by_row = len(array), False
        self.k = k
        self.names: list[str] = names
        self.soft = None if soft is None else self._checked(soft)

    @classmethod
    def of_ballots(cls, ballots: Ballots, names: Sequence[str]) -> Votes:
        """Keep votes that are given one a row; a labeler votes on an example once.

        Example:
            >>> rows = Ballots(np.array([0, 1]), np.array([1, 0]), np.array([1, 0]), n=3, m=2, k=2)
            >>> Votes.of_ballots(rows, ["ann", "bob"]).table.tolist()
            [[-1, 1], [0, -1], [-1, -1]]
        """
        if len(names) != ballots.m or len(set(names)) < len(names):
            raise DataError(f"{ballots.m} labelers need as many different names; got {listed(names)}")
        votes = cls.__new__(cls)
        votes._table, votes._by_row = None, True
        votes._n, votes.k = ballots.n, class_count(ballots.k)
        votes.names, votes.soft = list(names), None
        order = np.lexsort((ballots.labeler, ballots.example))
        votes.ballots = Ballots(
            ballots.example[order],
            ballots.labeler[order],
            ballots.vote[order],
            ballots.n,
            ballots.m,
            ballots.k,
        )
        return votes

    @cached_property
    def ballots(self) -> Ballots:
        """The votes one a row, by example and labeler."""
        example, labeler = np.nonzero(self.given)
        return Ballots(example, labeler, self.table[example, labeler], len(self), self.m, self.k)

    @property
    def is_table(self) -> bool:
        """Whether the votes were given as a table, not one a row."""
        return not self._by_row

    @property
    def table(self) -> NDArray[np.int64]:
        """(N, m) int64 class indices; ABSTAIN (−1) where a labeler gave none.

        Raises:
            DataError: If the votes are kept one a row, and their table would take too much memory.
        """
        if self._table is None:
            if self._n * self.m > MOST_CELLS:
                raise DataError(
                    f"a table of {self._n:,} examples by {self.m:,} labelers is too large; use the label "
                    "model auto, weighted, majority or mace, which take votes one a row"
                )
            table = np.full((self._n, self.m), ABSTAIN)
            table[self.ballots.example, self.ballots.labeler] = self.ballots.vote
            self._table = table
        return self._table

    @classmethod
    def of_probabilities(
        cls, soft: NDArray[np.float64], names: Sequence[str] = (), threshold: float = 0.0
    ) -> Votes:
        """Let each labeler vote for its most probable class, or abstain where that is below a threshold.

        Args:
            soft: (N, m, K) probabilities of each labeler.
            names: The labelers' names.
            threshold: See above.

        Example:
            >>> Votes.of_probabilities(np.array([[[0.9, 0.1]], [[0.4, 0.6]]]), threshold=0.7).table.tolist()
            [[0], [-1]]
        """
        table = np.where(soft.max(axis=2) >= threshold, soft.argmax(axis=2), ABSTAIN)
        return cls(table, soft.shape[2], names, soft * (table != ABSTAIN)[:, :, None])

    def _checked(self, soft: ArrayLike) -> NDArray[np.float64]:
        array = np.asarray(soft, dtype=np.float64)
        shape = (len(self), self.m, self.k)
        if array.shape != shape or not np.isfinite(array).all() or (array < 0).any():
            raise DataError(f"soft votes must be finite probabilities, {shape}; got shape {array.shape}")
        return array

    def __len__(self) -> int:
        return self._n

    @property
    def m(self) -> int:
        """The number of labelers."""
        return len(self.names)

    @cached_property
    def given(self) -> NDArray[np.bool_]:
        """(N, m): whether a labeler voted."""
        return np.asarray(self.table != ABSTAIN)

    @cached_property
    def onehot(self) -> NDArray[np.float64]:
        """(N, m, K): 1 at the class voted for, 0 everywhere where the labeler abstained."""
        return np.asarray(np.eye(self.k + 1)[self.table][:, :, : self.k])

    @cached_property
    def counts(self) -> NDArray[np.float64]:
        """(N, K): votes for each class."""
        if not self.is_table:
            return self.ballots.counts
        found = np.zeros((len(self), self.k))
        for column in self.table.T:
            rows = np.flatnonzero(column != ABSTAIN)
            found[rows, column[rows]] += 1
        return found

    @property
    def coverage(self) -> NDArray[np.float64]:
        """(m,): share of the examples that a labeler votes on."""
        return self.ballots.by_labeler / max(len(self), 1)

    @property
    def silent(self) -> NDArray[np.int64]:
        """Examples on which every labeler abstains."""
        return np.flatnonzero(self.ballots.each == 0)

    @property
    def unvoted(self) -> NDArray[np.int64]:
        """Classes that no labeler votes for."""
        return np.flatnonzero(np.bincount(self.ballots.vote, minlength=self.k) == 0)

    def take(self, rows: ArrayLike, labelers: ArrayLike | None = None) -> Votes:
        """Return the votes on some of the examples, of all labelers or of some."""
        rows = np.asarray(rows)
        columns = np.arange(self.m) if labelers is None else np.asarray(labelers)
        names = [self.names[j] for j in columns]
        if not self.is_table:
            return self._some(rows, columns, names)
        some = (rows, slice(None)) if labelers is None else np.ix_(rows, columns)
        return Votes(self.table[some], self.k, names, None if self.soft is None else self.soft[some])

    def _some(self, rows: NDArray[np.int64], columns: NDArray[np.int64], names: list[str]) -> Votes:
        place, who = np.full(len(self), -1), np.full(self.m, -1)
        place[rows], who[columns] = np.arange(len(rows)), np.arange(len(columns))
        b = self.ballots
        example, labeler = place[b.example], who[b.labeler]
        kept = (example >= 0) & (labeler >= 0)
        some = Ballots(example[kept], labeler[kept], b.vote[kept], len(rows), len(columns), self.k)
        return Votes.of_ballots(some, names)

    def among(self, classes: NDArray[np.int64]) -> Votes:
        """Return the votes with only these classes, numbered anew; all votes are for one of them."""
        place = np.full(self.k + 1, ABSTAIN)
        place[classes] = np.arange(len(classes))
        if not self.is_table:
            b = self.ballots
            some = Ballots(b.example, b.labeler, place[b.vote], b.n, b.m, len(classes))
            return Votes.of_ballots(some, self.names)
        soft = None
        if self.soft is not None:
            soft = self.soft[:, :, classes]
            total = soft.sum(axis=2, keepdims=True)
            soft = np.where(total > 0, soft / np.maximum(total, 1e-300), 0.0)
        return Votes(place[self.table], len(classes), self.names, soft)

    def problems(self, classes: Sequence[str] | None = None) -> list[str]:
        """Say what makes the votes weak: silent labelers, classes never voted for, silent examples."""
        shown = list(classes) if classes else [str(c) for c in range(self.k)]
        found = [
            f"labeler {name} never votes; it is left out of the label model"
            for name, share in zip(self.names, self.coverage, strict=True)
            if share == 0
        ]
        absent = [shown[c] for c in self.unvoted]
        if absent:
            found.append(f"no labeler ever votes for {listed(absent)}; no example will be given that label")
        if len(self.silent):
            found.append(f"{len(self.silent)} of {len(self)} examples have no vote; they are left out")
        return found

    def analysis(self, true: ArrayLike | None = None) -> list[dict[str, Any]]:
        """Return a row a labeler, as Snorkel's LFAnalysis defines them.

        `polarity`: classes it votes for; `coverage`: share of examples it votes on; `overlaps`: share
        it votes on together with another; `conflicts`: share where another votes for another class;
        with true labels (−1 where unknown) also `correct`, `incorrect` and `accuracy` (over its own
        votes; NaN-free: None where it never votes on an example whose label is known).
        """
        gold = None if true is None else np.asarray(true)
        if gold is not None and len(gold) != len(self):
            raise DataError(f"{len(gold)} true labels do not match {len(self)} examples")
        known = np.ones(len(self), dtype=bool) if gold is None else gold != ABSTAIN
        if gold is not None:
            integer_labels(gold[known], self.k, "true labels")
        b = self.ballots
        several = b.each[b.example] > 1
        against = b.counts[b.example, b.vote] < b.each[b.example]
        cell = np.bincount(b.labeler * self.k + b.vote, minlength=self.m * self.k).reshape(self.m, self.k)
        rows: list[dict[str, Any]] = [
            {
                "labeler": name,
                "polarity": np.flatnonzero(cell[j]).tolist(),
                "coverage": float(b.by_labeler[j] / len(self)),
                "overlaps": float(overlaps / len(self)),
                "conflicts": float(conflicts / len(self)),
            }
            for j, (name, overlaps, conflicts) in enumerate(
                zip(self.names, self._each(several), self._each(against), strict=True)
            )
        ]
        if gold is None:
            return rows
        judged = self._each(known[b.example])
        right = self._each(known[b.example] & (b.vote == gold[b.example]))
        for row, of, hits in zip(rows, judged.tolist(), right.tolist(), strict=True):
            row["correct"], row["incorrect"] = hits, of - hits
            row["accuracy"] = hits / of if of else None
        return rows

    def _each(self, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        """(m,): how many votes of each labeler are among the chosen ones, (V,) of bool."""
        return np.bincount(self.ballots.labeler[chosen], minlength=self.m)


def beside(tables: Sequence[Votes]) -> tuple[Votes, list[str]]:
    """Return the votes of several tables side by side, and what should be known, in sentences.

    A labeler of two tables, one of votes and one of probabilities, is one: its vote counts where it gave
    one, its probabilities where it gave these.

    Raises:
        DataError: If two tables of votes, or two of probabilities, name a labeler alike.

    Example:
        >>> hard = Votes([[0, 1]], 2, ["a", "b"])
        >>> beside([hard, Votes.of_probabilities(np.array([[[0.3, 0.7]]]), ["b"])])[0].soft.tolist()
        [[[1.0, 0.0], [0.3, 0.7]]]
    """
    if len(tables) == 1:
        return tables[0], []
    names = list(dict.fromkeys(name for t in tables for name in t.names))
    place, n, k = {name: j for j, name in enumerate(names)}, len(tables[0]), tables[0].k
    for kind in (True, False):
        own_names = [name for t in tables if (t.soft is None) is kind for name in t.names]
        if repeated := [name for name in names if own_names.count(name) > 1]:
            raise DataError(f"two labelers are called '{repeated[0]}'; give each a name of its own")
    table, notes = np.full((n, len(names)), ABSTAIN), list[str]()
    soft = np.zeros((n, len(names), k)) if any(t.soft is not None for t in tables) else None
    for own in tables:
        for j, name in enumerate(own.names):
            at, votes = place[name], own.table[:, j]
            both = (table[:, at] != ABSTAIN) & (votes != ABSTAIN)
            if differ := int((both & (table[:, at] != votes)).sum()):
                notes.append(
                    f"{differ} votes of {name} are not for the class it gives the largest probability"
                )
            table[:, at] = np.where(table[:, at] != ABSTAIN, table[:, at], votes)
            if soft is not None:
                given = own.onehot[:, j] if own.soft is None else own.soft[:, j]
                soft[:, at] = np.where(given.any(axis=1, keepdims=True), given, soft[:, at])
    return Votes(table, k, names, soft), notes


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
