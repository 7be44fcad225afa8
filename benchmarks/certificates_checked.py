"""The true error from 300 checked labels and all the human ones, beside the 300 alone: CIFAR-10N.

A head is trained on one half's labels as people gave them; the other half's labels say how often it disagrees
with them, and 300 of that half, drawn by `hesstune check`, are given their true labels. Three seeds.
Which 300 are drawn decides by how much the one is tighter than the other, so beside the certificate of each
run stand the means of both over 100 further draws from the same half, whose true labels are all known here.
Finished cells are kept in results/certificates_checked.json.

    python benchmarks/certificates_checked.py --data DATA
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import hesstune as ht
from hesstune.analysis.certify import certify_run, check_run
from hesstune.analysis.trained_prior import split_prior_and_bound
from hesstune.bounds.checked import checked_bound
from hesstune.bounds.pac_bayes import confidence_upper
from hesstune.bounds.record import Certificate
from hesstune.inputs.features import FeatureStore, sharing
from records import arguments, read_record, write_record

NAME = "certificates_checked"
LABELS = ("worse", "random1", "aggregate")
SAMPLE, DELTA, HALF, DRAWS = 300, 0.05, 0.5, 100
OPTIONS: dict[str, Any] = {"method": "vanilla", "train": "head", "image_size": 96, "val_fraction": 0}


def write_table(data: Path, labels: str, path: Path) -> dict[str, str]:
    """Write the images with one person's labels; return the true ones by id."""
    true = {}
    with (data / "cifar10n" / "labels.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["id", "image", "label", "split"])
        for line in lines:
            test = line["split"] == "test"
            given = line["true_label"] if test else line[labels]
            image = str(data / "cifar10n" / line["image"])
            out.writerow([line["id"], image, given, "test" if test else "train"])
            true[line["id"]] = line["true_label"]
    return true


def cell(data: Path, labels: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train, check and certify once."""
    true = write_table(data, labels, folder / "table.csv")
    run = ht.finetune(OPTIONS, data=f"csv:{folder / 'table.csv'}", seed=seed, out=folder / "run")
    sheet = check_run(run, sample=SAMPLE, prior_fraction=HALF, seed=seed)
    with sheet.open(newline="", encoding="utf-8") as file:
        ids = [line["id"] for line in csv.DictReader(file)]
    made = certified(run, {name: true[name] for name in ids}, seed, folder / "checked.csv")
    numbers = made.numbers
    task = run.task()
    rest = split_prior_and_bound(np.arange(len(task.train)), HALF, seed)[1]
    every = certified(
        run, {task.train.ids[row]: true[task.train.ids[row]] for row in rest}, seed, folder / "all.csv"
    )
    errors = int(numbers["wrong_disagreeing"] + numbers["wrong_agreeing"])
    return {
        "risk": made.risk,
        "checked alone": confidence_upper(errors, SAMPLE, DELTA),
        "errors": errors,
        "n": made.n,
        "test error of the whole": 1 - float(run.outcome.test_accuracy or 0.0),
        "numbers": dict(numbers),
        **drawn_again(every.numbers, made.n),
    }


def certified(run: ht.Run, labels: dict[str, str], seed: int, path: Path) -> Certificate:
    """Certify by these checked labels."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "label"), *labels.items()])
    return certify_run(run, checked=str(path), prior_fraction=HALF, seed=seed, delta=DELTA, repeats="allow")


def drawn_again(every: Mapping[str, float], n: int) -> dict[str, float]:
    """Return the means of both bounds over further draws, and how often this one is below the truth."""
    disagreeing, wrong = int(every["disagreeing"]), int(every["wrong_disagreeing"] + every["wrong_agreeing"])
    counts = [int(every["wrong_disagreeing"]), 0, int(every["wrong_agreeing"]), 0]
    counts[1], counts[3] = disagreeing - counts[0], n - disagreeing - counts[2]
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(DRAWS):
        k1, right1, k0, right0 = (int(v) for v in rng.multivariate_hypergeometric(counts, SAMPLE))
        mine = checked_bound((k1, k1 + right1), (k0, k0 + right0), disagreeing, n, DELTA)
        rows.append((mine, confidence_upper(k1 + k0, SAMPLE, DELTA)))
    mine, alone = np.array(rows).T
    return {
        "mean risk": float(mine.mean()),
        "mean alone": float(alone.mean()),
        "tighter": float((mine < alone).mean()),
        "error of the half": wrong / n,
        "below it": float((mine < wrong / n).mean()),
    }


def main() -> None:
    parser = arguments(__doc__, "cifar10n")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--store", type=Path, help="folder that keeps features from call to call")
    asked = parser.parse_args()
    record = read_record(NAME, {"sample": SAMPLE, "delta": DELTA, "cells": {}})
    with sharing(FeatureStore(asked.store)):
        for labels in LABELS:
            for seed in asked.seeds:
                if str(seed) in record["cells"].setdefault(labels, {}):
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    found = cell(asked.data, labels, seed, Path(folder))
                record["cells"][labels][str(seed)] = found
                write_record(NAME, record)
                print(labels, seed, {k: v for k, v in found.items() if k != "numbers"}, flush=True)


if __name__ == "__main__":
    main()
