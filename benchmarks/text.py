"""Robust against plain fine-tuning on text: MiniLM on SST-2 and MRPC with wrong labels.

2,000 SST-2 sentences with 40 % symmetric noise, and 1,000 MRPC pairs with 20 %; both methods have the
same budget, split and order; the loss of the robust one is told the noise. The learning rate of each, and
the radius, are what benchmarks/text_settings.py chose on other seeds of SST-2, without a true label.
Finished cells are kept in benchmarks/results/text.json and not run again.

    python benchmarks/text.py --data DATA [--task TASK] [--method METHOD] [--seed SEED]
"""

from __future__ import annotations

import csv
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hesstune as ht
from records import arguments, read_record, write_record

COMMON = {"model": "minilm", "max_length": 64, "batch_size": 32}
CELLS = [
    (task, method, seed)
    for task, seeds in (("sst2", (0, 1, 2)), ("mrpc", (0,)))
    for seed in seeds
    for method in ("vanilla", "robust")
]
TASKS: dict[str, dict[str, Any]] = {
    "sst2": {"noise": "symmetric:0.4", "epochs": 4, "train": 2000, "test": 1000},
    "mrpc": {"noise": "symmetric:0.2", "epochs": 4, "train": 1000, "test": 800},
}


def rows_of(root: Path, task: str, part: str) -> list[tuple[str, str | None, str]]:
    lines = (root / task / f"{part}.tsv").read_text(encoding="utf-8-sig").splitlines()
    cells = [line.split("\t") for line in lines]
    if task == "sst2":
        return [(text, None, label) for text, label in cells]
    return [(row[3], row[4], row[0]) for row in cells[1:]]


def write_csv(root: Path, task: str, seed: int, path: Path) -> None:
    """Write the training, validation and test rows of one cell, drawn by the seed."""
    rng = np.random.default_rng(seed)
    sizes = TASKS[task]
    train, test = rows_of(root, task, "train"), rows_of(root, task, "test")
    train = [train[i] for i in rng.permutation(len(train))[: sizes["train"] + 400]]
    test = [test[i] for i in rng.permutation(len(test))[: sizes["test"]]]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", *(["text2"] if task == "mrpc" else []), "label", "split"])
        for part, rows in (("train", train[400:]), ("val", train[:400]), ("test", test)):
            for first, second, label in rows:
                name = "negative" if label == "0" else "positive"
                writer.writerow([first, *([second] if task == "mrpc" else []), name, part])


def chosen(method: str) -> dict[str, Any]:
    """Return the method, the learning rate and the radius that noisy validation chose."""
    choice = read_record("text_settings")
    found: dict[str, Any] = choice["settings"][choice["chosen"][method]]
    return found


def cell(root: Path, task: str, method: str, seed: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.csv"
        write_csv(root, task, seed, path)
        start = time.perf_counter()
        run = ht.finetune(
            COMMON,
            data=f"csv:{path}",
            inject_noise=TASKS[task]["noise"],
            epochs=TASKS[task]["epochs"],
            seed=seed,
            out=f"{folder}/run",
            **chosen(method),
        )
        keep = ("test_accuracy", "test_accuracy_interval", "train_accuracy", "gap", "distance")
        return {
            "task": task,
            "method": method,
            "seed": seed,
            "lr": chosen(method)["lr"],
            "radius": chosen(method).get("radius"),
            **{key: run.result[key] for key in keep},
            "realised_noise": run.record["noise"]["realised_rate"],
            "seconds": round(time.perf_counter() - start, 1),
            "threads": torch.get_num_threads(),
        }


def read() -> dict[str, Any]:
    return read_record("text", {"cells": []})


def main() -> None:
    parser = arguments(__doc__, "sst2 and mrpc")
    parser.add_argument("--task", choices=TASKS)
    parser.add_argument("--method", choices=("vanilla", "robust"))
    parser.add_argument("--seed", type=int)
    given = parser.parse_args()
    for task, method, seed in CELLS:
        asked = ((given.task, task), (given.method, method), (given.seed, seed))
        if any(want is not None and want != own for want, own in asked):
            continue
        if any((c["task"], c["method"], c["seed"]) == (task, method, seed) for c in read()["cells"]):
            continue
        made = cell(given.data, task, method, seed)
        record = read()  # again: another process may have added to it
        record["cells"].append(made)
        record |= {"command": "python benchmarks/text.py --data DATA", "torch": torch.__version__}
        record["setting"] = {**COMMON, "tasks": TASKS}
        write_record("text", record)
        print(made, flush=True)


if __name__ == "__main__":
    main()
