"""Part 1c of the study: what a better label model is worth, by F or by its own answers; heads alone.

python benchmarks/study/label_models.py [--root PACS] [--seeds 3] [--jobs N]

F comes from the label model `soft_features` here. `NAME+posterior` is given that model's P(class | votes,
features) for each example in place of the weak label, with nothing left to correct: it does not assume
that the noise depends on the class alone.
"""

from __future__ import annotations

from typing import Any

from labels import ROOT, write_all
from parts import WORK, arguments, run
from programmatic import BUDGET as SHARED
from programmatic import TASKS

# Splits that nothing was developed on.
FIRST_SEED = 20
DATA = WORK / "data_head"
NAMES = ("vanilla", "constraint", "elr", "regsl", "forward", "consistent", "robust", "robust_plus")
ON_POSTERIORS = ("vanilla", "constraint", "elr", "robust_plus")
BUDGET: dict[str, Any] = {
    **SHARED,
    "data": f"csv:{DATA}/{{task}}-{{seed}}.csv",
    "noise_matrix": f"{DATA}/{{task}}-{{seed}}-estimated.json",
}
POSTERIOR = {"data": f"csv:{DATA}/{{task}}-{{seed}}-posterior.csv", "soft_labels": True, "noise_matrix": "0"}


def variants() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {name: {} for name in NAMES}
    found |= {f"{name}+posterior": {"method": name, **POSTERIOR} for name in ON_POSTERIORS}
    oracle = f"{DATA}/{{task}}-{{seed}}-oracle.json"
    found["robust_plus+oracle"] = {"method": "robust_plus", "noise_matrix": oracle}
    return found


def main() -> None:
    asked = arguments(__doc__, 3, ROOT)
    seeds = range(FIRST_SEED, FIRST_SEED + asked.seeds)
    write_all(asked.root, DATA, seeds, BUDGET["image_size"])
    run("label_models_head", "label_models.py", BUDGET, variants(), TASKS, seeds, asked.jobs)


if __name__ == "__main__":
    main()
