"""Votes: the class that each annotator gives each example, with abstentions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from hesstune.checks import class_count, integer_labels
from hesstune.errors import DataError, listed

ABSTAIN = -1
# Cells of a table of examples × annotators, 8 bytes each, beyond which votes stay one a row.
MOST_CELLS = 50_000_000


class Votes:
    """Votes of m annotators on N examples.

    Votes of a crowd are given one a row (`of_rows`). Their table of examples × annotators is made only if it
    is needed.

    Attributes:
        k: Number of classes K.
        names: The annotators' names.
        soft: (N, m, K) probabilities of each annotator, or None; rows of abstentions are zero.
        is_table: Whether the votes were given as a table, not one a row.

    Raises:
        DataError: If a vote is outside the classes, or shapes do not fit.

    Example:
        >>> votes = Votes([[0, 0], [1, -1], [-1, -1]], k=2)
        >>> votes.coverage.round(2).tolist(), votes.silent.tolist()
        ([0.67, 0.33], [2])
    """

    soft: NDArray[np.float64] | None

    def __init__(
        self, table: ArrayLike, k: int, names: Sequence[str] = (), soft: ArrayLike | None = None
    ) -> None:
        array = np.asarray(table)
        if array.ndim != 2 or not array.shape[1] or not np.issubdtype(array.dtype, np.integer):
            raise DataError(f"votes must be integers, (N, m), -1 if an annotator abstains; got {array.shape}")
        names = list(names) or [f"annotator{j}" for j in range(array.shape[1])]
        self._keep(csr_matrix(array.astype(np.int64) + 1), k, names, None, True)
        if len(wrong := np.argwhere((array < ABSTAIN) | (array >= k))):
            n, j = wrong[0]
            raise DataError(
                f"votes must be classes in [0, {k}), or -1 to abstain; annotator {names[j]} gave "
                f"{array[n, j]} to example {n}"
            )
        if soft is not None:
            p, shape = np.asarray(soft, dtype=np.float64), (*array.shape, self.k)
            if p.shape != shape or not np.isfinite(p).all() or (p < 0).any():
                raise DataError(f"soft votes must be finite probabilities, {shape}; got shape {p.shape}")
            self.soft = p

    def _keep(
        self,
        plus_one: csr_matrix,
        k: int,
        names: Sequence[str],
        soft: NDArray[np.float64] | None,
        is_table: bool,
    ) -> None:
        """Keep votes + 1 as a sparse matrix, (N, m): an abstention takes no memory."""
        self.k, self.names = class_count(k), list(names)
        if len(self.names) != plus_one.shape[1] or len(set(self.names)) < len(self.names):
            raise DataError(
                f"{plus_one.shape[1]} annotators need as many different names; got {listed(names)}"
            )
        self._plus_one, self.soft, self.is_table = plus_one, soft, is_table

    def _with_table(
        self,
        plus_one: csr_matrix,
        k: int,
        names: Sequence[str],
        soft: NDArray[np.float64] | None,
    ) -> Votes:
        """Return the votes with another table, classes or annotators."""
        votes = Votes.__new__(Votes)
        votes._keep(plus_one, k, names, soft, self.is_table)
        return votes

    @classmethod
    def of_rows(
        cls,
        example: NDArray[np.int64],
        annotator: NDArray[np.int64],
        vote: NDArray[np.int64],
        *,
        n: int,
        k: int,
        names: Sequence[str],
        soft: NDArray[np.float64] | None = None,
    ) -> Votes:
        """Return votes that are given one a row; an annotator votes on an example once.

        Args:
            example: (V,) the example of each vote.
            annotator: (V,) who gives it.
            vote: (V,) the class.
            n: Number of examples N.
            k: Number of classes K.
            names: The annotators' names.
            soft: (N, m, K) the probabilities that annotators give, or None.

        Example:
            >>> example, annotator, vote = np.array([0, 1]), np.array([1, 0]), np.array([1, 0])
            >>> Votes.of_rows(example, annotator, vote, n=3, k=2, names=["ann", "bob"]).table.tolist()
            [[-1, 1], [0, -1], [-1, -1]]
        """
        votes = cls.__new__(cls)
        plus_one = csr_matrix((vote + 1, (example, annotator)), (n, len(names)))
        votes._keep(plus_one, k, names, soft, False)
        return votes

    @classmethod
    def of_probabilities(
        cls, soft: NDArray[np.float64], names: Sequence[str] = (), threshold: float = 0.0
    ) -> Votes:
        """Return votes for each annotator's most probable class.

        Args:
            soft: (N, m, K) probabilities of each annotator; a row of zeros is an abstention.
            names: The annotators' names.
            threshold: An annotator abstains if no class has this probability.

        Example:
            >>> Votes.of_probabilities(np.array([[[0.9, 0.1]], [[0.4, 0.6]]]), threshold=0.7).table.tolist()
            [[0], [-1]]
        """
        most = soft.max(axis=2)
        table = np.where((most >= threshold) & (most > 0), soft.argmax(axis=2), ABSTAIN)
        return cls(table, soft.shape[2], names, soft * (table != ABSTAIN)[:, :, None])

    def __len__(self) -> int:
        return int(self._plus_one.shape[0])

    @property
    def m(self) -> int:
        """The number of annotators."""
        return len(self.names)

    @cached_property
    def example(self) -> NDArray[np.int64]:
        """(V,) the example of each vote, ascending."""
        return np.repeat(np.arange(len(self)), self.per_example)

    @cached_property
    def annotator(self) -> NDArray[np.int64]:
        """(V,) who gives each vote, ascending within an example."""
        return np.asarray(self._plus_one.indices, dtype=np.int64)

    @cached_property
    def vote(self) -> NDArray[np.int64]:
        """(V,) the class of each vote."""
        return np.asarray(self._plus_one.data - 1)

    @cached_property
    def per_example(self) -> NDArray[np.int64]:
        """(N,) the number of votes on each example."""
        return np.asarray(np.diff(self._plus_one.indptr), dtype=np.int64)

    @cached_property
    def per_annotator(self) -> NDArray[np.int64]:
        """(m,) the number of votes of each annotator."""
        return np.bincount(self.annotator, minlength=self.m)

    @cached_property
    def table(self) -> NDArray[np.int64]:
        """(N, m) int64 class indices; ABSTAIN (−1) if an annotator gave none.

        Raises:
            DataError: If the votes were given one a row, and their table would take too much memory.
        """
        if not self.is_table and len(self) * self.m > MOST_CELLS:
            raise DataError(
                f"a table of {len(self):,} examples by {self.m:,} annotators is too large; use the label "
                "model auto, weighted, majority or mace, which take votes one a row"
            )
        return np.asarray(self._plus_one.toarray() - 1)

    @cached_property
    def given(self) -> NDArray[np.bool_]:
        """(N, m) whether an annotator voted."""
        return np.asarray(self.table != ABSTAIN)

    @cached_property
    def onehot(self) -> NDArray[np.float64]:
        """(N, m, K) 1 at the class voted for; all 0 if the annotator abstained."""
        return np.asarray(np.eye(self.k + 1)[self.table][:, :, : self.k])

    @cached_property
    def counts(self) -> NDArray[np.float64]:
        """(N, K) the number of votes for each class."""
        return self.sums()

    def sums(self, weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Return (N, K): the sum of the weights, (V,), of each example's votes for each class."""
        cell = self.example * self.k + self.vote
        summed = np.bincount(cell, weights, len(self) * self.k).reshape(len(self), self.k)
        return summed.astype(np.float64)

    def joint(
        self, q: NDArray[np.float64], chosen: NDArray[np.bool_] | slice = slice(None)
    ) -> NDArray[np.float64]:
        """Return (m, K, K): the summed posterior of class y if an annotator votes v, at [annotator, v, y].

        Args:
            q: (V, K) a posterior for each vote's example.
            chosen: (V,) which votes count.
        """
        cell = self.annotator[chosen] * self.k + self.vote[chosen]
        columns = [np.bincount(cell, q[chosen, y], self.m * self.k) for y in range(self.k)]
        return np.asarray(np.stack(columns, axis=1).reshape(self.m, self.k, self.k), dtype=np.float64)

    @property
    def coverage(self) -> NDArray[np.float64]:
        """(m,) the share of the examples that an annotator votes on."""
        return self.per_annotator / max(len(self), 1)

    @property
    def silent(self) -> NDArray[np.int64]:
        """Examples on which every annotator abstains."""
        return np.flatnonzero(self.per_example == 0)

    @property
    def unvoted(self) -> NDArray[np.int64]:
        """Classes that no annotator votes for."""
        return np.flatnonzero(np.bincount(self.vote, minlength=self.k) == 0)

    def take(self, rows: ArrayLike, annotators: ArrayLike | None = None) -> Votes:
        """Return the votes on some of the examples, of all annotators or of some."""
        rows = np.asarray(rows)
        plus_one, soft, names = self._plus_one[rows], self.soft, self.names
        if soft is not None:
            soft = soft[rows]
        if annotators is not None:
            columns = np.asarray(annotators)
            plus_one, names = plus_one[:, columns], [names[j] for j in columns]
            plus_one.sort_indices()
            if soft is not None:
                soft = soft[:, columns]
        return self._with_table(plus_one, self.k, names, soft)

    def among(self, classes: NDArray[np.int64]) -> Votes:
        """Return the votes with only these classes, numbered anew; all votes are for one of them."""
        place = np.zeros(self.k, dtype=np.int64)
        place[classes] = np.arange(len(classes))
        plus_one, soft = self._plus_one.copy(), None
        plus_one.data = place[self.vote] + 1
        if self.soft is not None:
            soft = self.soft[:, :, classes]
            total = soft.sum(axis=2, keepdims=True)
            soft = np.where(total > 0, soft / np.maximum(total, 1e-300), 0.0)
        return self._with_table(plus_one, len(classes), self.names, soft)

    def spread(self, rows: NDArray[np.int64], n: int) -> Votes:
        """Return votes on n examples: votes on example i are moved to the example rows[i]."""
        cells = (rows[self.example], self.annotator)
        soft = None
        if self.soft is not None:
            soft = np.zeros((n, self.m, self.k))
            soft[rows] = self.soft
        plus_one = csr_matrix((self._plus_one.data, cells), (n, self.m))
        return self._with_table(plus_one, self.k, self.names, soft)

    def problems(self, classes: Sequence[str] | None = None) -> list[str]:
        """Return sentences about annotators without votes, and classes and examples without votes."""
        shown = list(classes) if classes else [str(c) for c in range(self.k)]
        found = [
            f"annotator {name} never votes; it is left out of the label model"
            for name, count in zip(self.names, self.per_annotator, strict=True)
            if not count
        ]
        if absent := [shown[c] for c in self.unvoted]:
            found.append(f"no annotator votes for {listed(absent)}; no example is given that label")
        if len(self.silent):
            found.append(f"{len(self.silent)} of {len(self)} examples have no vote; they are left out")
        return found

    def analysis(self, true: ArrayLike | None = None) -> list[dict[str, Any]]:
        """Return a row for each annotator, with the quantities of Snorkel's LFAnalysis.

        `polarity`: classes it votes for; `coverage`: share of examples it votes on; `overlaps`: share on
        which another annotator votes, too; `conflicts`: share on which another votes for another
        class. With true labels (−1 if unknown) also `correct`, `incorrect` and `accuracy` over its own
        votes, which is None if it votes on no example with a known label.
        """
        gold = None if true is None else np.asarray(true)
        if gold is not None:
            if len(gold) != len(self):
                raise DataError(f"{len(gold)} true labels do not match {len(self)} examples")
            integer_labels(gold[gold != ABSTAIN], self.k, "true labels")
        each = self.per_example[self.example]
        cell = np.bincount(self.annotator * self.k + self.vote, minlength=self.m * self.k)

        def share(chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
            return np.bincount(self.annotator[chosen], minlength=self.m) / len(self)

        columns: dict[str, list[Any]] = {
            "labeler": self.names,
            "polarity": [np.flatnonzero(row).tolist() for row in cell.reshape(self.m, self.k)],
            "coverage": (self.per_annotator / len(self)).tolist(),
            "overlaps": share(each > 1).tolist(),
            "conflicts": share(self.counts[self.example, self.vote] < each).tolist(),
        }
        if gold is not None:
            known = gold[self.example] != ABSTAIN
            asked = np.bincount(self.annotator[known], minlength=self.m)
            right = np.bincount(self.annotator[self.vote == gold[self.example]], minlength=self.m)
            columns |= {"correct": right.tolist(), "incorrect": (asked - right).tolist()}
            columns["accuracy"] = [
                r / a if a else None for r, a in zip(right.tolist(), asked.tolist(), strict=True)
            ]
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def beside(tables: Sequence[Votes]) -> tuple[Votes, list[str]]:
    """Return the votes of several tables side by side, and notes.

    An annotator may be in two tables, one of votes and one of probabilities. Its vote is kept if there is
    one, and its probabilities if there are some. Two tables of one kind with one annotator raise DataError.
    """
    if len(tables) == 1:
        return tables[0], []
    names = list(dict.fromkeys(name for t in tables for name in t.names))
    n, k = len(tables[0]), tables[0].k
    for is_hard in (True, False):
        own_names = [name for t in tables if (t.soft is None) is is_hard for name in t.names]
        if repeated := [name for name in names if own_names.count(name) > 1]:
            raise DataError(f"two annotators are named '{repeated[0]}'; give each a name of its own")
    table, notes = np.full((n, len(names)), ABSTAIN), list[str]()
    soft = np.zeros((n, len(names), k)) if any(t.soft is not None for t in tables) else None
    for own in tables:
        for j, name in enumerate(own.names):
            at, votes = names.index(name), own.table[:, j]
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


def patterns(votes: Votes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct rows of votes: the first example of each, (P,), and each example's row, (N,)."""
    import pandas as pd

    groups = pd.DataFrame(votes.table).groupby(list(range(votes.m)), sort=False)
    of = groups.ngroup().to_numpy(dtype=np.int64)
    return np.unique(of, return_index=True)[1], of
