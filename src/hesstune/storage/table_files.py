"""The files of a table, one or several shards, and the values in Parquet and Excel files."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from hesstune.errors import HesstuneError, MissingExtraError, cut, listed
from hesstune.storage.files import reading

# The suffixes of each kind of table. In .jsonl each line is an object; in .tsv tabs separate cells and quotes
# are text.
TABS, JSON_LINES = (".tsv", ".tab"), (".jsonl", ".ndjson")
SUFFIXES = {
    "csv": (".csv", *TABS),
    "jsonl": (*JSON_LINES, ".json"),
    "parquet": (".parquet", ".pq"),
    "excel": (".xlsx", ".xlsm"),
}
# Suffixes of spreadsheets that are not read.
OLD_SHEETS = (".xls", ".xlsb", ".ods")
# Characters of a pattern such as part-*.csv.
PATTERN = re.compile(r"[*?\[]")
# Files that describe a data set and are no tables.
DESCRIPTIONS = {f"{name}.json" for name in ("dataset_infos", "dataset_info", "state", "config")}
# How Spark and Hive name the folder of missing values.
HIVE_MISSING = "__HIVE_DEFAULT_PARTITION__"


def form_of(path: Path) -> str | None:
    """Return the kind of table that a file's suffix says, a key of SUFFIXES, or None."""
    suffix = path.suffix.lower()
    return next((form for form, own in SUFFIXES.items() if suffix in own), None)


def sheet_of(path: str | Path) -> tuple[Path, str | None]:
    """Return a path, and the sheet that follows it as FILE.xlsx#SHEET, or None."""
    whole = Path(path)
    name, sign, sheet = whole.name.rpartition("#")
    if sign and sheet and form_of(Path(name)) == "excel" and not whole.exists():
        return whole.with_name(name), sheet
    return whole, None


@dataclass(frozen=True)
class Shards:
    """The files of one table."""

    files: list[Path]  # the files, part-2 before part-10
    folder: Path  # where relative paths in their cells begin
    left: list[Path]  # files that are no tables

    def values_of(self, file: Path) -> dict[str, str]:
        """Return {column: value} of the folders COLUMN=VALUE, as Spark and Hive write them, above a file."""
        above = (part.partition("=") for part in file.parent.relative_to(self.folder).parts)
        return {name: "" if value == HIVE_MISSING else unquote(value) for name, sign, value in above if sign}


def shards_of(path: Path) -> Shards | None:
    """Return the tables in a folder and below, or those that a pattern matches; None of any other path.

    Hidden files and those that begin with an underscore, such as _SUCCESS, are no shards.
    """
    if path.is_dir():
        folder, found = path, [p for p in path.rglob("*") if p.is_file()]
        inner = {p: p.relative_to(path).parts for p in found}
        found = [p for p in found if not any(part.startswith((".", "_")) for part in inner[p])]
    elif PATTERN.search(str(path)) and not path.exists():
        fixed = path.parts[:-1]
        depth = next((at for at, part in enumerate(path.parts) if PATTERN.search(part)), len(fixed))
        folder = Path(*path.parts[:depth])
        try:
            found = [p for p in folder.glob(str(Path(*path.parts[depth:]))) if p.is_file()]
        except (ValueError, NotImplementedError, OSError):
            found = []
        found = [p for p in found if not p.name.startswith((".", "_"))]
    else:
        return None
    found.sort(key=lambda p: _natural_key(p.relative_to(folder).as_posix()))
    tables = [p for p in found if form_of(p) is not None and p.name.lower() not in DESCRIPTIONS]
    return Shards(tables, folder, [p for p in found if p not in set(tables)])


def _natural_key(name: str) -> list[tuple[int, str]]:
    parts = re.split("([0-9]+)", name)
    return [(int(part), "") if at % 2 else (-1, part) for at, part in enumerate(parts)]


def table_files(path: Path, what: str, kind: type[HesstuneError]) -> Shards | None:
    """Return the shards that a path names, None if it is one file; there must be some, of one kind."""
    shards = shards_of(path)
    if shards is None:
        return None
    if not shards.files:
        state = "is a folder without a table" if path.is_dir() else "matches no file that is a table"
        suffixes = listed((suffix for own in SUFFIXES.values() for suffix in own), 20)
        raise kind(f"{what} {path} {state} ({suffixes})")
    forms = {form_of(file): file for file in reversed(shards.files)}
    if len(forms) > 1:
        shown = listed(file.relative_to(shards.folder) for file in reversed(forms.values()))
        raise kind(
            f"{path} holds tables of several kinds ({shown}); name one file, or a pattern such as "
            f"{shards.folder / '*'}{shards.files[0].suffix}"
        )
    return shards


