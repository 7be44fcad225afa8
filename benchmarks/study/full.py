"""Part 1 of the study: all layers fine-tuned at 64 pixels on programmatic labels, the ten main methods.

python benchmarks/study/full.py [--root PACS] [--seeds 3] [--jobs N]

Continues where it stopped, from the committed results too: a finished cell is never run again.
"""

from __future__ import annotations

import json
from typing import Any

from labels import ROOT, write_all
from parts import RESULTS, WORK, arguments, run

# Splits that nothing was developed on.
FIRST_SEED = 33
VALIDATION = 100
DATA = WORK / "data_full"
POSTERIOR = {
    "data": f"csv:{DATA}/{{task}}-{{seed}}-posterior.csv",
    "soft_labels": True,
    "noise_matrix": "0",
}
# robust_plus learns from the label model's P(class | votes, features).
METHODS: dict[str, dict[str, Any]] = {
    "vanilla": {},
    "early_stopping": {},
    "l2_sp": {},
    "label_smoothing": {},
    "mixup": {},
    "sam": {},
    "elr": {},
    "forward": {},
    "robust": {"radius": {"head": 0.25, "*": 0.05}},  # the default of version 0.1.0
    "robust_plus": POSTERIOR,
    "vanilla+posterior": {"method": "vanilla", **POSTERIOR},
    # What a small measure costs: balls of a quarter of the default radii. Settled on tuning.py's split.
    "robust_plus+quarter": {"method": "robust_plus", **POSTERIOR, "radius": {"head": 0.0625, "*": 0.0125}},
}
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


def tuned() -> dict[str, dict[str, Any]]:
    """Return the methods, each with the learning rate that tuning.py chose for it."""
    chosen = json.loads((RESULTS / "tuning_full.json").read_text())["chosen"]
    return {
        name: {**options, "lr": chosen[name.removesuffix("+quarter")]} for name, options in METHODS.items()
    }


def main() -> None:
    asked = arguments(__doc__, 3, ROOT)
    seeds = range(FIRST_SEED, FIRST_SEED + asked.seeds)
    write_all(asked.root, DATA, seeds, 96, validation=VALIDATION)
    run("programmatic_full", "full.py", BUDGET, tuned(), TASKS, seeds, asked.jobs, measure_examples=50)


if __name__ == "__main__":
    main()
