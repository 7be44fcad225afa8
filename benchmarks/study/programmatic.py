"""Part 1 of the study: fine-tuning on programmatic labels of the four PACS targets, heads alone.

python benchmarks/study/programmatic.py [--root PACS] [--seeds 3] [--jobs N]

Continues where it stopped, from the committed results too: a finished cell is never run again.
"""

from __future__ import annotations

from typing import Any

from labels import ROOT, write_all
from parts import WORK, arguments, run

from hesstune.methods import method_names

DATA = WORK / "data"
# robust_plus was put together on the splits of seeds 0 and 1; the study's splits are others.
FIRST_SEED = 10
# lora adapts layers below the head, and certified is a method of certificates, not of this table.
NOT_HERE = ("lora", "certified")
BUDGET: dict[str, Any] = {
    "model": "efficientnet_lite0",
    "train": "head",
    "image_size": 96,
    "limit": 1000,
    "epochs": 15,
    "data": f"csv:{DATA}/{{task}}-{{seed}}.csv",
    "noise_matrix": f"{DATA}/{{task}}-{{seed}}-estimated.json",
}
TASKS: dict[str, dict[str, Any]] = {name: {} for name in ("art_painting", "cartoon", "photo", "sketch")}


def variants() -> dict[str, dict[str, Any]]:
    """Every method that applies; and with the oracle's and the uniform matrix those that are told one."""
    found: dict[str, dict[str, Any]] = {n: {} for n in method_names() if n not in NOT_HERE}
    for name in ("robust", "robust_plus", "forward", "consistent"):
        for kind in ("oracle", "uniform"):
            if name in found:
                matrix = f"{DATA}/{{task}}-{{seed}}-{kind}.json"
                found[f"{name}+{kind}"] = {"method": name, "noise_matrix": matrix}
    return found


def main() -> None:
    asked = arguments(__doc__, 3, ROOT)
    seeds = range(FIRST_SEED, FIRST_SEED + asked.seeds)
    write_all(asked.root, DATA, seeds, BUDGET["image_size"], estimator="features")
    run("programmatic_head", "programmatic.py", BUDGET, variants(), TASKS, seeds, asked.jobs)


if __name__ == "__main__":
    main()
