"""Records of benchmarks: one JSON object per line in benchmarks/results/NAME.jsonl.

A line has `benchmark`, `case` (what was measured), `seed`, `result`, `versions` and `hardware`. Records that
were made before this format lack versions or hardware that were not recorded.

The certificate, coverage and label-error benchmarks keep one JSON document or CSV file each; `read_record`,
`write_record`, `read_rows` and `add_row` are for them.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from hesstune.storage.files import write_text

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
DOCS = ROOT / "docs"
FIGURES = DOCS / "figures"
PACKAGES = (
    "hesstune", "torch", "numpy", "scikit-learn", "transformers", "peft", "lightning", "accelerate",
    "datasets", "timm", "torchvision", "cleanlab", "crowd-kit", "curvlinops-for-pytorch",
)  # fmt: skip
# A part of a record that is longer than this is broken into its parts.
LINE_WIDTH = 300
Row = dict[str, Any]


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that are installed here."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Return the processor, the cores, the threads of torch, and the GPU if there is one."""
    import torch

    found: dict[str, Any] = {"machine": platform.machine(), "cores": os.cpu_count()}
    found["threads"] = torch.get_num_threads()
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def lines(name: str) -> list[Row]:
    """Return the lines of a record; none if it does not exist."""
    path = RESULTS / f"{name}.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rows(name: str) -> list[Row]:
    """Return the lines of a record as flat rows: the case, the seed and the result."""
    return [{**line["case"], "seed": line["seed"], **line["result"]} for line in lines(name)]


def result(name: str, **case: Any) -> Row:
    """Return the result of the line that has this case.

    Raises:
        KeyError: If no line has it.
    """
    for line in lines(name):
        if line["case"] == case:
            return dict(line["result"])
    raise KeyError(f"{name}.jsonl has no case {case}")


def append(name: str, case: Mapping[str, Any], seed: int | None, found: Mapping[str, Any]) -> None:
    """Add one line to a record, in place of one of the same case and seed; several processes may do so."""
    line = {"benchmark": name, "case": dict(case), "seed": seed, "result": dict(found)}
    text = json.dumps({**line, "versions": versions(), "hardware": hardware()}, allow_nan=False)
    RESULTS.mkdir(exist_ok=True)
    with alone(name):
        kept = [old for old in lines(name) if key(old["case"], old["seed"]) != key(case, seed)]
        texts = [*(json.dumps(old, ensure_ascii=False) for old in kept), text]
        write_text(RESULTS / f"{name}.jsonl", "\n".join(texts) + "\n")


def key(case: Mapping[str, Any], seed: int | None) -> str:
    """Return what identifies a line."""
    return json.dumps([dict(case), seed], sort_keys=True)


def read_record(name: str, empty: Row | None = None) -> Row:
    """Return what results/NAME.json holds, or `empty`, if given, until there is one."""
    path = RESULTS / f"{name}.json"
    if empty is not None and not path.is_file():
        return empty
    found: Row = json.loads(path.read_text(encoding="utf-8"))
    return found


def write_record(name: str, record: Row) -> None:
    """Write results/NAME.json whole or not at all."""
    RESULTS.mkdir(exist_ok=True)
    write_text(RESULTS / f"{name}.json", _row_json(json.loads(json.dumps(record, allow_nan=False))) + "\n")


def _row_json(value: object, depth: int = 0) -> str:
    """Return JSON text in which every part that fits has one line, and every list of numbers."""
    line = json.dumps(value)
    numbers = isinstance(value, list) and all(isinstance(part, int | float) for part in value)
    if not isinstance(value, dict | list) or len(line) <= LINE_WIDTH or numbers:
        return line
    inner, outer = "\n" + " " * (depth + 1), "\n" + " " * depth
    if isinstance(value, dict):
        parts = [f"{json.dumps(name)}: {_row_json(part, depth + 1)}" for name, part in value.items()]
        return "{" + inner + f",{inner}".join(parts) + outer + "}"
    return "[" + inner + f",{inner}".join(_row_json(part, depth + 1) for part in value) + outer + "]"


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the finished rows of a CSV record; none if there is no file yet."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def add_row(path: Path, columns: Sequence[str], row: Sequence[Any]) -> None:
    """Add a finished row to a CSV record, with a header if the file is new, and print it."""
    new = not path.is_file()
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, row] if new else [row])
    print(*row, flush=True)


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Lock a record, so that several processes can add to it."""
    with FileLock(Path(tempfile.gettempdir(), f"hesstune-benchmark-{name}.lock")):
        yield


def arguments(text: str | None, data: str | None = None) -> argparse.ArgumentParser:
    """Return a script's parser, with a required option `--data` if `data` says what that folder holds."""
    parser = argparse.ArgumentParser(description=(text or "").partition("\n")[0])
    if data is not None:
        parser.add_argument("--data", type=Path, required=True, help=f"folder with {data}")
    return parser
