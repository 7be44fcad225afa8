"""Tables in memory: columns of text cells, and what a cell means."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hesstune.errors import plain

# Texts that mean a missing label to Python, pandas, R, spreadsheets and databases. In other case they may be
# words, such as a class called none.
MISSING = (
    "", "None", "nan", "NaN", "-nan", "-NaN", "NA", "#NA", "N/A", "n/a", "#N/A", "NULL", "null", "<NA>",
    "NaT", "NAN", "Nan", "Null", "<na>", "\\N", "(null)", "#N/A N/A",
)  # fmt: skip


def is_missing(value: object, names: Collection[str] = ()) -> bool:
    """Return whether a cell means a missing value; cells in `names` do not."""
    text = "" if value is None else str(value).strip()
    return text in MISSING and text not in names


def as_cell(value: Any) -> str:
    """Return a value as a cell of a table: a whole number without a point, what is missing empty.

    Example:
        >>> as_cell(2.0), as_cell(None), as_cell(float("nan")), as_cell("None")
        ('2', '', '', 'None')
    """
    if hasattr(value, "item") and getattr(value, "size", 1) != 0:
        value = value.item()
    if value is None or type(value).__name__ in ("NAType", "NaTType") or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else plain(str(value))


def json_cell(value: Any) -> str:
    """Return a value of a JSON file as a cell of a table; see `as_cell`."""
    return str(value).lower() if isinstance(value, bool) else as_cell(value)


# Distinct cells of a column that are kept once in memory, at most.
MOST_SHARED = 10_000


class RowNames(Sequence[str]):
    """Names of the rows of a table, made when they are asked for."""

    def __init__(self, length: int, name: Callable[[int], str]) -> None:
        self._length, self._name = length, name

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, at: Any) -> Any:
        return self._name(int(at))


class Column:
    """The text cells of one column, and the rows of its file that they are from.

    Attributes:
        nested: Index of the first cell that is a list or an object, written as JSON, or None.
        objects: The values that are no text, such as images, one a row; or None.
        class_names: Names of the classes whose indices the cells are, or None.
    """

    def __init__(
        self,
        cells: Sequence[str] = (),
        first: int = 2,
        gaps: Sequence[int] = (),
        names: Sequence[str] | None = None,
    ) -> None:
        # The first row's number in the file, the rows that blank lines precede; or names of rows.
        self._first, self._gaps, self._names = first, gaps, names
        self._cells: list[str] = []
        self._shared: dict[str, str] = {}
        self._coded: tuple[NDArray[np.int32], list[str]] | None = None
        self.nested: int | None = None
        self.objects: list[Any] | None = None
        self.class_names: list[str] | None = None
        self.extend(cells)

    def extend(self, cells: Sequence[str]) -> None:
        """Add cells at the end; of equal ones, one is kept in memory."""
        for cell in dict.fromkeys(cells):
            if len(self._shared) < MOST_SHARED:
                self._shared.setdefault(cell, cell)
        self._cells.extend([self._shared.get(cell, cell) for cell in cells])
        self._coded = None

    def __len__(self) -> int:
        return len(self._cells)

    def cells(self) -> list[str]:
        """Return the cells, one a row."""
        return self._cells

    def coded(self) -> tuple[NDArray[np.int32], list[str]]:
        """Return (N,) int32 indices into the distinct cells, and these in the order of their first rows."""
        if self._coded is None:
            index: dict[str, int] = {}
            codes = (index.setdefault(cell, len(index)) for cell in self._cells)
            self._coded = np.fromiter(codes, np.int32, len(self)), list(index)
        return self._coded

    def like(self, cells: Sequence[str]) -> Column:
        """Return a column of other cells in the same rows."""
        return Column(cells, self._first, self._gaps, self._names)

    def row(self, at: int) -> int | str:
        """Return the row of the file, its header being row 1, of the cell at an index; or the row's name."""
        return at + self._first + bisect_right(self._gaps, at) if self._names is None else self._names[at]

    def row_of(self, code: int) -> int | str:
        """Return the row of the file, its header being row 1, of the first cell with a code."""
        return self.row(int(np.flatnonzero(self.coded()[0] == code)[0]))


@dataclass(frozen=True)
class CsvTable:
    """Columns of cells, all text."""

    name: str  # what messages call it: the path of its file
    folder: Path  # where relative paths in its cells begin
    columns: dict[str, Column]  # its columns by name, in the order of the header
    notes: tuple[str, ...] = ()  # what was guessed when it was read, in sentences
    # (path, number of rows up to its end) of each file, if there are several
    shards: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(
        cls, cells: Mapping[str, Sequence[str]], name: str, folder: Path = Path(), first: int = 2
    ) -> CsvTable:
        """Build a table from columns of text that are in memory already; its first row has a number."""
        return cls(name, folder, {column: Column(own, first) for column, own in cells.items()})

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def __contains__(self, column: object) -> bool:
        return column in self.columns

    def cells(self, column: str) -> list[str]:
        """Return a column's cells, one a row."""
        return self.columns[column].cells()

    def row(self, at: int) -> int | str:
        """Return the row of the file, its header being row 1, of the example at an index."""
        return next(iter(self.columns.values())).row(at)

    def renamed(self, names: Mapping[str, str]) -> CsvTable:
        """Return the table with columns called anew, {new name: name}; others of a new name are left out."""
        new = {old: name for name, old in names.items()}
        kept = {n: c for n, c in self.columns.items() if n in new or n not in names}
        return replace(self, columns={new.get(n, n): c for n, c in kept.items()})

    def rows(self) -> Iterator[dict[str, str]]:
        """Yield each row as a mapping."""
        for cells in zip(*(column.cells() for column in self.columns.values()), strict=True):
            yield dict(zip(self.columns, cells, strict=True))
