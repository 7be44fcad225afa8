"""A CSV file read column by column: ids and texts as they are, everything else as codes of its values."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hesstune.checks import readable_file
from hesstune.errors import DataError, unknown_name
from hesstune.storage.reading import reading
from hesstune.weak.votes import ABSTAIN, EMPTY, Votes, class_of

__all__ = ["PLAIN", "Sheet", "read_sheet", "read_votes", "vote_names", "votes_of_sheet"]

# Columns whose cells mostly differ; all others are stored as codes.
PLAIN = ("id", "image", "text", "text2")
# Columns that hold no votes in a file whose columns are not named vote_….
NO_VOTES = frozenset({*PLAIN, "label", "true_label", "split"})
PREFIX, SOFT_PREFIX = "vote_", "p_"
CHUNK = 20_000


@dataclass(frozen=True)
class Sheet:
    """The cells of a CSV file.

    Attributes:
        path: The file.
        names: The header.
        plain: The columns of PLAIN, as they stand.
        codes: The other columns: (N,) int32 indices into `values`.
        values: Their distinct cells, in the order in which they first occur.
    """

    path: Path
    names: list[str]
    plain: dict[str, list[str]]
    codes: dict[str, NDArray[np.int32]]
    values: dict[str, list[str]]

    def __len__(self) -> int:
        return len(next(iter(self.codes.values()))) if self.codes else len(next(iter(self.plain.values())))

    def cells(self, name: str) -> list[str]:
        """Return a column's cells."""
        if name in self.plain:
            return self.plain[name]
        values = self.values[name]
        return [values[code] for code in self.codes[name]]

    def row(self, number: int) -> dict[str, str]:
        """Return one row as a mapping."""
        return {
            n: self.plain[n][number] if n in self.plain else self.values[n][self.codes[n][number]]
            for n in self.names
        }


def read_sheet(path: str | Path) -> Sheet:
    """Read a CSV file (tab-separated where it ends in .tsv; quotes are text there).

    Raises:
        ConfigError: If the file does not exist.
        DataError: If it is no CSV, has no rows, repeats a column, or a row has too few or many cells.
    """
    path = readable_file(path, "the data file")
    tabs = path.suffix.lower() in (".tsv", ".tab")
    with reading(path, "CSV", DataError), path.open(newline="", encoding="utf-8-sig") as file:
        if tabs:
            reader = csv.reader(file, strict=True, delimiter="\t", quoting=csv.QUOTE_NONE)
        else:
            reader = csv.reader(file, strict=True)
        names = next(reader, [])
        if len(set(names)) < len(names):
            raise DataError(f"{path} has two columns of the same name; give each its own")
        plain: dict[str, list[str]] = {n: [] for n in names if n in PLAIN}
        seen: dict[str, dict[str, int]] = {n: {} for n in names if n not in PLAIN}
        codes: dict[str, list[NDArray[np.int32]]] = {n: [] for n in seen}
        done = 0
        while rows := [row for row in islice(reader, CHUNK) if row]:
            _check_widths(rows, len(names), path, done)
            for name, cells in zip(names, zip(*rows, strict=True), strict=True):
                if name in plain:
                    plain[name].extend(cells)
                else:
                    codes[name].append(_coded(cells, seen[name]))
            done += len(rows)
    if not done:
        raise DataError(f"{path} has no rows below its header")
    return Sheet(
        path,
        names,
        plain,
        {n: np.concatenate(parts) for n, parts in codes.items()},
        {n: list(found) for n, found in seen.items()},
    )


def _check_widths(rows: Sequence[Sequence[str]], width: int, path: Path, before: int) -> None:
    for at, row in enumerate(rows):
        if len(row) != width:
            raise DataError(
                f"{path}, row {before + at + 2}: the number of cells differs from the header's "
                f"({len(row)}, not {width})"
            )


def _coded(cells: Sequence[str], seen: dict[str, int]) -> NDArray[np.int32]:
    for cell in set(cells).difference(seen):
        seen[cell] = len(seen)
    return np.fromiter(map(seen.__getitem__, cells), dtype=np.int32, count=len(cells))


def vote_names(sheet: Sheet, wanted: Sequence[str] = ()) -> list[str]:
    """Return the columns of votes: those wanted, else those named vote_…, else all that may be votes.

    Raises:
        DataError: If a wanted column is missing.
    """
    for name in wanted:
        if name not in sheet.codes:
            raise unknown_name(f"column of {sheet.path}", name, list(sheet.codes), DataError)
    named = [n for n in sheet.names if n.startswith(PREFIX) and n in sheet.codes]
    rest = [n for n in sheet.codes if n not in NO_VOTES and n and not n.startswith(SOFT_PREFIX)]
    return list(wanted) or named or rest


def votes_of_sheet(sheet: Sheet, columns: Sequence[str], classes: Sequence[str]) -> Votes:
    """Turn columns of class names (or zero-based indices, where no class name looks like one) into votes.

    Raises:
        DataError: If a vote is no class, by row and column.
    """
    index = {name: i for i, name in enumerate(classes)} | _digits(classes)
    table = np.empty((len(sheet), len(columns)), dtype=np.int64)
    for j, name in enumerate(columns):
        values, codes = sheet.values[name], sheet.codes[name]
        found = np.full(len(values), ABSTAIN)
        for code, value in enumerate(values):
            if value.strip().lower() in EMPTY and value not in index:
                continue
            try:
                found[code] = class_of(value.strip(), index, "")
            except DataError:
                row = int(np.flatnonzero(codes == code)[0]) + 2
                # Once more, to say where.
                class_of(value.strip(), index, f"{sheet.path}, row {row}, column {name}")
        table[:, j] = found[codes]
    return Votes(table, len(classes), [name.removeprefix(PREFIX) for name in columns])


def _digits(classes: Sequence[str]) -> dict[str, int]:
    """Allow zero-based indices as text, where no class name looks like one."""
    numbers = {str(i): i for i in range(len(classes))}
    return {} if set(numbers) & set(classes) else numbers


def read_votes(
    path: str | Path, classes: Sequence[str], columns: Sequence[str] | None = None
) -> tuple[list[str], Votes]:
    """Read votes from a CSV file: `id`, then a column a labeler; empty cells abstain.

    Args:
        path: The file.
        classes: Class names; a vote is one of them, or a zero-based index.
        columns: The labelers' columns; None takes those named vote_…, or else all but id, image,
            text, label, true_label, split and p_….

    Returns:
        The ids, and the votes.

    Raises:
        DataError: If a vote is no class or a column is missing, by row and column.
    """
    sheet = read_sheet(path)
    if "id" not in sheet.plain:
        raise DataError(f"{sheet.path} needs a column 'id', a column a labeler, and at least one row")
    names = vote_names(sheet, columns or ())
    if not names:
        raise DataError(f"{sheet.path} has no column of votes beside {', '.join(sheet.names)}")
    return sheet.plain["id"], votes_of_sheet(sheet, names, classes)
