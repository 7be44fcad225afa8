"""Write files whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hesstune.errors import RunError
from hesstune.storage.csv_table import write_rows

__all__ = ["PART", "replace_file", "write_csv", "write_json", "write_text"]

# What a file is called while it is written; a kill may leave some behind.
PART = ".part"


def replace_file(path: Path, write: Any) -> None:
    """Call write(temporary path), sync, and rename to `path`, so that readers never see a part of it.

    Raises:
        RunError: If it cannot be written: the old file is then as it was.
    """
    beside = path.with_name(f".{path.name}{PART}")
    try:
        write(beside)
        with beside.open("r+b") as file:  # Windows syncs only what could be written to
            os.fsync(file.fileno())
        beside.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


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
    replace_file(path, lambda part: part.write_text(text, encoding="utf-8", newline="\n"))


def write_json(path: Path, record: object) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(record, indent=1, allow_nan=False) + "\n")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file whole or not at all."""

    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8") as file:
            write_rows(file, header, rows)

    replace_file(path, write)
