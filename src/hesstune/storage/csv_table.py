"""The one reader of CSV files: column by column, repeated cells as codes, so that a million rows fit."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from hesstune.checks import readable_file
from hesstune.errors import DataError, HesstuneError, RunError, cut
from hesstune.storage.reading import one_line, reading

__all__ = ["Column", "CsvTable", "read_rows", "read_table"]

# Rows that are read before they become columns.
CHUNK = 20_000
# A column with more distinct cells than this, and than half its rows, is kept as it stands.
MOST_CODED = 1000
# In files that end so, cells are separated by tabs and quotes are text.
TABS = (".tsv", ".tab")


class Column:
    """The cells of one column, as codes of its distinct cells, or as they stand where most differ.

    Example:
        >>> column = Column(["cat", "dog", "cat"])
        >>> codes, values = column.coded()
        >>> codes.tolist(), values, column.row_of(1)
        ([0, 1, 0], ['cat', 'dog'], 3)
    """

    def __init__(self, cells: Sequence[str] = ()) -> None:
        self._plain: list[str] | None = None
        self._codes: list[NDArray[np.int32]] = []
        self._seen: dict[str, int] = {}
        self._count = 0
        self.extend(cells)

    def extend(self, cells: Sequence[str]) -> None:
        """Add cells at the end."""
        self._count += len(cells)
        if self._plain is not None:
            self._plain.extend(cells)
            return
        for cell in dict.fromkeys(cells):
            self._seen.setdefault(cell, len(self._seen))
        codes = np.fromiter(map(self._seen.__getitem__, cells), dtype=np.int32, count=len(cells))
        self._codes.append(codes)
        if len(self._seen) > max(MOST_CODED, self._count // 2):
            self._plain = self.cells()
            self._codes, self._seen = [], {}

    def __len__(self) -> int:
        return self._count

    def cells(self) -> list[str]:
        """Return the cells, one a row."""
        if self._plain is not None:
            return self._plain
        values = list(self._seen)
        return [values[code] for codes in self._codes for code in codes.tolist()]

    def coded(self) -> tuple[NDArray[np.int32], list[str]]:
        """Return (N,) int32 indices into the distinct cells, and these in the order of their first rows."""
        if self._plain is not None:
            index: dict[str, int] = {}
            codes = [index.setdefault(cell, len(index)) for cell in self._plain]
            return np.array(codes, dtype=np.int32), list(index)
        if len(self._codes) != 1:
            self._codes = [np.concatenate([np.zeros(0, np.int32), *self._codes])]
        return self._codes[0], list(self._seen)

    def row_of(self, code: int) -> int:
        """Return the row of the file, its header being row 1, in which a distinct cell first stands."""
        return int(np.flatnonzero(self.coded()[0] == code)[0]) + 2


@dataclass(frozen=True)
class CsvTable:
    """Columns of cells, all text.

    Attributes:
        name: What messages call it: the path of its file.
        folder: Where relative paths in its cells begin.
        columns: Its columns by name, in the order of the header.
    """

    name: str
    folder: Path
    columns: dict[str, Column]

    @classmethod
    def of(cls, cells: Mapping[str, Sequence[str]], name: str, folder: Path = Path()) -> CsvTable:
        """Build a table from columns of text that are in memory already.

        Example:
            >>> table = CsvTable.of({"text": ["a", "b"], "label": ["0", "1"]}, "the table")
            >>> len(table), list(table.rows())[1]
            (2, {'text': 'b', 'label': '1'})
        """
        return cls(name, folder, {column: Column(own) for column, own in cells.items()})

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def __contains__(self, column: object) -> bool:
        return column in self.columns

    def cells(self, column: str) -> list[str]:
        """Return a column's cells, one a row."""
        return self.columns[column].cells()

    def rows(self) -> Iterator[dict[str, str]]:
        """Yield each row as a mapping."""
        for cells in zip(*(column.cells() for column in self.columns.values()), strict=True):
            yield dict(zip(self.columns, cells, strict=True))


def read_table(
    path: str | Path, what: str = "the data file", kind: type[HesstuneError] = DataError
) -> CsvTable:
    """Read a CSV file in UTF-8 with a header (separated by tabs, quotes being text, where it ends in .tsv).

    Blank lines are left out.

    Args:
        path: The file.
        what: What it is, for the message where there is none.
        kind: The class of errors.

    Raises:
        HesstuneError: Of the class given: if the file is missing, is no CSV, has no header or no rows,
            repeats a column, or has a row with too few or too many cells, or too long a cell.
    """
    path = readable_file(path, what, kind)
    with reading(path, "CSV", kind), path.open(newline="", encoding="utf-8-sig") as file:
        rows = _rows(file, path, kind)
        names = next(rows, None)
        if names is None:
            raise kind(f"{path} is empty; it needs a header with the names of its columns, and rows")
        repeated = [name for name, count in Counter(names).items() if count > 1]
        if repeated:
            raise kind(f"{path} has two columns called '{cut(repeated[0])}'; give each a name of its own")
        columns = {name: Column() for name in names}
        done = 0
        while chunk := list(islice(rows, CHUNK)):
            for at, row in enumerate(chunk, start=done + 2):
                if len(row) != len(names):
                    raise kind(
                        f"{path}, row {at}: the number of cells differs from the header's "
                        f"({len(row)}, not {len(names)})"
                    )
            for column, cells in zip(columns.values(), zip(*chunk, strict=True), strict=True):
                column.extend(cells)
            done += len(chunk)
    if not done:
        raise kind(f"{path} has no rows below its header")
    return CsvTable(str(path), path.parent, columns)


def _rows(file: IO[str], path: Path, kind: type[HesstuneError]) -> Iterator[list[str]]:
    """Yield the rows that are not blank; say in which line reading ended where it cannot go on."""
    if path.suffix.lower() in TABS:
        reader = csv.reader(file, strict=True, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(file, strict=True)
    try:
        yield from (row for row in reader if row)
    except csv.Error as error:
        reason = one_line(error)
        if "field limit" in reason:
            most = csv.field_size_limit()
            reason = f"a cell has more than {most:,} characters; close its quotation mark, or cut the text"
        elif "unexpected end" in reason:
            reason = "the file ends within a cell; close its quotation mark"
        raise kind(f"{path} cannot be read as CSV (line {reader.line_num}: {reason})") from error
    except UnicodeDecodeError as error:
        raise kind(f"{path} cannot be read as CSV ({one_line(error)}); save it in UTF-8") from error


def read_rows(path: Path, kind: type[HesstuneError] = RunError) -> list[dict[str, str]]:
    """Return the rows of a small CSV file, such as a run's record; see `read_table`."""
    return list(read_table(path, "the record", kind).rows())
