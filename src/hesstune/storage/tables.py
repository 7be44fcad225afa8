"""Read and write tables: CSV files, and files of JSON lines.

Tables are read column by column, equal cells once, so that a million rows fit in memory.
"""

from __future__ import annotations

import contextlib
import csv
import json
import operator
import re
import threading
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from hesstune.checks import parse_number, readable_file
from hesstune.errors import DataError, HesstuneError, RunError, cut, plain
from hesstune.storage.files import Writer, encoding_of, one_line, reading, replace_file

# How cells begin that spreadsheets compute, and the mark that keeps such cells text.
FORMULA_SIGNS = "=+-@\t\r\n＝＋－＠"
MARK = "'"
# Texts that mean a missing label to Python, pandas, R, spreadsheets and databases. In other case they may be
# words, such as a class called none.
MISSING = (
    "", "None", "nan", "NaN", "-nan", "-NaN", "NA", "#NA", "N/A", "n/a", "#N/A", "NULL", "null", "<NA>",
    "NaT",
)  # fmt: skip


def is_missing(value: object, names: Collection[str] = ()) -> bool:
    """Return whether a cell means a missing value; cells in `names` do not.

    Example:
        >>> is_missing(None), is_missing(" NaN "), is_missing("none"), is_missing("NA", ["EU", "NA"])
        (True, True, False, False)
    """
    text = "" if value is None else str(value).strip()
    return text in MISSING and text not in names


def _is_formula(cell: str) -> bool:
    start = cell.lstrip(MARK)
    return start[:1] in FORMULA_SIGNS and start != "" and parse_number(cell) is None


def safe_cell(value: Any) -> Any:
    """Return a value for a cell of a CSV file that spreadsheets open: text that they would compute is marked.

    A text that begins with =, +, -, @, a tab or a line break gets an apostrophe in front; numbers stay. A
    text that has apostrophes before such a sign gets one more, so that `restored_cell` is the inverse.

    Example:
        >>> [safe_cell(value) for value in ("=1+1", "-0.5", -0.5, "-ism", "'=1", "cat's")]
        ["'=1+1", '-0.5', -0.5, "'-ism", "''=1", "cat's"]
    """
    return MARK + value if isinstance(value, str) and _is_formula(value) else value


def restored_cell(cell: str) -> str:
    """Return the text that `safe_cell` made a cell of.

    Example:
        >>> [restored_cell(cell) for cell in ("'=1+1", "''=1", "'cat'", "-0.5")]
        ['=1+1', "'=1", "'cat'", '-0.5']
    """
    return cell[1:] if cell.startswith(MARK) and _is_formula(cell) else cell


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


# Rows that are read before they become columns.
CHUNK = 20_000
# Distinct cells of a column that are kept once in memory, at most.
MOST_SHARED = 10_000
# In files that end so, each line is an object; and in these, a table is in Parquet.
JSON_LINES, PARQUET = (".jsonl", ".ndjson"), ".parquet"
# In files that end so, cells are separated by tabs and quotes are text.
TABS = (".tsv", ".tab")
# What separates the cells of a file if its header holds no comma.
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
# How files begin that are taken for tables, and are none of text.
OTHERS = {
    b"PK\3\4": "a spreadsheet or archive", b"\xd0\xcf\x11\xe0": "an old spreadsheet", b"%PDF": "a PDF file",
    b"PAR1": "a Parquet file", b"ARROW1": "an Arrow file", b"\x1f\x8b": "packed by gzip",
}  # fmt: skip
# Characters of a cell: an unclosed quotation mark makes one cell of everything after it.
MOST_CHARACTERS = 1 << 24


