"""What the study's parts share: run a comparison seed by seed, and keep its record with the code."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hesstune import compare
from hesstune.storage.stored import write_record
from hesstune.study.results import RESULTS as COMPARISON
from hesstune.study.results import read_compact, write_compact

RESULTS = Path(__file__).parent / "results"
WORK = Path("runs/study")


def arguments(text: str | None, seeds: int, root: Path) -> argparse.Namespace:
    """Read the options that every part has."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--root", type=Path, default=root, help="folder of PACS")
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--jobs", type=int, default=1)
    return parser.parse_args()


def restore(name: str, out: Path) -> None:
    """Write a part's committed record into its folder, unless the folder has a comparison already."""
    record = RESULTS / f"{name}.csv"
    if record.is_file() and not (out / COMPARISON).is_file():
        out.mkdir(parents=True, exist_ok=True)
        write_record(out / COMPARISON, read_compact(record))


def run(
    name: str,
    script: str,
    budget: Mapping[str, Any],
    methods: Mapping[str, Mapping[str, Any]],
    tasks: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    jobs: int,
    **settings: Any,
) -> None:
    """Run or continue a part; the record is brought up to date after each seed, all cells of it.

    The committed record counts as run: its finished cells are restored from it.
    """
    out = WORK / name
    restore(name, out)
    RESULTS.mkdir(exist_ok=True)
    last = -1

    def tell(done: int, total: int, text: str) -> None:
        nonlocal last
        if done != last:
            print(f"{done}/{total} {text}", flush=True)
        last = done

    for count in range(1, len(seeds) + 1):
        found = compare(
            budget,
            methods=methods,
            tasks=tasks,
            seeds=list(seeds[:count]),
            out=out,
            stability=True,
            jobs=jobs,
            command=f"python benchmarks/study/{script}",
            progress=tell,
            **settings,
        )
        write_compact(RESULTS / f"{name}.csv", found.results)
