"""Read and write tables: CSV files, JSON Lines, Parquet and Excel files, in one file or several shards.

Tables are read column by column, equal cells once, so that a million rows fit in memory.
"""

from __future__ import annotations

import contextlib
import csv
import json
import operator
import re
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from hesstune.checks import expanded, parse_number, readable_file
from hesstune.errors import DataError, HesstuneError, RunError, cut, listed, plain
from hesstune.storage.columns import Column, CsvTable, RowNames, as_cell, json_cell
from hesstune.storage.files import Writer, encoding_of, one_line, reading, replace_file
from hesstune.storage.table_files import (
    OLD_SHEETS,
    TABS,
    Shards,
    excel_rows,
    form_of,
    parquet_values,
    sheet_of,
    table_files,
)

# How cells begin that spreadsheets compute, and the mark that keeps such cells text.
FORMULA_SIGNS = "=+-@\t\r\n＝＋－＠"
MARK = "'"


def _is_formula(cell: str) -> bool:
    start = cell.lstrip(MARK)
    return start[:1] in FORMULA_SIGNS and start != "" and parse_number(cell) is None


def safe_cell(value: Any) -> Any:
    """Return a value for a cell of a CSV file that spreadsheets open: text that they would compute is marked.

    A text that begins with =, +, -, @, a tab or a line break gets an apostrophe in front; numbers stay. A
    text that has apostrophes before such a sign gets one more, so that `restored_cell` is the inverse.
    """
    return MARK + value if isinstance(value, str) and _is_formula(value) else value


def restored_cell(cell: str) -> str:
    """Return the text that `safe_cell` made a cell of."""
    return cell[1:] if cell.startswith(MARK) and _is_formula(cell) else cell


# Rows that are read before they become columns.
CHUNK = 20_000
# What separates the cells of a file if its header holds no comma.
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
# How files begin that are taken for tables, and are none of text.
OTHERS = {
    b"PK\3\4": "a spreadsheet or archive", b"\xd0\xcf\x11\xe0": "an old spreadsheet", b"%PDF": "a PDF file",
    b"PAR1": "a Parquet file (write parquet:PATH)", b"ARROW1": "an Arrow file",
    b"\x1f\x8b": "packed by gzip (unpack it)",
}  # fmt: skip
# Characters of a cell: an unclosed quotation mark makes one cell of everything after it.
MOST_CHARACTERS = 1 << 24


def read_table(
    path: str | Path,
    what: str = "the data file",
    kind: type[HesstuneError] = DataError,
    form: str = "csv",
) -> CsvTable:
    """Read a table: a file, or the shards in a folder or of a pattern such as part-*.csv, one after another.

    A file is CSV with a header, JSON Lines (.jsonl, .ndjson, or a list of objects in .json), Parquet
    (.parquet) or Excel (.xlsx, perhaps with #SHEET after it), by its suffix.

    CSV is in UTF-8, or in UTF-16 or UTF-32. Cells are separated by commas; by tabs, quotes being text, if the
    file ends in .tsv; or else by what separates the names in a header without commas, which the table's notes
    say. Blank lines are left out, and spaces around names of columns. Lists and objects of JSON Lines and
    Parquet become cells of JSON (`Column.nested`), and bytes are kept apart (`Column.objects`).

    Args:
        path: The file, folder or pattern.
        what: What it is, for the message if there is none.
        kind: The class of errors, for a file that is missing or no table, and for shards that differ.
        form: The form of a file of another suffix, a key of `hesstune.storage.table_files.SUFFIXES`.
    """
    path, sheet = sheet_of(expanded(path))
    shards = table_files(path, what, kind)
    if shards is None:
        return _read_file(readable_file(path, what, kind), what, kind, form, sheet)
    tables = [_read_file(file, what, kind, form, None) for file in shards.files]
    return _joined(path, shards, tables, kind)


def _read_file(path: Path, what: str, kind: type[HesstuneError], form: str, sheet: str | None) -> CsvTable:
    form = form_of(path) or form
    if path.suffix.lower() in OLD_SHEETS:
        raise kind(f"{path} is a spreadsheet that is not read; save it as .xlsx or as CSV in UTF-8")
    if form == "jsonl":
        return _json_table(path, kind)
    if form == "parquet":
        found, notes = parquet_values(path, kind)
        columns = {name: _column_of(*own) for name, own in found.items()}
        if not columns or not len(next(iter(columns.values()))):
            raise kind(f"{path} has no rows")
        return CsvTable(str(path), path.parent, columns, tuple(notes))
    if form == "excel":
        return _excel_table(path, sheet, kind)
    with reading(path, "CSV", kind), _long_cells():
        with path.open("rb") as file:
            start = file.read(8)
        if other := next((what for mark, what in OTHERS.items() if start.startswith(mark)), None):
            raise kind(f"{path} is {other}, not CSV; save its table as CSV in UTF-8")
        encoding = encoding_of(path)
        notes = [f"{path} is read as {encoding.upper()}"] if encoding != "utf-8-sig" else []
        try:
            with path.open(newline="", encoding=encoding) as text:
                return _csv_table(text, path, kind, notes)
        except UnicodeError as error:
            raise kind(_undecodable(path, encoding, error)) from error