class Column:
    """The text cells of one column, and the rows of its file that they are from.

    Example:
        >>> column = Column(["cat", "dog", "cat"])
        >>> codes, values = column.coded()
        >>> codes.tolist(), values, column.row_of(1)
        ([0, 1, 0], ['cat', 'dog'], 3)
    """

    def __init__(
        self,
        cells: Sequence[str] = (),
        first: int = 2,
        gaps: Sequence[int] = (),
        names: Sequence[str] | _Lines | None = None,
    ) -> None:
        # The first row's number in the file, the rows that blank lines precede; or names of rows.
        self._first, self._gaps, self._names = first, gaps, names
        self._cells: list[str] = []
        self._shared: dict[str, str] = {}
        self._coded: tuple[NDArray[np.int32], list[str]] | None = None
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
    """Columns of cells, all text.

    Attributes:
        name: What messages call it: the path of its file.
        folder: Where relative paths in its cells begin.
        columns: Its columns by name, in the order of the header.
        notes: What was guessed when it was read, in sentences.
    """

    name: str
    folder: Path
    columns: dict[str, Column]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, cells: Mapping[str, Sequence[str]], name: str, folder: Path = Path(), first: int = 2
    ) -> CsvTable:
        """Build a table from columns of text that are in memory already; its first row has a number.

        Example:
            >>> table = CsvTable.of({"text": ["a", "b"], "label": ["0", "1"]}, "the table")
            >>> len(table), list(table.rows())[1]
            (2, {'text': 'b', 'label': '1'})
        """
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
        others = {n: c for n, c in self.columns.items() if n not in names and n not in names.values()}
        return replace(self, columns={**{new: self.columns[old] for new, old in names.items()}, **others})

    def rows(self) -> Iterator[dict[str, str]]:
        """Yield each row as a mapping."""
        for cells in zip(*(column.cells() for column in self.columns.values()), strict=True):
            yield dict(zip(self.columns, cells, strict=True))


def read_table(
    path: str | Path, what: str = "the data file", kind: type[HesstuneError] = DataError
) -> CsvTable:
    """Read a table: a CSV file with a header, JSON Lines (.jsonl, .ndjson) or Parquet (.parquet).

    CSV is in UTF-8, or in UTF-16 or UTF-32. Cells are separated by commas; by tabs, quotes being text, if the
    file ends in .tsv; or else by what separates the names in a header without commas, which the table's notes
    say. Blank lines are left out, and spaces around names of columns.

    Args:
        path: The file.
        what: What it is, for the message if there is none.
        kind: The class of errors.

    Raises:
        HesstuneError: Of the class given: if the file is missing, is no table, has no header or no rows,
            repeats a column, has a row with too few or too many cells, too long a cell, or a cell with a
            list or an object.
    """
    path = readable_file(path, what, kind)
    if path.suffix.lower() in JSON_LINES:
        table, objects = read_json_lines(path, what, kind)
        if objects:
            raise kind(
                f"{path}: '{cut(next(iter(objects)))}' holds objects; a cell must be a text or a number"
            )
        return table
    if path.suffix.lower() == PARQUET:
        return _parquet(path, kind)
    with reading(path, "CSV", kind), _long_cells():
        with path.open("rb") as file:
            start = file.read(8)
        if other := next((what for mark, what in OTHERS.items() if start.startswith(mark)), None):
            raise kind(f"{path} is {other}, not CSV; save its table as CSV in UTF-8")
        encoding = encoding_of(path)
        notes = [f"{path} is read as {encoding.upper()}"] if encoding != "utf-8-sig" else []
        try:
            with path.open(newline="", encoding=encoding) as text:
                return _table(text, path, kind, notes)
        except UnicodeError as error:
            raise kind(_undecodable(path, encoding, error)) from error


def is_frame(data: object) -> bool:
    """Return whether an object is a data frame of pandas, without importing pandas."""
    return type(data).__module__.partition(".")[0] == "pandas" and hasattr(data, "columns")


