"""Votes and soft labels in the columns of a CSV file: vote_LABELER, or others by name, and p_CLASS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hesstune.checks import parse_rate
from hesstune.errors import DataError, cut, unknown_name
from hesstune.storage.csv_table import CsvTable, read_table
from hesstune.weak.vote_values import abstains, class_index, class_of
from hesstune.weak.votes import ABSTAIN, Votes

__all__ = [
    "LABEL_SOURCE",
    "PREFIX",
    "other_columns",
    "read_votes",
    "soft_classes",
    "soft_labels",
    "vote_columns",
    "voted",
    "votes_in",
]

PREFIX, SOFT_PREFIX = "vote_", "p_"
# The column that says where labels come from; see `hesstune.data.label_sources`.
LABEL_SOURCE = "label_source"
# Columns that never hold votes, and those that hold none unless asked for.
INPUTS = frozenset({"id", "image", "text", "text2"})
NO_VOTES = INPUTS | {"label", "true_label", "split", LABEL_SOURCE}
ROW_SUM_TOLERANCE = 1e-3
# A column whose name says nothing holds votes if it has no more values than this.
MOST_CLASSES = 200


def vote_columns(
    table: CsvTable, wanted: Sequence[str] = (), others: bool = False, classes: Sequence[str] = ()
) -> list[str]:
    """Return the columns of votes: those wanted, else those named vote_….

    Args:
        table: The table.
        wanted: Names of columns.
        others: Whether, in a file of votes alone, other columns that look like votes are taken where none
            is wanted or named so; see `other_columns`.
        classes: Class names, where they are known.

    Raises:
        DataError: If a wanted column is missing.
    """
    possible = [name for name in table.columns if name not in INPUTS]
    for name in wanted:
        if name not in possible:
            raise unknown_name(f"column of {table.name}", name, possible, DataError)
    named = [name for name in possible if name.startswith(PREFIX)]
    return list(wanted) or named or (other_columns(table, classes)[0] if others else [])


def other_columns(table: CsvTable, classes: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Return the columns not named vote_… that look like votes, and those that do not.

    None of id, image, text, text2, label, true_label, split and p_…. Votes have few values, and those of one
    labeler are given by others, too: a column of times, confidences or comments shares none. A column in
    which all abstain is a labeler that never votes.
    """
    rest = [n for n in table.columns if n and n not in NO_VOTES and not n.startswith((PREFIX, SOFT_PREFIX))]
    values = {name: voted(table, [name]) for name in rest}
    known = voted(table, [name for name in ("label", "true_label") if name in table])
    known |= class_index(classes).keys()
    few = [name for name in rest if len(values[name]) <= min(MOST_CLASSES, max(2, len(table) // 2))]
    taken = [
        name
        for name in few
        if len(rest) == 1
        or not values[name]
        or values[name] & known
        or any(values[name] & values[o] for o in few if o != name)
    ]
    return taken, [name for name in rest if name not in taken]


def voted(table: CsvTable, columns: Sequence[str]) -> set[str]:
    """Return the distinct votes as written, without spaces around, abstentions left out."""
    found = {value.strip() for name in columns for value in table.columns[name].coded()[1]}
    return {value for value in found if not abstains(value)}


def votes_in(table: CsvTable, columns: Sequence[str], classes: Sequence[str]) -> Votes:
    """Return the votes in some columns, (N, m); see `hesstune.weak.vote_values` for how they are written.

    Raises:
        DataError: If a vote is no class, by row and column.
    """
    index = class_index(classes)
    votes = np.empty((len(table), len(columns)), dtype=np.int64)
    for j, name in enumerate(columns):
        codes, values = table.columns[name].coded()
        found = np.full(len(values), ABSTAIN)
        for code, value in enumerate(values):
            try:
                found[code] = class_of(value, index, "")
            except DataError:  # once more, to say where
                row = table.columns[name].row_of(code)
                class_of(value, index, f"{table.name}, row {row}, column {name}")
        votes[:, j] = found[codes]
    return Votes(votes, len(classes), [name.removeprefix(PREFIX) for name in columns])


def soft_classes(table: CsvTable) -> list[str]:
    """Return the classes that columns p_CLASS name."""
    return [name.removeprefix(SOFT_PREFIX) for name in table.columns if name.startswith(SOFT_PREFIX)]


def soft_labels(table: CsvTable, classes: Sequence[str]) -> NDArray[np.float64] | None:
    """Return soft labels, (N, K), from the columns p_CLASS; None where the file has none of them.

    Raises:
        DataError: If a class has no column, or a row is no probability distribution.
    """
    columns = [SOFT_PREFIX + name for name in classes]
    missing = [name for name in columns if name not in table]
    if len(missing) == len(columns):
        return None
    if missing:
        raise DataError(f"{table.name} has soft labels, but no column '{missing[0]}' for that class")
    soft = np.stack([_numbers(table, name) for name in columns], axis=1)
    sums = soft.sum(axis=1)
    wrong = np.flatnonzero(~np.isfinite(sums) | (soft < 0).any(axis=1) | (abs(sums - 1) > ROW_SUM_TOLERANCE))
    if len(wrong):
        raise DataError(
            f"{table.name}, row {table.row(int(wrong[0]))}: the soft label must be probabilities that sum to "
            f"1; they sum to {sums[wrong[0]]:.4g}"
        )
    return np.asarray(soft / sums[:, None])


def _numbers(table: CsvTable, column: str) -> NDArray[np.float64]:
    codes, values = table.columns[column].coded()
    numbers = [parse_rate(value) for value in values]
    if None in numbers:
        at = numbers.index(None)
        row = table.columns[column].row_of(at)
        raise DataError(
            f"{table.name}, row {row}: the soft label in the column '{column}' must be a number; got "
            f"'{cut(values[at])}'"
        )
    return np.array(numbers, dtype=np.float64)[codes]


def read_votes(
    path: str | Path, classes: Sequence[str], columns: Sequence[str] | None = None
) -> tuple[list[str], Votes]:
    """Read a file of votes: `id`, then a column a labeler; empty cells abstain.

    Args:
        path: The file.
        classes: Class names; a vote is one of them, or a zero-based index.
        columns: The labelers' columns; see `vote_columns`.

    Returns:
        The ids, and the votes.

    Raises:
        DataError: If the file is missing, a vote is no class or a column is missing, by row and column.
    """
    table = read_table(path, "the file of votes")
    if "id" not in table:
        raise DataError(f"{table.name} needs a column 'id', and a column a labeler")
    names = vote_columns(table, columns or (), True, classes)
    if not names:
        raise DataError(f"{table.name} has no column of votes beside {', '.join(table.columns)}")
    return table.cells("id"), votes_in(table, names, classes)
