"""Part 3 of the study: does the constraint help without noise? 100, 300 and 1000 true labels.

python benchmarks/study/clean.py [--root PACS] [--seeds 2] [--jobs N]

Heads on features computed once, on PACS's photos and art paintings; then all layers at 64 pixels on 100
labels, for plain fine-tuning and the constraint.
"""

from __future__ import annotations

from typing import Any

from labels import ROOT, write_true
from parts import WORK, arguments, run

FIRST_SEED = 50
DATA = WORK / "data_true"
DOMAINS = ("photo", "art_painting")
METHODS: dict[str, dict[str, Any]] = {name: {} for name in ("vanilla", "constraint", "l2_sp", "sam")}
METHODS["vanilla"] = {"weight_decay": 0.0}  # as its finished cells have it
METHODS["constraint+auto"] = {"method": "constraint", "radius": "auto"}
BUDGET: dict[str, Any] = {"model": "efficientnet_lite0", "train": "head", "image_size": 96, "epochs": 15}
WHOLE: dict[str, Any] = {**BUDGET, "train": "all", "image_size": 64, "epochs": 10}


def tasks(*sizes: int) -> dict[str, dict[str, Any]]:
    return {
        f"{domain}-{n}": {"data": f"csv:{DATA}/{domain}.csv", "limit": n} for domain in DOMAINS for n in sizes
    }


def main() -> None:
    asked = arguments(__doc__, 2, ROOT)
    for domain in DOMAINS:
        write_true(asked.root, domain, DATA)
    seeds = range(FIRST_SEED, FIRST_SEED + asked.seeds)
    run("clean_head", "clean.py", BUDGET, METHODS, tasks(100, 300, 1000), seeds, asked.jobs)
    few = {name: METHODS[name] for name in ("vanilla", "constraint")}
    run("clean_full", "clean.py", WHOLE, few, tasks(100), seeds, asked.jobs, measure_examples=50)


if __name__ == "__main__":
    main()