def frame_table(frame: Any, name: str, kind: type[HesstuneError] = DataError) -> CsvTable:
    """Return a data frame of pandas as a table; an index that is no count of rows becomes the column `id`.

    Args:
        frame: The data frame.
        name: What messages call it.
        kind: The class of errors.

    Raises:
        HesstuneError: Of the class given: if it has no rows, two columns of one name, or a cell with a list
            or an object.
    """
    names = [str(column) for column in frame.columns]
    if not len(frame) or not names:
        raise kind(f"{name} has no rows")
    if repeated := [column for column, count in Counter(names).items() if count > 1]:
        raise kind(f"{name} has two columns called '{cut(repeated[0])}'; give each a name of its own")
    cells = {column: frame.iloc[:, at].tolist() for at, column in enumerate(names)}
    index = [as_cell(value) for value in frame.index.tolist()]
    is_count = type(frame.index).__name__ == "RangeIndex" or index == [str(n) for n in range(len(index))]
    if "id" not in cells and not is_count and all(index) and len(set(index)) == len(index):
        cells = {"id": index, **cells}
    for column, values in cells.items():
        odd = next((n for n, v in enumerate(values) if isinstance(v, list | dict | tuple | np.ndarray)), None)
        if odd is not None:
            raise kind(
                f"{name}, row {odd}: '{cut(column)}' holds a list or an object, not a text or a number"
            )
    columns = {column: [as_cell(value) for value in values] for column, values in cells.items()}
    return CsvTable.of(columns, name, first=0)


def _parquet(path: Path, kind: type[HesstuneError]) -> CsvTable:
    import pandas as pd

    with reading(path, "Parquet", kind):
        try:
            frame = pd.read_parquet(path)
        except (ValueError, pd.errors.ParserError) as error:
            raise kind(f"{path} cannot be read as Parquet ({one_line(error)})") from error
    return replace(frame_table(frame.reset_index(drop=True), str(path), kind), folder=path.parent)


def _table(file: IO[str], path: Path, kind: type[HesstuneError], notes: list[str]) -> CsvTable:
    gaps: list[int] = []
    separator = _separator(file, path, kind, gaps)
    if separator != "," and path.suffix.lower() not in TABS:
        notes.append(f"{path} is read with {SEPARATORS.get(separator, repr(separator))} between its cells")
    rows = _rows(file, path, kind, separator, gaps)
    names = [restored_cell(name.strip()) for name in next(rows, ())]
    if not names:
        raise kind(f"{path} is empty; it needs a header with the names of its columns, and rows")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        called = f"called '{cut(repeated[0])}'" if repeated[0] else "without a name"
        raise kind(f"{path} has two columns {called}; give each a name of its own")
    columns = {name: Column(gaps=gaps) for name in names}
    done = marked = 0
    while chunk := list(islice(rows, CHUNK)):
        for at, row in enumerate(chunk, start=done):
            if len(row) != len(names):
                raise kind(
                    f"{path}, row {at + 2 + bisect_right(gaps, at)}: the number of cells differs from the "
                    f"header's ({len(row)}, not {len(names)}); put quotation marks around a cell that holds "
                    f"{SEPARATORS.get(separator, 'commas')}"
                )
        for column, cells in zip(columns.values(), zip(*chunk, strict=True), strict=True):
            plain = [restored_cell(cell) if cell.startswith(MARK) else cell for cell in cells]
            marked += sum(map(operator.ne, plain, cells))
            column.extend(plain)
        done += len(chunk)
    if not done:
        raise kind(f"{path} has no rows below its header")
    if marked:
        notes.append(
            f"{marked} cells of {path} begin with an apostrophe that keeps spreadsheets from computing them; "
            "they are read without it"
        )
    return CsvTable(str(path), path.parent, columns, tuple(notes))


_LIMIT = threading.RLock()


@contextlib.contextmanager
def _long_cells() -> Iterator[None]:
    """Let cells be long within this block; the limit belongs to the whole process."""
    with _LIMIT:
        limit = csv.field_size_limit(MOST_CHARACTERS)
        try:
            yield
        finally:
            csv.field_size_limit(limit)


def _undecodable(path: Path, encoding: str, error: UnicodeError) -> str:
    """Name the line of a file that is not in its encoding, and what may be done."""
    if encoding != "utf-8-sig":
        return f"{path} cannot be read as {encoding.upper()} ({one_line(error)}); save it in UTF-8"
    content = path.read_bytes()
    try:
        content.decode()
    except UnicodeDecodeError as wrong:
        at, line = wrong.start, content.count(b"\n", 0, wrong.start) + 1
        around = content[max(content.rfind(b"\n", 0, at) + 1, at - 12) : at + 12].decode("cp1252", "replace")
        return (
            f"{path} is not in UTF-8: byte 0x{content[at]:02x} in line {line}, which in Windows-1252 would "
            f"read '{one_line(around)}'; save it in UTF-8 (spreadsheets call it CSV UTF-8), or convert it: "
            "iconv -f CP1252 -t UTF-8"
        )
    return f"{path} cannot be read as CSV ({one_line(error)}); save it in UTF-8"


