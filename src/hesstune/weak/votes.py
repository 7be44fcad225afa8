"""A table of votes: which labeler gave which example which class, with abstentions."""

from __future__ import annotations

import csv
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hesstune.checks import class_count, integer_labels, readable_file
from hesstune.errors import ConfigError, DataError, cut, listed, unknown_name
from hesstune.reading import reading

__all__ = ["ABSTAIN", "Votes", "apply_functions", "load_functions", "read_votes"]

ABSTAIN = -1
# What an empty vote may be written as.
EMPTY = ("", "-1", "abstain", "none", "nan")


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
        return self.table.shape[1]

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

    def take(self, rows: ArrayLike) -> Votes:
        """Return the votes on some of the examples."""
        rows = np.asarray(rows)
        return Votes(self.table[rows], self.k, self.names, None if self.soft is None else self.soft[rows])

    def problems(self, classes: Sequence[str] | None = None) -> list[str]:
        """Say what makes the votes weak: silent labelers, classes never voted for, silent examples."""
        shown = list(classes) if classes else [str(c) for c in range(self.k)]
        found = [
            f"labeler {name} never votes; it is left out of the label model"
            for name, share in zip(self.names, self.coverage, strict=True)
            if share == 0
        ]
        absent = [shown[c] for c in np.flatnonzero(self.counts.sum(axis=0) == 0)]
        if absent:
            found.append(f"no labeler ever votes for {listed(absent)}; no example will be given that label")
        if len(self.silent):
            found.append(f"{len(self.silent)} of {len(self)} examples have no vote; they are left out")
        return found

    def analysis(self, true: ArrayLike | None = None) -> list[dict[str, Any]]:
        """Return a row a labeler, as Snorkel's LFAnalysis defines them.

        `polarity`: classes it votes for; `coverage`: share of examples it votes on; `overlaps`: share
        it votes on together with another; `conflicts`: share where another votes for another class;
        with true labels also `correct`, `incorrect` and `accuracy` (over its own votes; NaN-free:
        None where it never votes).
        """
        gold = None if true is None else integer_labels(true, self.k, "true labels")
        if gold is not None and len(gold) != len(self):
            raise DataError(f"{len(gold)} true labels do not match {len(self)} examples")
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
                right = int((self.table[own, j] == gold[own]).sum())
                row["correct"], row["incorrect"] = right, int(own.sum()) - right
                row["accuracy"] = right / int(own.sum()) if own.any() else None
            rows.append(row)
        return rows


def _class_of(value: object, index: Mapping[str, int], where: str) -> int:
    """Turn a vote (class name, index or nothing) into a class index."""
    if value is None or (str(value).strip().lower() in EMPTY and str(value) not in index):
        return ABSTAIN
    if isinstance(value, bool):
        raise DataError(f"{where} gave {value}; a vote is a class name, a class index, or None to abstain")
    if str(value) in index:
        return index[str(value)]
    if isinstance(value, int | np.integer) and 0 <= value < len(index):
        return int(value)
    raise DataError(f"{where} gave '{cut(value)}', which is no class; the classes are {listed(index)}")


def read_votes(
    path: str | Path, classes: Sequence[str], columns: Sequence[str] | None = None
) -> tuple[list[str], Votes]:
    """Read votes from a CSV file: `id`, then a column a labeler; empty cells abstain.

    Args:
        path: The file.
        classes: Class names; a vote is one of them, or a zero-based index.
        columns: The labelers' columns; None takes all but id, image, text, label, split and p_….

    Returns:
        The ids, and the votes.

    Raises:
        DataError: If a vote is no class or a column is missing, by row and column.
    """
    path = readable_file(path, "the votes file")
    with reading(path, "CSV", DataError), path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file, strict=True))
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise DataError(f"{path}, row {number}: the number of cells differs from the header's")
    if not rows or "id" not in rows[0]:
        raise DataError(f"{path} needs a column 'id', a column a labeler, and at least one row")
    taken = {"id", "image", "text", "label", "split"}
    names = list(columns) if columns else [c for c in rows[0] if c not in taken and not c.startswith("p_")]
    for name in names:
        if name not in rows[0]:
            raise unknown_name(f"column of {path}", name, [c for c in rows[0] if c], DataError)
    if not names:
        raise DataError(f"{path} has no column of votes beside {listed(rows[0])}")
    index = {name: i for i, name in enumerate(classes)} | _digits(classes)
    table = [
        [_class_of(row[c], index, f"{path}, row {number}, column {c}") for c in names]
        for number, row in enumerate(rows, start=2)
    ]
    shown = [name.removeprefix("vote_") for name in names]
    return [row["id"] for row in rows], Votes(np.array(table), len(classes), shown)


def _digits(classes: Sequence[str]) -> dict[str, int]:
    """Allow zero-based indices as text, where no class name looks like one."""
    numbers = {str(i): i for i in range(len(classes))}
    return {} if set(numbers) & set(classes) else numbers


def load_functions(spec: str) -> list[tuple[str, Callable[[Mapping[str, str]], object]]]:
    """Import labeling functions: `py:module:name`, where the name is a function or a list of them.

    The module is imported and run: use it with code you trust.

    Raises:
        ConfigError: If the module or name is missing, or holds no function.
    """
    kind, _, rest = spec.partition(":")
    module_name, _, attribute = rest.partition(":")
    if kind != "py" or not attribute:
        raise ConfigError(f"labeling functions '{spec}' must be written py:module:name")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"cannot import the module '{module_name}': {error}") from error
    if not hasattr(module, attribute):
        names = [n for n in vars(module) if not n.startswith("_")]
        raise unknown_name(f"name in {module_name}", attribute, names)
    found = getattr(module, attribute)
    functions = list(found) if isinstance(found, list | tuple) else [found]
    if not functions or not all(callable(f) for f in functions):
        raise ConfigError(f"{spec} must be a function, or a list of functions; got {type(found).__name__}")
    return [(str(getattr(f, "__name__", f"{attribute}{i}")), f) for i, f in enumerate(functions)]


def apply_functions(
    functions: Sequence[tuple[str, Callable[[Mapping[str, str]], object]]],
    rows: Sequence[Mapping[str, str]],
    classes: Sequence[str],
) -> Votes:
    """Call each labeling function on each example and collect the votes.

    Args:
        functions: (name, function) pairs. A function gets an example as a mapping of text (a CSV
            file's row; `id` and `path` for images) and returns a class name, a class index, or None.
        rows: The examples.
        classes: Class names.

    Raises:
        DataError: If a function fails or returns what is no class, by name and example.
    """
    index = {name: i for i, name in enumerate(classes)}
    table = np.full((len(rows), len(functions)), ABSTAIN)
    for j, (name, function) in enumerate(functions):
        for n, row in enumerate(rows):
            try:
                value = function(row)
            except Exception as error:
                raise DataError(
                    f"labeling function {name} failed on example {row.get('id', n)}: "
                    f"{type(error).__name__}: {error}"
                ) from error
            table[n, j] = _class_of(value, index, f"labeling function {name}, example {row.get('id', n)},")
    return Votes(table, len(classes), [name for name, _ in functions])
