"""Choose the free numbers of the label model `soft_features` without a single label of the target.

python benchmarks/noise_choices.py ROOT [TARGET …]

For each target domain of PACS, the next domain plays the target, labelled by the two that remain: domains
whose true labels labelers are trained on anyway. The choice is the one whose estimated noise matrix is
nearest the true one there, in total variation; then, with 50 checked labels there, how often each of them
counts. Nothing of the target's pictures, labels or labeler is read.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hesstune.noise.estimate import from_posterior
from hesstune.weak.label_models.soft_features import soft_dawid_skene
from records import alone, machine, read_record, write_record
from weak_tasks import PACS, WeakTask, weak_task

TEMPERS, SHARES, WEIGHTS = (0.35, 0.5, 0.75, 1.0), (0.0, 0.5), (1.0, 5.0, 20.0)
SEED, CLEAN = 100, 50
Trial = dict[str, Any]


def error(task: WeakTask, posterior: NDArray[np.float64], rows: NDArray[np.int64] | None = None) -> float:
    """Return the total variation between the estimated and the true matrix, averaged over the rows."""
    keep = np.ones(len(posterior), bool)
    if rows is not None:
        keep[rows] = False
    found = from_posterior(posterior[keep], task.train.weak[keep]).matrix.array
    return float(np.abs(found - task.noise.array).sum(1).mean() / 2)


def judged(root: str, target: str) -> list[Trial]:
    """Try every choice, and with the best every weight of checked labels."""
    pseudo = PACS[(PACS.index(target) + 1) % len(PACS)]
    task = weak_task(root, pseudo, [d for d in PACS if d != target], seed=SEED)
    part = task.train
    rows = np.random.default_rng([SEED, CLEAN]).permutation(len(part))[:CLEAN]
    found: list[Trial] = []
    for temper in TEMPERS:
        for share in SHARES:
            choice: dict[str, Any] = {"temper": temper, "probe_share": share}
            q = soft_dawid_skene(part.votes, part.features, seed=SEED, **choice)
            found.append({"target": target, "pseudo_target": pseudo, **choice, "error": error(task, q)})
    best = chosen(found)[target]["none"]
    for weight in WEIGHTS:
        choice = best | {"clean_weight": weight}
        clean = (rows, part.true[rows])
        q = soft_dawid_skene(part.votes, part.features, clean=clean, seed=SEED, **choice)
        found.append({"target": target, "pseudo_target": pseudo, **choice, "error": error(task, q, rows)})
    return found


def chosen(trials: Sequence[Trial]) -> dict[str, dict[str, dict[str, float]]]:
    """Return the best choice for each target, without and with checked labels."""
    best: dict[str, dict[str, dict[str, float]]] = {}
    for target in PACS:
        for kind in ("none", "checked"):
            sums: dict[tuple[float, float, float | None], list[float]] = {}
            for t in trials:
                if t["target"] == target and ("clean_weight" in t) == (kind == "checked"):
                    key = (t["temper"], t["probe_share"], t.get("clean_weight"))
                    sums.setdefault(key, []).append(t["error"])
            if not sums:
                continue
            key = min(sums, key=lambda k: float(np.mean(sums[k])))
            made = dict(zip(("temper", "probe_share", "clean_weight"), key, strict=True))
            best.setdefault(target, {})[kind] = {k: v for k, v in made.items() if v is not None}
    return best


def kept(trials: Sequence[Trial] = ()) -> list[Trial]:
    """Add trials to the record, under a lock; return all of it."""
    with alone("noise_choices"):
        have: list[Trial] = read_record("noise_choices", {"trials": []})["trials"]
        if trials:
            have = sorted([*have, *trials], key=lambda t: (PACS.index(t["target"]), "clean_weight" in t))
            record = {
                "command": "python benchmarks/noise_choices.py PACS",
                "machine": machine(),
                "setting": {"seed": SEED, "checked": CLEAN, "pixels": 96},
                "chosen": chosen(have),
                "trials": have,
            }
            write_record("noise_choices", record)
    return have


def main() -> None:
    root, targets = sys.argv[1], sys.argv[2:] or PACS
    warnings.simplefilter("ignore")
    for target in targets:
        if target not in {t["target"] for t in kept()}:
            kept(judged(root, target))
            print(target, flush=True)


if __name__ == "__main__":
    main()
