"""Configurations of benchmarks, and their records: one JSON object per line of results/NAME.jsonl.

A line has `benchmark`, `case` (what was measured), `seed`, `result`, `versions` and `hardware`. Records that
were made before this format lack versions or hardware that were not recorded.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from hesstune.errors import DataError
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


@dataclass(frozen=True, kw_only=True)
class Run:
    """A configuration, and what the command line adds to it.

    Attributes:
        name: Name of the record.
        module: Module of this folder with `measure`, and `cases` if there are several.
        about: One sentence on what is measured.
        install: The pip command for what the benchmark needs.
        needs: Folders of DATA.
        seeds: A case is measured once for each.
        threads: Threads of torch; None leaves its default.
        cases: Lists of values by name; the combinations of each are measured.
        settings: What the module reads.
        data_folder: DATA, or None.
        case_seed: Seed of the case that is measured, or None.
    """

    name: str
    module: str
    about: str
    install: str
    needs: tuple[str, ...] = ()
    seeds: tuple[int | None, ...] = (None,)
    threads: int | None = None
    cases: tuple[dict[str, list[Any]], ...] = ({},)
    settings: dict[str, Any] = field(default_factory=dict)
    data_folder: Path | None = None
    case_seed: int | None = None

    @property
    def seed(self) -> int:
        """Seed of the case that is measured; 0 by default."""
        return self.case_seed or 0

    @property
    def data(self) -> Path:
        """The folder DATA."""
        return self.folder("")

    def folder(self, name: str) -> Path:
        """Return a folder of DATA.

        Raises:
            DataError: If it is missing.
        """
        if self.data_folder is None or not (self.data_folder / name).is_dir():
            given = self.data_folder or "no --data"
            raise DataError(f"this benchmark needs the folder {name} in --data; got {given}")
        return self.data_folder / name


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
    """Add one line to a record, in place of one of the same case and seed."""
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


def alone(name: str) -> FileLock:
    """Return the lock of a record, so that several processes can add to it."""
    return FileLock(Path(tempfile.gettempdir(), f"hesstune-benchmark-{name}.lock"))
