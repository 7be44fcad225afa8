"""The true error from 300 checked labels and all given ones, compared with the 300 alone: CIFAR-10N.

A head is trained on one half's labels as people gave them. The other half shows how often it disagrees with
them, and 300 of that half, drawn by `hesstune check`, get their true labels. How much tighter one bound is
depends on which 300 are drawn, so the means of both over 100 further draws are given, too.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import hesstune as ht
from data_files import cifar10n_lines, write_table
from hesstune.analysis.certify import certify_run, check_run
from hesstune.analysis.trained_prior import split_prior_and_bound
from hesstune.bounds.kinds.checked import checked_bound
from hesstune.bounds.record import Certificate
from hesstune.noise.confidence import confidence_upper
from records import Run

SAMPLE, DELTA, HALF, DRAWS = 300, 0.05, 0.5, 100
OPTIONS: dict[str, Any] = {"method": "vanilla", "train": "head", "image_size": 96, "val_fraction": 0}


def measure(case: dict[str, Any], asked: Run) -> dict[str, Any]:
    """Train, check and certify once."""
    seed, lines = asked.seed, cifar10n_lines(asked.folder("cifar10n"))
    rows, true = [], {line["id"]: line["true_label"] for line in lines}
    for line in lines:
        part = "test" if line["split"] == "test" else "train"
        given = line["true_label"] if part == "test" else line[case["labels"]]
        rows.append((line["id"], line["image"], given, part))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = write_table(folder / "table.csv", ("id", "image", "label", "split"), rows)
        run = ht.finetune(OPTIONS, data=f"csv:{table}", seed=seed, out=folder / "run")
        with check_run(run, sample=SAMPLE, prior_fraction=HALF, seed=seed).open(newline="") as file:
            drawn = [line["id"] for line in csv.DictReader(file)]

        def certified(ids: list[str]) -> Certificate:
            sheet = write_table(folder / "checked.csv", ("id", "label"), [(one, true[one]) for one in ids])
            options: dict[str, Any] = {"prior_fraction": HALF, "delta": DELTA, "repeats": "allow"}
            return certify_run(run, checked_labels=str(sheet), seed=seed, **options)

        made, train = certified(drawn), run.task().train
        other_half = split_prior_and_bound(np.arange(len(train)), HALF, seed)[1]
        every = certified([train.ids[row] for row in other_half])
    errors = int(made.numbers["wrong_disagreeing"] + made.numbers["wrong_agreeing"])
    return {
        "risk": made.risk,
        "checked alone": confidence_upper(errors, SAMPLE, DELTA),
        "errors": errors,
        "n": made.n,
        "test error of the whole": 1 - float(run.outcome.test_accuracy or 0.0),
        "numbers": dict(made.numbers),
        **drawn_again(every.numbers, made.n),
    }


def drawn_again(every: Mapping[str, float], n: int) -> dict[str, float]:
    """Return the means of both bounds over further draws, and how often this one is below the truth."""
    disagreeing, wrong = int(every["disagreeing"]), int(every["wrong_disagreeing"] + every["wrong_agreeing"])
    counts = [int(every["wrong_disagreeing"]), 0, int(every["wrong_agreeing"]), 0]
    counts[1], counts[3] = disagreeing - counts[0], n - disagreeing - counts[2]
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(DRAWS):
        k1, right1, k0, right0 = (int(v) for v in rng.multivariate_hypergeometric(counts, SAMPLE))
        risk = checked_bound((k1, k1 + right1), (k0, k0 + right0), disagreeing, n, DELTA)
        rows.append((risk, confidence_upper(k1 + k0, SAMPLE, DELTA)))
    risk, alone = np.array(rows).T
    return {
        "mean risk": float(risk.mean()),
        "mean alone": float(alone.mean()),
        "tighter": float((risk < alone).mean()),
        "error of the half": wrong / n,
        "below it": float((risk < wrong / n).mean()),
    }
