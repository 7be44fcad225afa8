"""The one reader of JSON lines: an object a line, as a table of text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hesstune.checks import readable_file
from hesstune.errors import DataError, HesstuneError, cut, plain
from hesstune.storage.csv_table import Column, CsvTable
from hesstune.storage.reading import reading

__all__ = ["JSON_LINES", "Nested", "read_json_lines"]

# In files that end so, each line is an object.
JSON_LINES = (".jsonl", ".ndjson")
Nested = dict[str, list[dict[str, str]]]
"""{key: an object a line, its values as text}; {} where a line has none."""


def read_json_lines(
    path: str | Path, what: str = "the data file", kind: type[HesstuneError] = DataError
) -> tuple[CsvTable, Nested]:
    """Read a file of JSON objects, one a line: plain values as cells of a table, objects apart.

    Args:
        path: The file, in UTF-8; blank lines are left out.
        what: What it is, for the message where there is none.
        kind: The class of errors.

    Raises:
        HesstuneError: Of the class given: if the file is missing, or a line is no object of plain values and
            objects of plain values; by line.
    """
    path = readable_file(path, what, kind)
    found: list[tuple[int, dict[str, Any]]] = []
    with reading(path, "JSON lines", kind), path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                found.append((number, _object(line, f"{path}, line {number}", kind)))
    if not found:
        raise kind(f"{path} is empty; it needs an object a line")
    names = list(dict.fromkeys(key for _, row in found for key in row))
    nested = [key for key in names if any(isinstance(row.get(key), dict) for _, row in found)]
    for number, row in found:
        for key in nested:
            if row.get(key) is not None and not isinstance(row[key], dict):
                raise kind(f"{path}, line {number}: '{cut(key)}' is an object in other lines, and none here")
    rows = [f"line {number}" for number, _ in found]
    columns = {
        key: Column([_text(row.get(key)) for _, row in found], names=rows)
        for key in names
        if key not in nested
    }
    apart = {
        key: [{name: _text(v) for name, v in (row.get(key) or {}).items()} for _, row in found]
        for key in nested
    }
    return CsvTable(str(path), path.parent, columns), apart


def _object(line: str, where: str, kind: type[HesstuneError]) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise kind(f"{where} is no JSON: {error}") from None
    if not isinstance(row, dict):
        raise kind(f'{where} must be an object, such as {{"id": "7", "gpt": {{"yes": 0.9, "no": 0.1}}}}')
    for key, value in row.items():
        inner = value.values() if isinstance(value, dict) else (value,)
        if any(isinstance(v, dict | list) for v in inner):
            raise kind(f"{where}: '{cut(key)}' must be a text, a number, or an object of these")
    return {str(key).strip(): value for key, value in row.items()}


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return plain(value) if isinstance(value, str) else repr(value)
