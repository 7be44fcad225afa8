"""The records in benchmarks/results: read and written in one way, a row a line."""

from __future__ import annotations

import argparse
import csv
import json
import platform
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from hesstune.storage.atomic import write_text
from hesstune.storage.row_json import row_json

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
DOCS = ROOT / "docs"
FIGURES = DOCS / "figures"


def read_record(name: str, empty: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return what results/NAME.json holds, or `empty`, where given, until there is one."""
    path = RESULTS / f"{name}.json"
    if empty is not None and not path.is_file():
        return empty
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def write_record(name: str, record: dict[str, Any]) -> None:
    """Write results/NAME.json whole or not at all."""
    RESULTS.mkdir(exist_ok=True)
    write_text(RESULTS / f"{name}.json", row_json(record))


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the finished rows of a CSV record; none where there is no file yet."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def add_row(path: Path, columns: Sequence[str], row: Sequence[Any]) -> None:
    """Add a finished row to a CSV record, below a header that the first one makes, and print it."""
    new = not path.is_file()
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, row] if new else [row])
    print(*row, flush=True)


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Hold a record, so that several processes may add to it in turns."""
    with FileLock(Path(tempfile.gettempdir(), f"{name}.lock")):
        yield


def machine(threads: int | None = None) -> str:
    """Return what a record says of the machine, and of the threads where they matter."""
    told = "" if threads is None else f", {threads} thread{'s' * (threads > 1)}"
    return platform.machine() + told


def arguments(text: str | None, data: str | None = None) -> argparse.ArgumentParser:
    """Return a script's parser; it wants `--data`, a folder, where `data` says what that holds."""
    parser = argparse.ArgumentParser(description=(text or "").partition("\n")[0])
    if data is not None:
        parser.add_argument("--data", type=Path, required=True, help=f"folder with {data}")
    return parser
