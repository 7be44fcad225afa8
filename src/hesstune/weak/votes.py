"""A table of votes: which labeler gave which example which class, with abstentions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hesstune._former import former_names
from hesstune.checks import class_count, integer_labels
from hesstune.errors import DataError, listed

__all__ = ["ABSTAIN", "Votes"]

ABSTAIN = -1


class Votes:
    """Votes of m labelers on N examples.

    Attributes:
        table: (N, m) int64 class indices; ABSTAIN (−1) where a labeler gave none.
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
        self.table = array.astype(np.int64)
        self.k = k
        self.names: list[str] = names
        self.soft = None if soft is None else self._checked(soft)

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
        shape = (*self.table.shape, self.k)
        if array.shape != shape or not np.isfinite(array).all() or (array < 0).any():
            raise DataError(f"soft votes must be finite probabilities, {shape}; got shape {array.shape}")
        return array

    def __len__(self) -> int:
        return len(self.table)

    @property
    def m(self) -> int:
        """The number of labelers."""
        return int(self.table.shape[1])

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
        found = np.zeros((len(self), self.k))
        for column in self.table.T:
            rows = np.flatnonzero(column != ABSTAIN)
            found[rows, column[rows]] += 1
        return found

    @property
    def coverage(self) -> NDArray[np.float64]:
        """(m,): share of the examples that a labeler votes on."""
        return np.asarray(self.given.mean(axis=0))

    @property
    def silent(self) -> NDArray[np.int64]:
        """Examples on which every labeler abstains."""
        return np.flatnonzero(~self.given.any(axis=1))

    @property
    def unvoted(self) -> NDArray[np.int64]:
        """Classes that no labeler votes for."""
        return np.setdiff1d(np.arange(self.k), np.unique(self.table))

    def take(self, rows: ArrayLike, labelers: ArrayLike | None = None) -> Votes:
        """Return the votes on some of the examples, of all labelers or of some."""
        rows = np.asarray(rows)
        if labelers is None:
            return Votes(self.table[rows], self.k, self.names, None if self.soft is None else self.soft[rows])
        columns = np.asarray(labelers)
        some = np.ix_(rows, columns)
        names = [self.names[j] for j in columns]
        return Votes(self.table[some], self.k, names, None if self.soft is None else self.soft[some])

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
        votes = self.given.sum(axis=1)
        rows: list[dict[str, Any]] = []
        for j, name in enumerate(self.names):
            own = self.given[:, j]
            other = self.given & (self.table != self.table[:, [j]])
            row: dict[str, Any] = {
                "labeler": name,
                "polarity": np.unique(self.table[own, j]).tolist(),
                "coverage": float(own.mean()),
                "overlaps": float((own & (votes > 1)).mean()),
                "conflicts": float((own & other.any(axis=1)).mean()),
            }
            if gold is not None:
                judged = own & known
                right = int((self.table[judged, j] == gold[judged]).sum())
                row["correct"], row["incorrect"] = right, int(judged.sum()) - right
                row["accuracy"] = right / int(judged.sum()) if judged.any() else None
            rows.append(row)
        return rows


__getattr__ = former_names(
    __name__, class_of="hesstune.weak.vote_values.class_of", EMPTY="hesstune.weak.vote_values.abstains(value)"
)
