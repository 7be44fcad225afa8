"""Part 1b of the study: all layers fine-tuned at 64 pixels on programmatic labels, the ten main methods.

python benchmarks/study/full.py [--root PACS] [--seeds 3] [--jobs N]

Continues where it stopped, from the committed results too: a finished cell is never run again.
"""

from __future__ import annotations

from typing import Any

from labels import ROOT, write_all
from parts import WORK, arguments, run

# Splits that nothing was developed on.
FIRST_SEED = 30
VALIDATION = 100
DATA = WORK / "data_full"
METHODS: dict[str, dict[str, Any]] = {
    name: {}
    for name in (
        "vanilla", "robust", "early_stopping", "l2_sp", "label_smoothing", "mixup", "sam",
        "elr", "forward", "robust_plus",
    )
}  # fmt: skip
BUDGET: dict[str, Any] = {
    "model": "efficientnet_lite0",
    "train": "all",
    "image_size": 64,
    "limit": 200,
    "epochs": 10,
    "data": f"csv:{DATA}/{{task}}-{{seed}}.csv",
    "noise_matrix": f"{DATA}/{{task}}-{{seed}}-estimated.json",
}
TASKS: dict[str, dict[str, Any]] = {name: {} for name in ("art_painting", "cartoon", "photo", "sketch")}


def main() -> None:
    asked = arguments(__doc__, 3, ROOT)
    seeds = range(FIRST_SEED, FIRST_SEED + asked.seeds)
    write_all(asked.root, DATA, seeds, 96, validation=VALIDATION)
    run("programmatic_full", "full.py", BUDGET, METHODS, TASKS, seeds, asked.jobs, measure_examples=50)


if __name__ == "__main__":
    main()
