"""What is known of the examples' true classes: labels as given, and what the user has told of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Checked", "Observed"]

Checked = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Rows and true labels of examples that a person has checked."""


@dataclass(frozen=True)
class Observed:
    """Labels of N examples, and what is known of them.

    Attributes:
        given: (N, K) one-hot or soft labels as given; or counts of votes, each of which is a label given.
        told: F, (K, K), where it is known.
        checked: Examples whose true class is known.
        weight: (N,) how much each example counts; None: once.
    """

    given: NDArray[np.float64]
    told: NDArray[np.float64] | None = None
    checked: Checked | None = None
    weight: NDArray[np.float64] | None = None

    @classmethod
    def of(
        cls,
        labels: ArrayLike,
        k: int,
        told: NDArray[np.float64] | None = None,
        checked: Checked | None = None,
        weight: NDArray[np.float64] | None = None,
    ) -> Observed:
        """Return what is known, from class indices, (N,), or soft labels or counts of votes, (N, K).

        Example:
            >>> Observed.of([0, 1], 2).given.tolist()
            [[1.0, 0.0], [0.0, 1.0]]
        """
        array = np.asarray(labels)
        given = np.eye(k)[array.astype(np.int64)] if array.ndim == 1 else array.astype(np.float64)
        return cls(given, told, checked, weight)

    def __len__(self) -> int:
        return len(self.given)

    @property
    def k(self) -> int:
        """The number of classes."""
        return int(self.given.shape[1])

    def arrays(self) -> dict[str, NDArray[Any] | None]:
        """Return all that is known, by name."""
        rows, true = (None, None) if self.checked is None else self.checked
        return {"given": self.given, "told": self.told, "rows": rows, "true": true, "weight": self.weight}

    def take(self, rows: NDArray[np.int64]) -> Observed:
        """Return some examples, by ascending rows."""
        checked = None
        if self.checked is not None:
            inside = np.isin(self.checked[0], rows)
            checked = np.searchsorted(rows, self.checked[0][inside]), self.checked[1][inside]
        weight = None if self.weight is None else self.weight[rows]
        return Observed(self.given[rows], self.told, checked, weight)

    def known(self, q: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return class probabilities, (N, K), in which checked examples are sure."""
        if self.checked is None:
            return q
        found = q.copy()
        found[self.checked[0]] = np.eye(self.k)[self.checked[1]]
        return found
