"""Exports of annotation tools and crowds, read as votes: one annotator, one example, one class.

Every tool has a reader in `tool_exports` or `crowd_exports`. It is chosen by the columns or keys that only
this tool writes. It returns the answers that count, and counts the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from hesstune.checks import expanded, readable_file
from hesstune.errors import DataError, listed
from hesstune.storage.columns import CsvTable
from hesstune.storage.files import one_line, reading
from hesstune.storage.table_files import JSON_LINES, SUFFIXES
from hesstune.storage.tables import read_table
from hesstune.weak import crowd_exports as crowds
from hesstune.weak import tool_exports as tools
from hesstune.weak.export_answers import Answer, Export, Record, cell, merged, parsed

__all__ = ["Answer", "Export", "read_export", "read_records"]

# So many records show which tool wrote an export.
SHOWN = 200
Reader = Callable[[Any, str | None], Export]
# Files of a folder that may be exports.
EXPORTS = (".json", *JSON_LINES, ".csv", ".tsv", ".xml", *SUFFIXES["parquet"])


def _keys(records: Sequence[Record]) -> set[str]:
    return {str(key) for record in records[:SHOWN] for key in record}


def _is_argilla(records: Sequence[Record], keys: set[str]) -> bool:
    def of_users(value: Any) -> bool:
        if isinstance(value, str) and "user_id" not in value:
            return False
        value = parsed(value)
        if isinstance(value, dict):
            return {"user_id", "value"} <= value.keys()
        return isinstance(value, list) and any(
            isinstance(v, dict) and {"user_id", "value"} <= v.keys() for v in value
        )

    nested = {"fields", "responses"} <= keys or {"annotation", "annotation_agent", "prediction"} <= keys
    flat = any(key.endswith((".responses.users", ".responses.status")) for key in keys)
    return nested or flat or any(of_users(value) for record in records[:SHOWN] for value in record.values())


def _is_prodigy(records: Sequence[Record], keys: set[str]) -> bool:
    if "answer" not in keys:
        return False
    answers = {cell(record.get("answer")) for record in records[:SHOWN]}
    return answers <= tools.PRODIGY_ANSWERS and bool(keys & {"label", "options", "accept", "_input_hash"})


def _reader_of_records(records: Sequence[Record]) -> Reader | None:
    """Return the reader of a list of objects or of a table's rows, or None for a plain table."""
    keys = _keys(records)
    lists = any(isinstance(r.get(key), list) for r in records[:SHOWN] for key in ("label", "labels"))
    tests: tuple[tuple[Reader, bool], ...] = (
        (tools.label_studio, "data" in keys and bool(keys & {"annotations", "completions", "predictions"})),
        (tools.label_studio_flat, "annotation_id" in keys and bool(keys & {"annotator", "lead_time"})),
        (tools.prodigy, _is_prodigy(records, keys)),
        (tools.argilla, _is_argilla(records, keys)),
        (crowds.mechanical_turk, {"HITId", "WorkerId", "AssignmentStatus"} <= keys),
        (crowds.toloka, any(key.startswith("OUTPUT:") for key in keys)),
        (crowds.open_images, {"ImageID", "LabelName", "Confidence"} <= keys),
        (tools.roboflow, tools.is_one_hot(records)),
        (tools.doccano, "id" in keys and (lists or {"data", "label"} <= keys)),
    )
    return next((reader for reader, fits in tests if fits), None)


def _reader_of_document(document: Record) -> Reader | None:
    values = list(document.values())
    if {"items", "categories"} <= document.keys():
        return tools.datumaro
    if not values or not all(isinstance(value, dict) for value in values):
        return None
    if all("weak_labels" in value for value in values):
        return crowds.wrench
    plain = all(isinstance(label, str | int | float) for value in values for label in value.values())
    return crowds.peerannot if plain else None


