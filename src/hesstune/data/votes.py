"""Annotators' columns and soft labels of a CSV file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hesstune.errors import DataError, unknown_name
from hesstune.weak.votes import ABSTAIN, EMPTY

__all__ = ["class_index", "soft_columns", "soft_names", "vote_columns", "vote_table", "vote_values"]

PREFIX, SOFT_PREFIX = "vote_", "p_"
ROW_SUM_TOLERANCE = 1e-3


def vote_columns(columns: Sequence[str], wanted: Sequence[str], path: Path) -> list[str]:
    """Return the columns that hold votes: those asked for, else those named vote_….

    Raises:
        DataError: If a wanted column is missing.
    """
    for name in wanted:
        if name not in columns:
            raise unknown_name(f"column of {path}", name, columns, DataError)
    return list(wanted) or [name for name in columns if name.startswith(PREFIX)]


def vote_values(rows: Sequence[dict[str, str]], columns: Sequence[str]) -> list[list[str]]:
    """Return the votes as written, a list an example, with "" for every way to abstain."""
    # "-1" and "none" may be class names; where they are none, they abstain.
    return [["" if row[c].strip().lower() in EMPTY else row[c].strip() for c in columns] for row in rows]


def vote_table(values: Sequence[Sequence[str]], index: dict[str, int]) -> NDArray[np.int64]:
    """Return the votes as class indices, (N, m), ABSTAIN where there is none."""
    return np.array([[index[v] if v else ABSTAIN for v in row] for row in values], dtype=np.int64)


def soft_names(columns: Sequence[str]) -> list[str]:
    """Return the classes that columns p_CLASS name."""
    return [c.removeprefix(SOFT_PREFIX) for c in columns if c.startswith(SOFT_PREFIX)]


def soft_columns(
    rows: Sequence[dict[str, str]], classes: Sequence[str], path: Path
) -> NDArray[np.float64] | None:
    """Return soft labels, (N, K), from the columns p_CLASS; None where the file has none of them.

    Raises:
        DataError: If a class has no column, or a row is no probability distribution.
    """
    columns = [SOFT_PREFIX + name for name in classes]
    missing = [c for c in columns if c not in rows[0]]
    if len(missing) == len(columns):
        return None
    if missing:
        raise DataError(f"{path} has soft labels, but no column '{missing[0]}' for that class")
    try:
        soft = np.array([[float(row[c]) for c in columns] for row in rows])
    except ValueError as error:
        raise DataError(f"{path}: the columns {columns[0]}, … must hold numbers ({error})") from None
    sums = soft.sum(axis=1)
    wrong = np.flatnonzero(~np.isfinite(sums) | (soft < 0).any(axis=1) | (abs(sums - 1) > ROW_SUM_TOLERANCE))
    if len(wrong):
        raise DataError(
            f"{path}, row {wrong[0] + 2}: the soft label must be probabilities that sum to 1; they sum to "
            f"{sums[wrong[0]]:.4g}"
        )
    return np.asarray(soft / sums[:, None])


def class_index(
    values: Sequence[str], path: Path, count: int | None = None, named: Sequence[str] = ()
) -> tuple[list[str], dict[str, int]]:
    """Return the classes behind labels and votes as written, and the index of each way to write one.

    Class names in sorted order, or zero-based integers where all values are. Where columns p_CLASS name
    classes, and all values are among them, those are the classes.

    Args:
        values: Labels and votes.
        path: The file, for messages.
        count: How many labels and votes there are, if `values` has each but once.
        named: Classes that columns of soft labels name.

    Raises:
        DataError: If there is but one class, or a number is no class index.
    """
    found = sorted(set(values))
    if len(named) > 1 and found and set(found) <= set(named):
        numbers = all(v.isdecimal() for v in named)
        classes = sorted(named, key=int) if numbers else sorted(named)
        return classes, {v: i for i, v in enumerate(classes)}
    if all(v.isdecimal() for v in found):
        top = max((int(v) for v in found), default=0)
        total = len(values) if count is None else count
        if top >= max(2 * total, 2):
            raise DataError(f"{path}: class {top} is out of range for {total} labels and votes")
        classes = [str(i) for i in range(top + 1)]
        index = {v: int(v) for v in found}
    else:
        classes, index = found, {v: i for i, v in enumerate(found)}
    if len(classes) < 2:
        shown = classes[0] if classes else "none"
        raise DataError(f"{path} has one class only ('{shown}'); at least two are needed")
    return classes, index
