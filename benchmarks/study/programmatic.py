"""Part 1 of the study: fine-tuning on programmatic labels of the four PACS targets, heads alone.

python benchmarks/study/programmatic.py [--root PACS] [--seeds 6] [--jobs N]

F comes from the votes and the features by the label model `soft_features`. robust_plus, and what is named
`NAME+posterior`, learns from that model's P(class | votes, features) of each example in place of the weak
label, with nothing left to correct: that does not assume that the noise depends on the class alone.
Continues where it stopped, from the committed results too: a finished cell is never run again.
"""

from __future__ import annotations

from typing import Any

from hesstune.methods import method_names
from labels import ROOT, write_all
from parts import WORK, arguments, run

DATA = WORK / "data_head"
# Splits that nothing was developed on: those of 0, 1, 10 to 12 and 20 were looked at before.
FIRST_SEED = 21
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


POSTERIOR = {
    "data": f"csv:{DATA}/{{task}}-{{seed}}-posterior.csv",
    "soft_labels": True,
    "noise_matrix": "0",
}
ON_POSTERIORS = ("vanilla", "constraint", "elr")


def variants() -> dict[str, dict[str, Any]]:
    """Every method that applies; then other matrices, and other labels."""
    found: dict[str, dict[str, Any]] = {n: {} for n in method_names() if n not in NOT_HERE}
    found["vanilla"] = {"weight_decay": 0.0}  # as its finished cells have it
    found["robust_plus"] = POSTERIOR
    found["robust_plus+weak"] = {"method": "robust_plus"}
    found |= {f"{name}+posterior": {"method": name, **POSTERIOR} for name in ON_POSTERIORS}
    found["vanilla+posterior"]["weight_decay"] = 0.0
    for name in ("robust", "robust_plus", "forward", "consistent"):
        for kind in ("oracle", "uniform"):
            matrix = f"{DATA}/{{task}}-{{seed}}-{kind}.json"
            found[f"{name}+{kind}"] = {"method": name, "noise_matrix": matrix}
    return found


def main() -> None:
    asked = arguments(__doc__, 6, ROOT)
    seeds = range(FIRST_SEED, FIRST_SEED + asked.seeds)
    write_all(asked.root, DATA, seeds, BUDGET["image_size"])
    run("programmatic_head", "programmatic.py", BUDGET, variants(), TASKS, seeds, asked.jobs)


if __name__ == "__main__":
    main()