def is_frame(data: object) -> bool:
    """Return whether an object is a data frame of pandas, without importing pandas."""
    return type(data).__module__.partition(".")[0] == "pandas" and hasattr(data, "columns")


def frame_values(frame: Any, name: str) -> tuple[dict[str, list[Any]], list[str]]:
    """Return {column: values} of a pandas data frame, and its index as ids; none if it only counts the rows.

    DataError is raised if it has no rows, or two columns of one name.
    """
    names = [str(column) for column in frame.columns]
    if not len(frame) or not names:
        raise DataError(f"{name} has no rows")
    if repeated := [column for column, count in Counter(names).items() if count > 1]:
        raise DataError(f"{name} has two columns named '{cut(repeated[0])}'; give each a name of its own")
    index = [as_cell(value) for value in frame.index.tolist()]
    is_count = index == [str(n) for n in range(len(index))]
    ids = index if not is_count and all(index) and len(set(index)) == len(index) else []
    return {column: frame.iloc[:, at].tolist() for at, column in enumerate(names)}, ids


def frame_table(frame: Any, name: str) -> CsvTable:
    """Return a pandas data frame as a table; an index that is no count of rows becomes the column `id`."""
    cells, ids = frame_values(frame, name)
    if ids and "id" not in cells and type(frame.index).__name__ != "RangeIndex":
        cells = {"id": ids, **cells}
    for column, values in cells.items():
        odd = next((n for n, v in enumerate(values) if isinstance(v, list | dict | tuple | np.ndarray)), None)
        if odd is not None:
            raise DataError(
                f"{name}, row {odd}: '{cut(column)}' holds a list or an object, not a text or a number"
            )
    columns = {column: [as_cell(value) for value in values] for column, values in cells.items()}
    return CsvTable.of(columns, name, first=0)


def _column_of(values: Sequence[Any], class_names: list[str] | None) -> Column:
    """Return a column of values of any kind; its first row is row 0."""
    column = Column(first=0)
    column.class_names = class_names
    if any(
        isinstance(v, bytes) or (isinstance(v, dict) and isinstance(v.get("bytes"), bytes)) for v in values
    ):
        try:
            values = [v.decode() if isinstance(v, bytes) else v + "" if v is not None else v for v in values]
        except (UnicodeDecodeError, TypeError):  # no text
            column.objects = list(values)
            paths = [v.get("path") if isinstance(v, dict) else None for v in values]
            column.extend([as_cell(path) for path in paths])
            return column
    kinds = [isinstance(v, list | dict | tuple) for v in values]
    if any(kinds):
        column.nested = kinds.index(True)
        values = [_nested_cell(v) if nested else v for v, nested in zip(values, kinds, strict=True)]
    column.extend([as_cell(value) for value in values])
    return column


def _nested_cell(value: Any) -> str:
    return plain(json.dumps(value, ensure_ascii=False, default=str))


def _excel_table(path: Path, sheet: str | None, kind: type[HesstuneError]) -> CsvTable:
    name, rows, notes = excel_rows(path, sheet, kind)
    has_value = [at for row in rows.values() for at, cell in enumerate(row) if as_cell(cell).strip()]
    width = max(has_value) + 1
    first, *numbers = rows
    names, *cells = [[as_cell(cell) for cell in (*row, *[None] * width)[:width]] for row in rows.values()]
    names = [own.strip() for own in names]
    if repeated := [own for own, count in Counter(names).items() if count > 1]:
        called = f"named '{cut(repeated[0])}'" if repeated[0] else "without a name"
        raise kind(
            f"{path}, sheet '{name}', has two columns {called} in its first row with cells, row {first}; "
            "give each a name of its own there"
        )
    if not cells:
        raise kind(f"{path}, sheet '{name}', has no rows below its header")
    row_names = RowNames(len(cells), lambda at: str(numbers[at]))
    columns = {
        own: Column(column, names=row_names)
        for own, column in zip(names, zip(*cells, strict=True), strict=True)
    }
    return CsvTable(str(path), path.parent, columns, tuple(notes))