def _separator(file: IO[str], path: Path, kind: type[HesstuneError], gaps: list[int]) -> str:
    """Return the separator of cells; leave the file at the start of its header or a blank line above."""
    if path.suffix.lower() in TABS:
        return "\t"
    if said := re.fullmatch(r"sep=(.)\s*", file.readline(100)):  # spreadsheets read and write such a line
        gaps.append(0)
        return said[1]
    counts = {}
    for separator in (",", *SEPARATORS):
        file.seek(0)
        with contextlib.suppress(kind):  # a header that cannot be read so
            counts[separator] = len(next(_rows(file, path, kind, separator, []), ()))
    file.seek(0)
    best = max(SEPARATORS, key=lambda s: counts.get(s, 0))
    return best if counts.get(",", 1) < 2 <= counts.get(best, 0) else ","


def _rows(
    file: IO[str], path: Path, kind: type[HesstuneError], separator: str, gaps: list[int]
) -> Iterator[list[str]]:
    """Yield the rows that are not blank, and add to `gaps` the rows below the header after blank lines.

    An error names the line.
    """
    tabs = path.suffix.lower() in TABS and not _has_quoted_header(file)
    reader = csv.reader(
        file, strict=True, delimiter=separator, quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    )
    at = -1
    try:
        for row in reader:
            if row:
                at += 1
                yield row
            else:
                gaps.append(max(at, 0))
    except csv.Error as error:
        reason = one_line(error)
        if "field limit" in reason:
            fix = "close its quotation mark, or cut the text"
            reason = f"a cell has more than {MOST_CHARACTERS:,} characters; {fix}"
        elif "unexpected end" in reason:
            reason = "the file ends within a cell; close its quotation mark"
        raise kind(f"{path} cannot be read as CSV (line {reader.line_num}: {reason})") from error


def _has_quoted_header(file: IO[str]) -> bool:
    """Return whether each name in a header with tabs is in quotation marks, so that cells are, too."""
    at = file.tell()
    names = file.readline(MOST_CHARACTERS).rstrip("\r\n").split("\t")
    file.seek(at)
    return all(len(name) > 1 and name[0] == name[-1] == '"' for name in names)


def write_rows(
    file: IO[str], header: Sequence[str], rows: Iterable[Sequence[object]], lineterminator: str = "\r\n"
) -> None:
    """Write a CSV table that spreadsheets open without computing any of its cells; see `safe_cell`.

    `read_table` returns the cells as they were.
    """
    writer = csv.writer(file, lineterminator=lineterminator)
    writer.writerow([safe_cell(name) for name in header])
    writer.writerows([safe_cell(cell) for cell in row] for row in rows)


def read_rows(path: Path, kind: type[HesstuneError] = RunError) -> list[dict[str, str]]:
    """Return the rows of a small CSV file, such as a run's record; see `read_table`."""
    return list(read_table(path, "the record", kind).rows())


Nested = dict[str, list[dict[str, str]]]
"""{key: an object a line, its values as text}; {} if a line has none."""


def read_json_lines(
    path: str | Path, what: str = "the data file", kind: type[HesstuneError] = DataError
) -> tuple[CsvTable, Nested]:
    """Read a file of JSON objects, one a line: plain values as cells of a table, objects apart.

    Args:
        path: The file, in UTF-8; blank lines are left out.
        what: What it is, for the message if there is none.
        kind: The class of errors.

    Raises:
        HesstuneError: Of the class given: if the file is missing, or a line is no object of plain values and
            objects of plain values; by line.
    """
    path = readable_file(path, what, kind)
    read = _Lines(path, kind)
    with reading(path, "JSON lines", kind), path.open(encoding="utf-8-sig") as file:
        numbered = ((number, line) for number, line in enumerate(file, start=1) if not line.isspace())
        while chunk := list(islice(numbered, CHUNK)):
            read.add(*zip(*chunk, strict=True))
    if not len(read):
        raise kind(f"{path} is empty; it needs an object a line")
    return CsvTable(str(path), path.parent, read.columns), read.nested


