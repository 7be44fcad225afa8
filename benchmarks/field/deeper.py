"""Deeper layers: `auto`, told nothing, beside its own head and plain fine-tuning, stopped and not.

EfficientNet-Lite0 at 64 pixels, 500 training images, every layer trained with the defaults: for 12 epochs,
and for 40, after which plain fine-tuning has fitted its labels. None of these was looked at while `auto` was
made: its share, patience and running mean were settled on the demo's digits. `robust` runs where noise is
injected, and is told its rate. Continues where it stopped.

    python benchmarks/field/deeper.py --data DATA [--seeds N] [--schedule short|fitted]
"""

from __future__ import annotations

import csv
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import hesstune as ht
from records import RESULTS, add_row, arguments, read_rows

PATH = RESULTS / "field_deeper.csv"
TAKEN, TEST = 5000, 1000
COLUMNS = ("schedule", "task", "seed", "method", "accuracy", "epochs")
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
    "robust, told": {"method": "robust"},
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
        for line in [line for line in lines if line["split"] != "test"][:TAKEN] + test:
            split = "test" if line["split"] == "test" else ""
            given = line["true_label"] if split else line["worse"]
            out.writerow([line["id"], str(data / "cifar10n" / line["image"]), given, split])


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


def main() -> None:
    parser = arguments(__doc__, "pacs128/ and cifar10n/")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--schedule", choices=tuple(EPOCHS), default="short")
    asked = parser.parse_args()
    done = {(row["schedule"], row["task"], int(row["seed"]), row["method"]) for row in read_rows(PATH)}
    for seed in range(asked.seeds):
        for task in TASKS:
            for method, options in METHODS.items():
                if (asked.schedule, task, seed, method) in done or (
                    method == "robust, told" and not TASKS[task][1]
                ):
                    continue
                options = {**options, "epochs": EPOCHS[asked.schedule]}
                accuracy, epochs = cell(asked.data, task, seed, options)
                add_row(PATH, COLUMNS, [asked.schedule, task, seed, method, round(accuracy, 5), epochs])


if __name__ == "__main__":
    main()
