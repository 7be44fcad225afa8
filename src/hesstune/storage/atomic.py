"""Write files whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from hesstune.errors import RunError
from hesstune.storage.csv_table import write_rows

__all__ = [
    "PART", "Writer", "csv_writer", "json_writer", "made_folder", "replace_file", "replace_files",
    "text_writer", "write_csv", "write_json", "write_text", "writing",
]  # fmt: skip

# What a file is called while it is written; a kill may leave some behind.
PART = ".part"


Writer = Callable[[Path], object]
"""Writes a file at the path that it is given."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the file system into a RunError that names what could not be written."""
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error


def made_folder(path: Path) -> Path:
    """Create a folder, and those above it, unless they exist; return its path.

    Raises:
        RunError: If it cannot be created.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def replace_file(path: Path, write: Writer) -> None:
    """Call write(temporary path), sync, and rename to `path`, so that readers never see a part of it.

    Raises:
        RunError: If it cannot be written: the old file is then as it was.
    """
    replace_files({path: write})


def replace_files(writers: Mapping[Path, Writer]) -> None:
    """Write several files, and rename them to their paths once all of them are written.

    Raises:
        RunError: If one cannot be written: the old files are then as they were.
    """
    beside = {path: path.with_name(f".{path.name}{PART}") for path in writers}
    try:
        for path, part in beside.items():
            with writing(path):
                writers[path](part)
                with part.open("r+b") as file:  # Windows syncs only what could be written to
                    os.fsync(file.fileno())
        for path, part in beside.items():
            with writing(path):
                part.replace(path)
                _sync_folder(path.parent)
    finally:
        for part in beside.values():
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    # The rename itself must outlive a power cut, too. Some network file systems cannot sync a folder, and
    # Windows cannot open one.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all, the same bytes on every system."""
    replace_file(path, text_writer(text))


def write_json(path: Path, record: object) -> None:
    """Write a JSON file whole or not at all."""
    replace_file(path, json_writer(record))


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file whole or not at all."""
    replace_file(path, csv_writer(header, rows))


def text_writer(text: str) -> Writer:
    """Return what writes a text in UTF-8, for `replace_files`."""
    return lambda part: part.write_text(text, encoding="utf-8", newline="\n")


def json_writer(record: object) -> Writer:
    """Return what writes a record as JSON, for `replace_files`."""
    return text_writer(json.dumps(record, indent=1, allow_nan=False) + "\n")


def csv_writer(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Writer:
    """Return what writes a table as CSV, for `replace_files`."""

    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8") as file:
            write_rows(file, header, rows)

    return write
