"""Robust against plain fine-tuning on text: MiniLM on SST-2 and MRPC with wrong labels.

2,000 SST-2 sentences with 40 % symmetric noise, and 1,000 MRPC pairs with 20 %; both methods have the
same budget, split and order; the loss of the robust one is told the noise. Finished cells are kept in
benchmarks/results/text.json and not run again.

    python benchmarks/text.py --data ../shared/data [--cells N]
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import hesstune as ht

RESULT = Path(__file__).parent / "results" / "text.json"
COMMON = {"model": "minilm", "lr": 5e-5, "max_length": 64, "batch_size": 32}
RADIUS = {"head": 0.5, "*": 0.1}
CELLS = [
    (task, method, seed)
    for task, seeds in (("sst2", (0, 1, 2)), ("mrpc", (0,)))
    for seed in seeds
    for method in ("vanilla", "robust")
]
TASKS = {
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


def cell(root: Path, task: str, method: str, seed: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.csv"
        write_csv(root, task, seed, path)
        start = time.perf_counter()
        run = ht.finetune(
            COMMON,
            data=f"csv:{path}",
            method=method,
            noise=TASKS[task]["noise"],
            epochs=TASKS[task]["epochs"],
            radius=RADIUS if method == "robust" else None,
            seed=seed,
            out=f"{folder}/run",
        )
        keep = ("test_accuracy", "test_accuracy_interval", "train_accuracy", "gap", "distance")
        return {
            "task": task,
            "method": method,
            "seed": seed,
            **{key: run.result[key] for key in keep},
            "realised_noise": run.record["noise"]["realised_rate"],
            "seconds": round(time.perf_counter() - start, 1),
            "threads": torch.get_num_threads(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with sst2 and mrpc")
    parser.add_argument("--cells", type=int, default=len(CELLS), help="stop after so many new cells")
    given = parser.parse_args()
    record = json.loads(RESULT.read_text()) if RESULT.is_file() else {"cells": []}
    record |= {"command": "python benchmarks/text.py --data DATA", "torch": torch.__version__}
    record |= {"setting": {**COMMON, "radius": RADIUS, "tasks": TASKS}}
    done = {(c["task"], c["method"], c["seed"]) for c in record["cells"]}
    for task, method, seed in [cell for cell in CELLS if cell not in done][: given.cells]:
        record["cells"].append(cell(given.data, task, method, seed))
        RESULT.write_text(json.dumps(record, indent=1) + "\n")
        print(record["cells"][-1], flush=True)


if __name__ == "__main__":
    main()
