"""Choose each method's learning rate for full.py: three trials a method, judged by noisy labels.

python benchmarks/study/tuning.py [--root PACS]

One split of one target that the study does not use; trials are judged on all of its validation examples,
of which a run itself sees a hundred. The risk of a trial is the error that the label model expects, the
mean of 1 - P(predicted class | votes, features): the same rule for every method, and no true label is read.
(The consistent 0-1 loss would not do: where the noise depends on more than the class it is least for the
network that repeats the labelers' errors.) Continues where it stopped.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hesstune as ht
from full import BUDGET, DATA, METHODS, VALIDATION
from hesstune.storage.row_json import row_json
from labels import ROOT, write_task
from parts import RESULTS, WORK, arguments

TARGET, SEED = "art_painting", 29
ALL = WORK / "data_tuning"
RATES = (1e-4, 3e-4, 1e-3)
OUT = RESULTS / "tuning_full.json"


def held_out(data: Path) -> tuple[Path, list[dict[str, float]]]:
    """Write the validation examples as a test part; return it and the label model's answer by class name."""
    with data.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "val"]
    path = data.with_name(f"{data.stem}-held-out.csv")
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "image", "label", "split"])
        writer.writerows([row["id"], row["image"], row["label"], "test"] for row in rows)
    return path, [{k[2:]: float(v) for k, v in row.items() if k.startswith("p_")} for row in rows]


def trial(method: str, lr: float) -> dict[str, Any]:
    options = {"method": method, **BUDGET, **METHODS[method], "lr": lr, "seed": SEED}
    named = {k: v.format(task=TARGET, seed=SEED) if isinstance(v, str) else v for k, v in options.items()}
    run = ht.finetune(named, out=WORK / "tuning" / f"{method}-{lr:g}", overwrite=True)
    path, answers = held_out(ALL / f"{TARGET}-{SEED}-posterior.csv")
    predicted = ht.predict(run, f"csv:{path}").probabilities.argmax(axis=1)
    risks = np.array([1.0 - q[run.classes[at]] for q, at in zip(answers, predicted, strict=True)])
    error = float(risks.std() / np.sqrt(len(risks)))
    return {"method": method, "lr": lr, "risk": float(risks.mean()), "stderr": error}


def main() -> None:
    asked = arguments(__doc__, 1, ROOT)
    write_task(asked.root, TARGET, SEED, DATA, 96, VALIDATION)
    write_task(asked.root, TARGET, SEED, ALL, 96)
    record = json.loads(OUT.read_text()) if OUT.is_file() else {"trials": []}
    for method in (m for m in METHODS if not m.endswith("+quarter")):  # it takes robust_plus's rate
        for lr in RATES:
            if any((t["method"], t["lr"]) == (method, lr) for t in record["trials"]):
                continue
            record["trials"].append(trial(method, lr))
            best = {}
            for row in sorted(record["trials"], key=lambda t: -t["risk"]):
                best[row["method"]] = row["lr"]
            record |= {"command": "python benchmarks/study/tuning.py", "torch": torch.__version__}
            record |= {"target": TARGET, "seed": SEED, "rates": RATES, "chosen": best}
            OUT.write_text(row_json(record))
            print(record["trials"][-1], flush=True)


if __name__ == "__main__":
    main()