class _Lines:
    """Cells and objects of the lines that were read, and the lines' names, as a sequence."""

    def __init__(self, path: Path, kind: type[HesstuneError]) -> None:
        self.columns: dict[str, Column] = {}
        self.nested: Nested = {}
        self._path, self._kind = path, kind
        self._numbers = array("q")

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, at: int) -> str:
        return f"line {self._numbers[at]}"

    def add(self, numbers: Sequence[int], lines: Sequence[str]) -> None:
        """Add the next lines, at these numbers of the file."""
        done, rows = len(self), self._objects(numbers, lines)
        self._numbers.extend(numbers)
        names = {key: key.strip() for key in dict.fromkeys(chain.from_iterable(rows))}
        for name in dict.fromkeys([*self.columns, *self.nested, *names.values()]):
            own = [key for key, plain in names.items() if plain == name] or [name]
            values = [row.get(own[0]) for row in rows]
            for key in own[1:]:
                values = [row.get(key, value) for row, value in zip(rows, values, strict=True)]
            self._extend(name, values, done)

    def _extend(self, name: str, values: list[Any], done: int) -> None:
        kinds = set(map(type, values))
        if dict not in kinds and name not in self.nested:
            cells = values if kinds == {str} else list(map(_cell_of(kinds), values))
            if list in kinds:
                self._refuse(name, done + next(n for n, v in enumerate(values) if isinstance(v, list)))
            if name not in self.columns:
                self.columns[name] = Column([""] * done, names=self)
            self.columns[name].extend(cells)
            return
        before = self.columns.pop(name, None)
        found = self.nested.setdefault(name, [{} for _ in range(done)])
        plain = [] if before is None else [n for n, cell in enumerate(before.cells()) if cell]
        plain += [done + n for n, v in enumerate(values) if not isinstance(v, dict | None)]
        if plain:
            self._refuse(name, plain[0], "is an object in other lines, and none here")
        for n, value in enumerate(values):
            inner = value or {}
            if any(isinstance(v, dict | list) for v in inner.values()):
                self._refuse(name, done + n)
            found.append({key: json_cell(v) for key, v in inner.items()})

    def _refuse(
        self, name: str, at: int, said: str = "must be a text, a number, or an object of these"
    ) -> None:
        raise self._kind(f"{self._path}, {self[at]}: '{cut(name)}' {said}")

    def _objects(self, numbers: Sequence[int], lines: Sequence[str]) -> list[dict[str, Any]]:
        """Parse all lines at once, which is faster, or one by one to name the line that is wrong."""
        try:
            rows = json.loads(f"[[{'],['.join(lines)}]]")
        except (ValueError, RecursionError):
            rows = []
        if len(rows) == len(lines) and all(len(row) == 1 and isinstance(row[0], dict) for row in rows):
            return [row[0] for row in rows]
        found = []
        for number, line in zip(numbers, lines, strict=True):
            where = f"{self._path}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise self._kind(f"{where} is no JSON: {error}") from None
            if not isinstance(row, dict):
                raise self._kind(
                    f'{where} must be an object, such as {{"id": "7", "gpt": {{"yes": 0.9, "no": 0.1}}}}'
                )
            found.append(row)
        return found


def _cell_of(kinds: set[type]) -> Callable[[Any], str]:
    """Return what makes cells of values of these types; most columns are of one type."""
    return str if kinds <= {str, int} else json_cell


def json_cell(value: Any) -> str:
    """Return a value of a JSON file as a cell of a table; see `as_cell`.

    Example:
        >>> json_cell(-1.0), json_cell(0.25), json_cell(True), json_cell(None)
        ('-1', '0.25', 'true', '')
    """
    return str(value).lower() if isinstance(value, bool) else as_cell(value)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file whole or not at all."""
    replace_file(path, csv_writer(header, rows))


def csv_writer(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Writer:
    """Return what writes a table as CSV, for `replace_files`."""

    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8") as file:
            write_rows(file, header, rows)

    return write
