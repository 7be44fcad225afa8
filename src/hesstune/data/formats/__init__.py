"""Data formats: what a data string such as `csv:reviews.csv` names; each format is a file."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from hesstune.checks import expanded
from hesstune.errors import DataError, unknown_name
from hesstune.resizing import Size

if TYPE_CHECKING:
    from hesstune.data.examples import Listing
    from hesstune.data.formats._base import DataFormat
    from hesstune.data.reading import Reading

FORMATS = tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")))
# Formats that name no path: built-in data, and objects given in Python.
WITHOUT_PATH = ("digits", "memory")
WITH_PATH = tuple(name for name in FORMATS if name not in WITHOUT_PATH)


def data_format(name: str) -> type[DataFormat]:
    """Return the class of a data format by its name.

    Raises:
        DataError: If there is none, with the nearest name.
    """
    if name not in FORMATS:
        raise unknown_name("data", name, FORMATS, DataError)
    found: type[DataFormat] = importlib.import_module(f"{__name__}.{name}").FORMAT
    return found


def is_table(name: str) -> bool:
    """Tell whether a format is one table in a file."""
    return name in FORMATS and data_format(name).is_table


def _format_of(path: str) -> str:
    """Return the format that a path seems to have."""
    if expanded(path).is_dir():
        return "folder"
    suffix = expanded(path).suffix.lower()
    return next((name for name in WITH_PATH if suffix in data_format(name).suffixes), "csv")


def listing(data: Any, size: Size, labelled: bool = True, how: Reading | None = None) -> Listing:
    """List the examples of a data string or an object.

    Args:
        data: A data string; see `docs/howto/own-data.md`. Or an object; see `hesstune.data.formats.memory`.
        size: Side in pixels, or rule, of images that need no decoding later: built-in and in memory.
        labelled: Whether labels are required. If not, a flat folder and a table without labels can be read.
        how: Named columns, how votes become labels, and the background of transparent images.

    Raises:
        DataError: If the data cannot be used, with what is needed.
    """
    from hesstune.data.reading import Reading

    how = how or Reading()
    if not isinstance(data, str):
        from hesstune.data.formats.memory import read_object

        return read_object(data, size, labelled, how)
    name, _, path = data.partition(":")
    if name not in FORMATS and expanded(data).exists():
        raise DataError(f"data '{data}' is a path; write {_format_of(data)}:{data}")
    kind = data_format(name)
    if (name in WITHOUT_PATH) == bool(path):
        raise DataError(f"data '{data}' must be written {kind.written}")
    if how.columns.demanded and not kind.has_columns:
        raise DataError(
            f"--{how.columns.demanded[0]}-column names a column, and {name} data has none; leave it out"
        )
    return kind.read(str(expanded(path)) if path.startswith("~") else path, size, labelled, how)
