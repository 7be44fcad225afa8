"""Deeper layers: `auto`, told nothing, beside its own head and plain fine-tuning, stopped and not.

EfficientNet-Lite0 at 64 pixels, 500 training images, every layer trained with the defaults: for 12 epochs,
and for 40, after which plain fine-tuning has fitted its labels. `robust` runs where noise is injected, and is
told its rate. How `auto` goes deeper was developed on DEVELOPMENT: other noise on the same domains, other
splits, of seeds from 100 up. Each task is run once with a recipe: seeds 0 to 2 had shown that what the head
gives at the start costs in more than a few epochs, so the present one was run on seeds 3 and up. Continues
where it stopped.

    python benchmarks/field/deeper.py --data DATA [--first N --seeds N] [--schedule short|fitted] [--jobs N]
"""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import hesstune as ht
from records import RESULTS, add_row, arguments, read_rows

PATH = RESULTS / "field_deeper.csv"
TAKEN, TEST = 5000, 1000
COLUMNS = ("schedule", "task", "seed", "method", "accuracy", "epochs")
DEVELOPMENT = (
    ("cartoon", "symmetric:0.4", (101, 102)),
    ("sketch", None, (100,)),
    ("photo", "pair:0.2", (100,)),
    ("sketch", "instance:0.3", (100,)),
    ("art_painting", None, (100,)),
    ("art_painting", "pair:0.4", (103,)),
    ("photo", "symmetric:0.3", (103,)),
    ("art_painting", "symmetric:0.3", (103,)),
    ("cartoon", "pair:0.3", (103,)),
    ("cartoon", None, (104,)),
)
TASKS = {
    "photo symmetric:0.4": ("photo", "symmetric:0.4"),
    "art_painting pair:0.4": ("art_painting", "pair:0.4"),
    "sketch symmetric:0.2": ("sketch", "symmetric:0.2"),
    "cartoon clean": ("cartoon", None),
    "photo instance:0.3": ("photo", "instance:0.3"),
    "art_painting symmetric:0.2": ("art_painting", "symmetric:0.2"),
    "cartoon pair:0.2": ("cartoon", "pair:0.2"),
    "cifar10n worse": ("cifar10n", None),
}
EPOCHS = {"short": 12, "fitted": 40}
BUDGET: dict[str, Any] = {"image_size": 64, "limit": 500, "train": "all"}
METHODS: dict[str, dict[str, Any]] = {
    "plain": {"method": "vanilla"},
    "plain, stopped": {"method": "vanilla", "patience": 3, "select": "best"},
    "robust, told": {"method": "robust", "radius": {"head": 0.25, "*": 0.05}},
    "auto, head": {"method": "auto", "budget": "fast"},
    "auto": {"method": "auto"},
}


def write_cifar(data: Path, path: Path) -> None:
    """Write CIFAR-10N's images with the worst of three people's labels, and some test images."""
    with (data / "cifar10n" / "labels.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    test = [line for line in lines if line["split"] == "test"][:TEST]
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["id", "image", "label", "split"])
        for line in [line for line in lines if line["split"] != "test"][:TAKEN]:
            out.writerow([line["id"], str(data / "cifar10n" / line["image"]), line["worse"], "train"])
        for line in test:
            out.writerow([line["id"], str(data / "cifar10n" / line["image"]), line["true_label"], "test"])


def cell(data: Path, task: str, seed: int, options: dict[str, Any]) -> tuple[float, int]:
    """Train once; return test accuracy on true labels, and the epochs that were trained."""
    source, noise = TASKS[task]
    with tempfile.TemporaryDirectory() as folder:
        given = f"folder:{data / 'pacs128' / source}"
        if source == "cifar10n":
            write_cifar(data, Path(folder) / "table.csv")
            given = f"csv:{Path(folder) / 'table.csv'}"
        run = ht.finetune(
            {**BUDGET, **options},
            data=given,
            inject_noise=noise,
            seed=seed,
            out=f"{folder}/run",
            keep_weights=False,
        )
        return run.outcome.test_accuracy or 0.0, run.outcome.epochs


Cell = tuple[str, str, int, str]  # schedule, task, seed, method


def cells(schedules: Sequence[str], seeds: Sequence[int], methods: Sequence[str]) -> Iterator[Cell]:
    """Yield the cells that are asked for, schedule by schedule and seed by seed."""
    for schedule in schedules:
        for seed in seeds:
            for task, (_, noise) in TASKS.items():
                for method in methods:
                    if noise or method != "robust, told":
                        yield schedule, task, seed, method


def measured(data: Path, wanted: Cell) -> tuple[float, int]:
    """Train a cell; return test accuracy on true labels, and the epochs that were trained."""
    schedule, task, seed, method = wanted
    return cell(data, task, seed, {**METHODS[method], "epochs": EPOCHS[schedule]})


def main() -> None:
    parser = arguments(__doc__, "pacs128/ and cifar10n/")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--schedule", choices=tuple(EPOCHS), nargs="+", default=["short"])
    parser.add_argument("--methods", choices=tuple(METHODS), nargs="+", default=list(METHODS))
    parser.add_argument("--jobs", type=int, default=1)
    asked = parser.parse_args()
    done = {(row["schedule"], row["task"], int(row["seed"]), row["method"]) for row in read_rows(PATH)}
    seeds = range(asked.first, asked.first + asked.seeds)
    todo = [one for one in cells(asked.schedule, seeds, asked.methods) if one not in done]
    with ProcessPoolExecutor(asked.jobs, mp_context=get_context("spawn")) as pool:
        jobs = {pool.submit(measured, asked.data, one): one for one in todo}
        for job in as_completed(jobs):
            if job.exception() is not None:  # one cell that fails leaves the others
                print(f"{jobs[job]} failed: {job.exception()!r}", flush=True)
                continue
            accuracy, epochs = job.result()
            add_row(PATH, COLUMNS, [*jobs[job], round(accuracy, 5), epochs])


if __name__ == "__main__":
    main()