def parquet_values(
    path: Path, kind: type[HesstuneError]
) -> tuple[dict[str, tuple[list[Any], list[str] | None]], list[str]]:
    """Return {column: (values, names of the classes whose indices they are, or None)}, and notes.

    The index of a pandas DataFrame is a column, too, unless it only numbers the rows: one without a name is
    the column `id` if there is none.
    """
    import pyarrow.parquet as parquet

    with reading(path, "Parquet", kind):
        table = parquet.ParquetFile(path).read()
        found = {str(name): table.column(at).to_pylist() for at, name in enumerate(table.column_names)}
    if len(found) < table.num_columns:
        raise kind(f"{path} has two columns of one name; give each a name of its own")
    details = table.schema.metadata or {}
    names = _class_names(details.get(b"huggingface"))
    notes = []
    indices = [found.pop(name) for name in list(found) if re.fullmatch(r"__index_level_\d+__", name)]
    for own in [*indices, *_numbered_index(details.get(b"pandas"), table.num_rows)]:
        if "id" not in found and len(set(own)) == len(own) and None not in own:
            found["id"] = own
            notes.append(f"the ids are the index of the DataFrame in {path.name}")
    return {name: (own, names.get(name)) for name, own in found.items()}, notes


def _numbered_index(description: bytes | None, n: int) -> list[list[int]]:
    """Return the index of a DataFrame that numbers its rows otherwise than 0, 1, 2, …, or nothing."""
    try:
        found = [own for own in json.loads(description or b"{}")["index_columns"] if isinstance(own, dict)]
        numbers = [list(range(own["start"], own["stop"], own["step"])) for own in found]
    except (ValueError, KeyError, TypeError, MemoryError, OverflowError):
        return []
    return [own for own in numbers if len(own) == n and own != list(range(n))]


def _class_names(description: bytes | None) -> dict[str, list[str]]:
    """Return {column: names} of the columns that datasets describes as labels of classes."""
    try:
        features = json.loads(description or b"{}")["info"]["features"]
        named = {str(n): own["names"] for n, own in features.items() if own.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {n: [str(name) for name in own] for n, own in named.items() if isinstance(own, list)}


Rows = dict[int, tuple[Any, ...]]
"""{number of a row from 1: its cells} of the rows of a sheet that have cells."""


def excel_rows(path: Path, name: str | None, kind: type[HesstuneError]) -> tuple[str, Rows, list[str]]:
    """Return the name and rows of a sheet, the one named or the only visible one with cells, and notes.

    Values of formulas are those that were stored when the file was saved; there must be some. If several
    sheets have cells, one must be named.
    """
    try:
        import openpyxl
    except ImportError:
        raise MissingExtraError("openpyxl", "excel", f"the Excel file {path.name}") from None
    with (
        reading(path, "Excel", kind),
        contextlib.closing(_open_workbook(openpyxl, path, data_only=True)) as book,
    ):
        titles = [sheet.title for sheet in book.worksheets]
        found = {
            sheet.title: rows
            for sheet in book.worksheets
            if (sheet.title == name if name is not None else sheet.sheet_state == "visible")
            and (rows := _rows(sheet))
        }
        if len(found) == 1:
            _refuse_uncomputed(openpyxl, path, *next(iter(found.items())), kind)
    if not found:
        which = "cells in a visible sheet" if name is None else f"sheet '{cut(name)}' with cells"
        raise kind(f"{path} has no {which}; its sheets are {listed(titles)}")
    (title, rows), *others = found.items()
    if others:
        shown = listed(f"'{own}' ({len(cells)} rows)" for own, cells in found.items())
        raise kind(f"{path} has several sheets, {shown}; name one: {path.name}#{title}")
    left = [own for own in titles if own != title]
    said = f"the sheet '{title}' of {path.name} is read; others are left out: {listed(left)}"
    return title, rows, [said] if left else []


def _open_workbook(openpyxl: Any, path: Path, data_only: bool) -> Any:
    return openpyxl.load_workbook(path, read_only=True, data_only=data_only)


def _rows(sheet: Any) -> Rows:
    """Return the rows of a sheet that have cells; none of a sheet with a diagram alone."""
    if not hasattr(sheet, "iter_rows"):
        return {}
    if hasattr(sheet, "reset_dimensions"):
        sheet.reset_dimensions()  # some programs store wrong ones
    numbered = enumerate(sheet.iter_rows(values_only=True), start=1)
    return {n: row for n, row in numbered if any(cell is not None and str(cell).strip() for cell in row)}


def _refuse_uncomputed(openpyxl: Any, path: Path, title: str, rows: Rows, kind: type[HesstuneError]) -> None:
    """Raise an error for a formula whose value was never computed: it would be read as a missing value."""
    width = max(map(len, rows.values()))
    if all(len(row) == width and None not in row for row in rows.values()):
        return
    with contextlib.closing(_open_workbook(openpyxl, path, data_only=False)) as book:
        sheet = book[title]
        sheet.reset_dimensions()
        for number, cells in enumerate(sheet.iter_rows(), start=1):
            row = rows.get(number, ())
            for at, cell in enumerate(cells):
                if cell.data_type == "f" and (at >= len(row) or row[at] is None):
                    raise kind(
                        f"{path}, row {number}: the formula {cut(cell.value, 40)} has no stored value; open "
                        "the file in a spreadsheet program and save it, or write values"
                    )
