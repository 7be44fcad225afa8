"""Part 2 of the study: does the constraint help without noise? 100 true labels, all layers at 64 pixels.

python benchmarks/study/clean.py [--root PACS] [--seeds 2] [--jobs N]
"""

from __future__ import annotations

from typing import Any

from labels import ROOT, write_true
from parts import WORK, arguments, run

FIRST_SEED = 50
DATA = WORK / "data_true"
DOMAINS = ("photo", "art_painting")
# The radii that version 0.1.0 had by default, as the finished cells have them.
METHODS: dict[str, dict[str, Any]] = {"vanilla": {}, "constraint": {"radius": {"head": 0.25, "*": 0.05}}}
BUDGET: dict[str, Any] = {"model": "efficientnet_lite0", "train": "all", "image_size": 64, "epochs": 10}


def tasks(*sizes: int) -> dict[str, dict[str, Any]]:
    return {
        f"{domain}-{n}": {"data": f"csv:{DATA}/{domain}.csv", "limit": n} for domain in DOMAINS for n in sizes
    }


def main() -> None:
    asked = arguments(__doc__, 2, ROOT)
    for domain in DOMAINS:
        write_true(asked.root, domain, DATA)
    seeds = range(FIRST_SEED, FIRST_SEED + asked.seeds)
    run("clean_full", "clean.py", BUDGET, METHODS, tasks(100), seeds, asked.jobs, measure_examples=50)


if __name__ == "__main__":
    main()
