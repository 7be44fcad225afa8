"""Data formats: what a data string such as `csv:reviews.csv` names; each format is a file."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hesstune.checks import expanded
from hesstune.errors import DataError, unknown_name
from hesstune.resizing import Size
from hesstune.storage.table_files import PATTERN, shards_of, sheet_of

if TYPE_CHECKING:
    from hesstune.data.examples import Listing
    from hesstune.data.formats._base import DataFormat
    from hesstune.data.reading import Reading

FORMATS = tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")))
# Formats that name no path: built-in data, and objects given in Python.
WITHOUT_PATH = ("digits", "memory")
WITH_PATH = tuple(name for name in FORMATS if name not in WITHOUT_PATH)


def data_format(name: str) -> type[DataFormat]:
    """Return the class of a data format by its name; DataError if there is none, with the nearest name."""
    if name not in FORMATS:
        raise unknown_name("data", name, FORMATS, DataError)
    found: type[DataFormat] = importlib.import_module(f"{__name__}.{name}").FORMAT
    return found


def is_table(name: str) -> bool:
    """Tell whether a format is a table in files."""
    return name in FORMATS and data_format(name).is_table


def resolved(data: str) -> tuple[str, str, list[str]]:
    """Return the format and the path that a data string names, and a note if it does not write the format.

    A string without a format is a path: the one format that recognises it. `hf:PATH` and tables may name a
    path of another format, too. DataError is raised if no format recognises the path or several do, with the
    choices; or the format named is another than the path's.
    """
    name, colon, path = data.partition(":")
    if name in FORMATS and (not _exists(data) or not colon):
        if (name in WITHOUT_PATH) == bool(path):
            raise DataError(f"data '{data}' must be written {data_format(name).written}")
        return _of_format(name, path)
    if not _exists(data):
        if colon or not any(sign in data for sign in "./\\*"):
            raise unknown_name("data", name, FORMATS, DataError)
        raise DataError(
            f"data '{data}' is no format, and no file or folder of that name exists; {_choices()}"
        )
    found = recognised(data)
    if len(found) != 1:
        state = (
            "a path of a kind that is not known"
            if not found
            else f"read in several ways: {_ways(found, data)}"
        )
        raise DataError(f"data '{data}' is {state}; {_choices() if not found else 'write one of them'}")
    return found[0], _home(data), [f"{data} is read as {found[0]}:{data}"]


def _of_format(name: str, path: str) -> tuple[str, str, list[str]]:
    """Return a format and a path, or the path's own format."""
    own = data_format(name)
    where = Path(_home(path))
    # A folder may hold tables beside images that are not in folders of classes yet.
    # Vectors may be in files of any kind, which its reader names.
    is_own = name in (*WITHOUT_PATH, "features") or (name == "folder" and where.is_dir())
    is_own = is_own or own.recognises(where)
    is_other = not is_own and _exists(path)
    others = recognised(path) if is_other else []
    if len(others) == 1 and (name == "hf" or (own.is_table and is_table(others[0]))):
        return others[0], _home(path), [f"{name}:{path} is read as {others[0]}:{path}"]
    if others and name != "hf":
        raise DataError(f"{name}:{path} names what is no {name} data; write {_ways(others, path)}")
    return name, _home(path), []


def recognised(path: str) -> list[str]:
    """Return the names of the formats that a path may have."""
    where = Path(_home(path))
    found = [name for name in WITH_PATH if data_format(name).recognises(where)]
    return ["hf"] if "hf" in found else found


def table_paths(data: str) -> list[Path]:
    """Return the files of a table or an archive that a data string names."""
    _, path, _ = resolved(data)
    file = sheet_of(path)[0]
    shards = shards_of(file)
    if shards is not None:
        return shards.files
    return [file] if file.is_file() else []


def _home(path: str) -> str:
    return str(expanded(path)) if path.startswith("~") else path


def _exists(path: str) -> bool:
    where = sheet_of(_home(path))[0]
    try:
        if where.exists():
            return True
        shards = shards_of(where) if PATTERN.search(path) else None
    except (OSError, ValueError):  # a name too long, or with a NUL
        return False
    return shards is not None and bool(shards.files)


def _ways(names: list[str], path: str) -> str:
    return " or ".join(f"{name}:{path}" for name in names)


def _choices() -> str:
    return "write " + ", ".join(f"{name}:PATH" for name in WITH_PATH) + " or digits"


def listing(data: Any, size: Size, labelled: bool = True, how: Reading | None = None) -> Listing:
    """List the examples of a data string (`docs/howto/own-data.md`) or an object (`formats/memory.py`).

    Args:
        data: A data string or an object.
        size: Side in pixels, or rule, of images that need no decoding later: built-in and in memory.
        labelled: Whether labels are required. If not, a flat folder and a table without labels can be read.
        how: Named columns, how votes become labels, and the background of transparent images.
    """
    from dataclasses import replace

    from hesstune.data.reading import Reading

    how = how or Reading()
    if not isinstance(data, str):
        from hesstune.data.formats.memory import read_object

        return read_object(data, size, labelled, how)
    name, path, notes = resolved(data)
    kind = data_format(name)
    if how.columns.demanded and not kind.has_columns:
        raise DataError(
            f"--{how.columns.demanded[0]}-column names a column, and {name} data has none; leave it out"
        )
    if how.confidence is not None and not kind.has_columns:
        raise DataError(f"--confidence-column names a column, and {name} data has none; leave it out")
    found = kind.read(path, size, labelled, how)
    return replace(found, notes=[*notes, *found.notes]) if notes else found
