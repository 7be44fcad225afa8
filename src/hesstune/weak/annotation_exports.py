"""Exports of annotation tools and crowds, read as votes: one annotator, one example, one class.

`tool_exports` has a reader for each tool. It is chosen by the columns or keys that only this tool writes. It
returns the answers that count, and counts the others.
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

from hesstune.checks import expanded, readable_file
from hesstune.errors import DataError, listed
from hesstune.storage.columns import CsvTable
from hesstune.storage.files import one_line, reading
from hesstune.storage.table_files import JSON_LINES, SUFFIXES
from hesstune.storage.tables import read_table
from hesstune.weak.export_answers import Export, merged
from hesstune.weak.tool_exports import CLASSES_FILE, ROBOFLOW, SHOWN, Tool, read_cvat, read_tool, tool_of

# Files of a folder that may be exports.
EXPORTS = (".json", *JSON_LINES, ".csv", ".tsv", ".xml", *SUFFIXES["parquet"])


def read_records(
    records: Any, where: str, label_column: str | None = None, tool: Tool | None = None
) -> Export | None:
    """Read a parsed export, a list of objects or one object; None if it is of no known tool.

    `where` is the file, for messages, and `label_column` the question, control or output that holds the
    class, if there are several. DataError is raised if an example has several classes, or the question is not
    clear.
    """
    with reading(where, "an export of an annotation tool", DataError):
        tool = tool or tool_of(records)
    if tool is None:
        return None
    try:
        return read_tool(tool, records, label_column)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    except Exception as error:  # a damaged export can have anything anywhere
        said = f"{where} looks like an export of {tool.name}, but cannot be read: {one_line(error)}"
        raise DataError(said) from error


def read_export(
    path: str | Path, label_column: str | None = None, table: CsvTable | None = None
) -> Export | None:
    """Read an export of an annotation tool: JSON, JSON Lines, CSV, TSV, Parquet, XML, or a folder of these.

    `table` holds the rows of a CSV or TSV file, if it was read already. For the rest see `read_records`.
    """
    path = expanded(path)
    if path.is_dir():
        return _read_folder(path, label_column)
    path = readable_file(path, "the file of votes")
    suffix = path.suffix.lower()
    if suffix == ".xml":
        return read_cvat(path)
    if suffix == ".json":
        with reading(path, "JSON", DataError), path.open(encoding="utf-8-sig") as file:
            content = json.load(file)
        return _with_class_names(read_records(content, str(path), label_column), path)
    if suffix in JSON_LINES:
        with reading(path, "JSON", DataError), path.open(encoding="utf-8-sig") as file:
            first = [json.loads(line) for line in islice(file, SHOWN) if line.strip()]
            if tool_of(first) is None:
                return None
            rest = [json.loads(line) for line in file if line.strip()]
        return read_records([*first, *rest], str(path), label_column)
    if suffix in SUFFIXES["parquet"]:
        return _read_parquet(path, label_column)
    table = table or read_table(path, "the file of votes")
    if path.name == CLASSES_FILE:
        return read_records(list(table.rows()), str(path), label_column, ROBOFLOW)
    if tool_of(list(islice(table.rows(), SHOWN))) is None:
        return None
    return read_records(list(table.rows()), str(path), label_column)


def _read_parquet(path: Path, label_column: str | None) -> Export | None:
    """Read lists and objects as they are, if the columns are those of a tool."""
    import pyarrow.parquet as pq

    with reading(path, "Parquet", DataError):
        file = pq.ParquetFile(path)
        first = next(file.iter_batches(batch_size=SHOWN), None)
        if first is None or tool_of(first.to_pylist()) is None:
            return None
        return read_records(file.read().to_pylist(), str(path), label_column)


def _with_class_names(export: Export | None, path: Path) -> Export | None:
    """Return an export of WRENCH with names of classes, which are in label.json beside it."""
    names = path.parent / "label.json"
    if export is None or export.tool != "WRENCH" or not names.is_file():
        return export
    with reading(names, "names of classes", DataError):
        written = json.loads(names.read_text(encoding="utf-8-sig"))
    if not isinstance(written, dict) or not all(isinstance(name, str) for name in written.values()):
        return export
    export.answers = [a._replace(label=written.get(a.label, a.label)) for a in export.answers]
    export.true = {example: written.get(label, label) for example, label in export.true.items()}
    export.notes.append(f"names of classes are from {names}")
    return export


def _read_folder(folder: Path, label_column: str | None) -> Export | None:
    """Read a folder of exports of one tool, one for each annotator or part; None if a file is no export."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in EXPORTS and path.name != "label.json":
            export = read_export(path, label_column)
            if export is None:
                return None
            found[path.relative_to(folder).as_posix()] = export
    tools = dict.fromkeys(export.tool for export in found.values())
    if len(tools) > 1:
        raise DataError(f"{folder} has exports of several tools ({listed(tools)}); give one file")
    return merged(found) if found else None
