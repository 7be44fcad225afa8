"""Records of benchmarks: one JSON object per line in benchmarks/results/NAME.jsonl.

A line has `benchmark`, `case` (what was measured), `seed`, `result`, `versions` and `hardware`. Records that
were made before this format lack versions or hardware that were not recorded.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
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


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Lock a record, so that several processes can add to it."""
    with FileLock(Path(tempfile.gettempdir(), f"hesstune-benchmark-{name}.lock")):
        yield
