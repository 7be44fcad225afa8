"""The settings that benchmarks/text.py uses for each method: chosen by noisy validation, on other seeds.

2,000 SST-2 training sentences and 4,500 more for validation, the labels of both wrong at random with
probability 0.4. No true label and no test sentence is read. The risk of a setting is the consistent 0-1
loss on the validation sentences: the mean of 1 - (F^-1)[given label, predicted], whose expectation is the
clean error. Each method has six settings on the first seed; its three best run on the second seed, too,
and the least mean risk wins. Finished cells are kept in benchmarks/results/text_settings.json.

    python benchmarks/text_settings.py --data DATA [--seed SEED]
"""

from __future__ import annotations

import csv
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hesstune as ht
from records import arguments, read_record, write_record
from text import rows_of

COMMON = {"model": "minilm", "max_length": 64, "batch_size": 32, "epochs": 4}
NOISE = ht.NoiseMatrix.symmetric(2, 0.4)
TRAIN, VALIDATION = 2000, 4500
SEEDS = (100, 101)
FINALISTS = 3
SETTINGS: dict[str, dict[str, Any]] = {
    f"vanilla {lr:g}": {"method": "vanilla", "lr": lr} for lr in (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 4e-4)
} | {
    f"robust {lr:g} {radius:g}": {"method": "robust", "lr": lr, "radius": {"head": 0.5, "*": radius}}
    for lr in (1e-4, 2e-4)
    for radius in (0.1, 0.2, 0.4)
}
METHODS = ("vanilla", "robust")
NAMES = ("negative", "positive")


def noisy(root: Path, seed: int) -> list[tuple[str, int]]:
    """Return sentences with labels already made wrong; the rest of the script never sees the true ones."""
    rows = rows_of(root, "sst2", "train")
    rows = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))[: TRAIN + VALIDATION]]
    labels = NOISE.corrupt(np.array([int(label) for _, _, label in rows]), seed=seed)
    return [(row[0], int(label)) for row, label in zip(rows, labels, strict=True)]


def write_csv(path: Path, rows: list[tuple[str, int]], parts: list[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "split"])
        for (text, label), part in zip(rows, parts, strict=True):
            writer.writerow([text, NAMES[label], part])


def cell(root: Path, setting: str, seed: int) -> dict[str, object]:
    rows = noisy(root, seed)
    with tempfile.TemporaryDirectory() as folder:
        # The parts that a run also wants are a few of the noisy validation sentences.
        path, held_out = Path(folder) / "data.csv", Path(folder) / "held_out.csv"
        write_csv(path, rows[: TRAIN + 100], ["train"] * TRAIN + ["val"] * 50 + ["test"] * 50)
        write_csv(held_out, rows[TRAIN:], ["test"] * VALIDATION)
        start = time.perf_counter()
        run = ht.finetune(
            COMMON,
            data=f"csv:{path}",
            seed=seed,
            noise_matrix="symmetric:0.4",
            out=f"{folder}/run",
            **SETTINGS[setting],
        )
        seconds = time.perf_counter() - start
        probabilities = ht.predict(run, f"csv:{held_out}").probabilities
    labels = torch.tensor([label for _, label in rows[TRAIN:]])
    predicted = torch.from_numpy(probabilities.argmax(axis=1))
    risks = 1.0 - torch.tensor(NOISE.inverse)[labels, predicted]
    loss = ht.ConsistentLoss(NOISE)(torch.from_numpy(probabilities).log(), labels)
    return {
        "setting": setting,
        "seed": seed,
        "risk": float(risks.mean()),
        "risk_stderr": float(risks.std() / len(risks) ** 0.5),
        "consistent_loss": float(loss),
        "train_accuracy": run.result["train_accuracy"],
        "distance": run.result["distance"],
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
    }


def read() -> dict[str, Any]:
    return read_record("text_settings", {"cells": []})


def ranked(cells: list[dict[str, Any]], method: str, seeds: Sequence[int]) -> list[str]:
    """Return a method's settings that all the seeds have tried, the least mean risk first."""
    risks = {name: {c["seed"]: c["risk"] for c in cells if c["setting"] == name} for name in SETTINGS}
    tried = [n for n in risks if SETTINGS[n]["method"] == method and set(seeds) <= set(risks[n])]
    return sorted(tried, key=lambda n: sum(risks[n][seed] for seed in seeds))


def todo(cells: list[dict[str, Any]], method: str, seed: int) -> list[str]:
    """Return what a method has to try on a seed: all of it on the first, the best of that afterwards."""
    names = [n for n in SETTINGS if SETTINGS[n]["method"] == method]
    if seed != SEEDS[0]:
        names = ranked(cells, method, SEEDS[:1])[:FINALISTS]
    return [n for n in names if not any((c["setting"], c["seed"]) == (n, seed) for c in cells)]


def main() -> None:
    parser = arguments(__doc__, "sst2")
    parser.add_argument("--method", choices=METHODS, help="only this method")
    given = parser.parse_args()
    for method in METHODS if given.method is None else [given.method]:
        for seed in SEEDS:
            for setting in todo(read()["cells"], method, seed):
                keep(cell(given.data, setting, seed))


def keep(made: dict[str, object]) -> None:
    """Add a cell to the record; another process may have added to it meanwhile."""
    record = read()
    record["cells"].append(made)
    record |= {"command": "python benchmarks/text_settings.py --data DATA", "torch": torch.__version__}
    record |= {"common": COMMON, "settings": SETTINGS, "train": TRAIN, "validation": VALIDATION}
    record["chosen"] = {m: next(iter(ranked(record["cells"], m, SEEDS)), None) for m in METHODS}
    write_record("text_settings", record)
    print(made, flush=True)


if __name__ == "__main__":
    main()
