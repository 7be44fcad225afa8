"""The true error from 300 checked labels and all the human ones, beside the 300 alone: CIFAR-10N.

A head is trained on one half's labels as people gave them; the other half's labels say how often it disagrees
with them, and 300 of that half, drawn by `hesstune check`, are given their true labels. Three seeds.
Finished cells are kept in results/certificates_checked.json.

    python benchmarks/certificates_checked.py --data DATA
"""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path
from typing import Any

import hesstune as ht
from hesstune.analysis.certify import certify_run
from hesstune.analysis.check import check_run
from hesstune.bounds.pac_bayes import confidence_upper
from hesstune.inputs.feature_store import FeatureStore, sharing
from records import arguments, read_record, write_record

NAME = "certificates_checked"
LABELS = ("worse", "random1", "aggregate")
SAMPLE, DELTA, HALF = 300, 0.05, 0.5
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
    with (folder / "checked.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "label"), *((name, true[name]) for name in ids)])
    made = certify_run(
        run, checked=str(folder / "checked.csv"), prior_fraction=HALF, seed=seed, delta=DELTA, repeats="allow"
    )
    numbers = made.numbers
    errors = int(numbers["wrong_disagreeing"] + numbers["wrong_agreeing"])
    return {
        "risk": made.risk,
        "checked alone": confidence_upper(errors, SAMPLE, DELTA),
        "errors": errors,
        "n": made.n,
        "test error of the whole": 1 - float(run.outcome.test_accuracy or 0.0),
        "numbers": dict(numbers),
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