def read_records(records: Any, where: str, label_column: str | None = None) -> Export | None:
    """Read a parsed export: a list of objects, or one object.

    Args:
        records: What the file holds.
        where: The file, for messages.
        label_column: The question, control or output that holds the class, if the export has several.

    Returns:
        The votes, or None if this is no export of a known tool.

    Raises:
        DataError: If an example has several classes, or the question is not clear.
    """
    if isinstance(records, dict):
        reader = _reader_of_document(records)
    elif records and isinstance(records, list) and all(isinstance(record, Mapping) for record in records):
        with reading(where, "an export of an annotation tool", DataError):
            reader = _reader_of_records(records)
    else:
        reader = None
    if reader is None:
        return None
    try:
        return reader(records, label_column).finish()
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    except Exception as error:  # a damaged export can have anything anywhere
        tool = reader.__name__.removesuffix("_flat").replace("_", " ")
        raise DataError(
            f"{where} looks like an export of {tool}, but cannot be read: {one_line(error)}"
        ) from error


def read_export(
    path: str | Path, label_column: str | None = None, table: CsvTable | None = None
) -> Export | None:
    """Read an export of an annotation tool: JSON, JSON Lines, CSV, TSV, Parquet, XML, or a folder of these.

    Args:
        path: The file or folder.
        label_column: See `read_records`.
        table: The rows of a CSV or TSV file, if it was read already.

    Returns:
        The votes, or None if this is no export of a known tool.

    Raises:
        DataError: If the file is damaged; or see `read_records`.
    """
    path = expanded(path)
    if path.is_dir():
        return _read_folder(path, label_column)
    path = readable_file(path, "the file of votes")
    suffix = path.suffix.lower()
    if suffix == ".xml":
        return tools.cvat(path)
    if suffix in SUFFIXES["parquet"]:
        return _read_parquet(path, label_column)
    if table is None and suffix not in (".json", *JSON_LINES):
        table = read_table(path, "the file of votes")
    return _read_json(path, label_column) if table is None else _of_table(table, path, label_column)


def _of_table(table: CsvTable, path: Path, label_column: str | None) -> Export | None:
    if path.name == tools.CLASSES_FILE:
        return _of_classes_file(table, label_column)
    if _reader_of_records(list(islice(table.rows(), SHOWN))) is None:
        return None
    return read_records(list(table.rows()), str(path), label_column)


def _read_json(path: Path, label_column: str | None) -> Export | None:
    with reading(path, "JSON", DataError), path.open(encoding="utf-8-sig") as file:
        if path.suffix.lower() not in JSON_LINES:
            return _with_class_names(read_records(json.load(file), str(path), label_column), path)
        first = [json.loads(line) for line in islice(file, SHOWN) if line.strip()]
        if not first or not all(isinstance(record, dict) for record in first):
            return None
        if _reader_of_records(first) is None:
            return None
        rest = [json.loads(line) for line in file if line.strip()]
        return read_records([*first, *rest], str(path), label_column)


def _of_classes_file(table: CsvTable, label_column: str | None) -> Export:
    if len(table.columns) < 3:
        raise DataError(f"{table.name} needs a column of file names and one for each of two classes at least")
    try:
        return tools.roboflow(list(table.rows()), label_column).finish()
    except DataError as error:
        raise DataError(f"{table.name}: {error}") from None


def _read_parquet(path: Path, label_column: str | None) -> Export | None:
    """Read lists and objects as they are, if the columns are those of a tool."""
    import pyarrow.parquet as pq

    with reading(path, "Parquet", DataError):
        file = pq.ParquetFile(path)
        first = next(file.iter_batches(batch_size=SHOWN), None)
        if first is None or _reader_of_records(first.to_pylist()) is None:
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
    files = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in EXPORTS and path.name != "label.json"
    )
    found = {}
    for path in files:
        export = read_export(path, label_column)
        if export is None:
            return None
        found[path.relative_to(folder).as_posix()] = export
    tools_read = dict.fromkeys(export.tool for export in found.values())
    if len(tools_read) > 1:
        raise DataError(f"{folder} has exports of several tools ({listed(tools_read)}); give one file")
    return merged(found) if found else None