def _joined(path: Path, shards: Shards, tables: list[CsvTable], kind: type[HesstuneError]) -> CsvTable:
    """Return the rows of all shards as one table."""
    first, where = tables[0], [file.relative_to(shards.folder).as_posix() for file in shards.files]
    for name, table in zip(where, tables, strict=True):
        if table.columns.keys() != first.columns.keys():
            lacks = [(name, c) for c in first.columns if c not in table]
            which, column = (lacks or [(where[0], c) for c in table.columns if c not in first])[0]
            raise kind(
                f"the files in {path} have different columns: {cut(which)} has no column '{cut(column)}' "
                f"({cut(where[0])}: {listed(first.columns)}; {cut(name)}: {listed(table.columns)}); name one "
                "file, or a pattern such as part-*.csv"
            )
    ends = np.cumsum([len(table) for table in tables]).tolist()

    def row(at: int) -> str:
        shard = bisect_right(ends, at)
        return f"{tables[shard].row(at - (ends[shard] - len(tables[shard])))} of {where[shard]}"

    names = RowNames(ends[-1], row)
    columns = {
        name: _concatenated([table.columns[name] for table in tables], names) for name in first.columns
    }
    above = [shards.values_of(file) for file in shards.files]
    for name in dict.fromkeys(name for own in above for name in own):
        if name in columns:
            raise kind(f"{path} has folders {cut(name)}=… and a column '{cut(name)}'; rename one of them")
        cells = [
            own.get(name, "") for own, table in zip(above, tables, strict=True) for _ in range(len(table))
        ]
        columns[name] = Column(cells, names=names)
    notes = [f"{len(tables)} files of {path} are read one after another, {where[0]} to {where[-1]}"]
    if len(tables) == 1:
        notes = [f"of {path}, the file {where[0]} is read"]
    if shards.left:
        notes.append(
            f"{len(shards.left)} other files of {path} left out: "
            f"{listed((file.relative_to(shards.folder).as_posix() for file in shards.left), 3)}"
        )
    for table in tables:
        notes += [note for note in table.notes if note not in notes]
    return CsvTable(str(path), shards.folder, columns, tuple(notes), tuple(zip(where, ends, strict=True)))


def _concatenated(columns: Sequence[Column], names: RowNames) -> Column:
    found, start = Column(names=names), 0
    for column in columns:
        if column.nested is not None and found.nested is None:
            found.nested = start + column.nested
        found.extend(column.cells())
        start += len(column)
    if any(column.objects is not None for column in columns):
        found.objects = [v for column in columns for v in column.objects or [None] * len(column)]
    named = [column.class_names for column in columns]
    found.class_names = named[0] if all(own == named[0] for own in named) else None
    return found


def _csv_table(file: IO[str], path: Path, kind: type[HesstuneError], notes: list[str]) -> CsvTable:
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


def _json_table(path: Path, kind: type[HesstuneError]) -> CsvTable:
    """Read JSON objects as a table: one a line, or a list of them; lists and objects become cells of JSON."""
    columns: dict[str, Column] = {}
    gaps: list[int] = []
    done, first = 0, 1  # rows are lines, or items from 0
    with reading(path, "JSON lines", kind), path.open(encoding=encoding_of(path)) as file:
        start = file.read(1000).lstrip()[:1]
        file.seek(0)
        if start == "[":
            first = 0
            found = json.load(file)
            rows: Iterator[dict[str, Any]] = (
                _as_object(row, f"{path}, item {at}", kind) for at, row in enumerate(found)
            )
        else:
            rows = _json_rows(file, path, kind, gaps)
        while chunk := list(islice(rows, CHUNK)):
            for name in dict.fromkeys(name for row in chunk for name in row):
                column = columns.setdefault(name, Column(first=first, gaps=gaps))
                column.extend([""] * (done - len(column)))
                values = [row.get(name) for row in chunk]
                kinds = [isinstance(value, list | dict) for value in values]
                if column.nested is None and True in kinds:
                    column.nested = done + kinds.index(True)
                column.extend(
                    [
                        _nested_cell(v) if nested else json_cell(v)
                        for v, nested in zip(values, kinds, strict=True)
                    ]
                )
            done += len(chunk)
    if not done:
        raise kind(f"{path} is empty; it needs an object a line")
    for column in columns.values():
        column.extend([""] * (done - len(column)))
    return CsvTable(str(path), path.parent, columns)


def _json_rows(
    file: IO[str], path: Path, kind: type[HesstuneError], gaps: list[int]
) -> Iterator[dict[str, Any]]:
    """Yield the objects of lines that are not blank, and add to `gaps` the rows after blank lines."""
    at = 0
    for number, line in enumerate(file, start=1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise kind(f"{where} is no JSON: {error}") from None
            yield _as_object(row, where, kind)
            at += 1
        else:
            gaps.append(at)


def _as_object(row: Any, where: str, kind: type[HesstuneError]) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise kind(f'{where} must be an object, such as {{"text": "fine", "label": "good"}}')
    return {str(key).strip(): value for key, value in row.items()}


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file whole or not at all."""
    replace_file(path, csv_writer(header, rows))


def csv_writer(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Writer:
    """Return what writes a table as CSV, for `replace_files`."""

    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8") as file:
            write_rows(file, header, rows)

    return write
