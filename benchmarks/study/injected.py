"""Part 2 of the study: symmetric and pair noise at 20, 40 and 60 % on digits and on PACS's photos.

python benchmarks/study/injected.py [--root PACS] [--seeds 3] [--jobs N]

Heads on features computed once. Methods that use a noise matrix are told the injected one.
"""

from __future__ import annotations

from typing import Any

from labels import ROOT, write_true
from parts import WORK, arguments, run

FIRST_SEED = 40
DATA = WORK / "data_true"
METHODS: dict[str, dict[str, Any]] = {
    name: {}
    for name in (
        "vanilla", "early_stopping", "l2_sp", "constraint", "label_smoothing", "mixup", "sam", "elr",
        "regsl", "gce", "forward", "consistent", "robust", "robust_plus",
    )
}  # fmt: skip
METHODS["vanilla"] = {"weight_decay": 0.0}  # as its finished cells have it
BUDGET: dict[str, Any] = {"model": "efficientnet_lite0", "train": "head", "limit": 600, "epochs": 15}
SOURCES = {
    "digits": {"data": "digits", "image_size": 64},
    "photo": {"data": f"csv:{DATA}/photo.csv", "image_size": 96},
}
TASKS: dict[str, dict[str, Any]] = {
    f"{name}-{kind}-{rate}": {**source, "inject_noise": f"{kind}:{rate / 100:g}"}
    for name, source in SOURCES.items()
    for kind in ("symmetric", "pair")
    for rate in (20, 40, 60)
}


def main() -> None:
    asked = arguments(__doc__, 3, ROOT)
    write_true(asked.root, "photo", DATA)
    seeds = range(FIRST_SEED, FIRST_SEED + asked.seeds)
    run("injected_head", "injected.py", BUDGET, METHODS, TASKS, seeds, asked.jobs)


if __name__ == "__main__":
    main()
