"""Time and memory of `hesstune label` on CSV files of a million rows of votes.

One row per example: ten annotators, five classes, a tenth of the votes missing, Dawid-Skene. One row per
vote: five of 500 annotators on each example, the label model `auto`. Each by the command line in its own
process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

CLASSES = ("ant", "bee", "cow", "dog", "eel")
ACCURACIES = (0.9, 0.85, 0.8, 0.8, 0.75, 0.7, 0.7, 0.65, 0.6, 0.5)
MISSING = 0.1
# One row per vote: annotators, and votes on an example.
ANNOTATORS, VOTES = 500, 5
Labels = NDArray[np.int64]


def votes(rows: int, seed: int = 0) -> tuple[Labels, Labels]:
    """Return true labels, (N,), and the annotators' votes, (N, M), -1 if one is missing."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, len(CLASSES), rows)
    shape = (rows, len(ACCURACIES))
    table = np.where(rng.random(shape) < ACCURACIES, true[:, None], rng.integers(0, len(CLASSES), shape))
    table[rng.random(shape) < MISSING] = -1
    return true, table


def write(path: Path, true: Labels, table: Labels) -> None:
    """Write one row per example."""
    names = np.array([*CLASSES, ""], dtype=object)
    frame = pd.DataFrame({f"vote_{j}": names[votes] for j, votes in enumerate(table.T)})
    frame.insert(0, "id", [f"x{n}" for n in range(len(true))])
    frame.insert(1, "true_label", names[true])
    frame.to_csv(path, index=False)


def write_long(path: Path, rows: int, seed: int = 1) -> tuple[Labels, float]:
    """Write one row per vote; return true labels, (N,), and the share that majority votes get right."""
    rng = np.random.default_rng(seed)
    n, k = rows // VOTES, len(CLASSES)
    true, ability = rng.integers(0, k, n), rng.uniform(0.55, 0.95, ANNOTATORS)
    annotators = rng.integers(0, ANNOTATORS, (n, VOTES))
    right = rng.random((n, VOTES)) < ability[annotators]
    given = np.where(right, true[:, None], rng.integers(0, k, (n, VOTES)))
    votes = {"task": np.repeat(np.arange(n), VOTES), "worker": annotators.ravel(), "label": given.ravel()}
    frame = pd.DataFrame(votes).drop_duplicates(["task", "worker"])
    counts = np.zeros((n, k))
    np.add.at(counts, (frame["task"], frame["label"]), 1)
    frame["label"] = np.array(CLASSES)[frame["label"]]
    frame["task"], frame["worker"] = "x" + frame["task"].astype(str), "w" + frame["worker"].astype(str)
    frame.to_csv(path, index=False)
    return true, float((counts.argmax(axis=1) == true).mean())


def measured(folder: Path, path: Path, *options: str) -> tuple[float, float, dict[str, Any]]:
    """Run the command; return its seconds, its peak memory in MiB, and its record."""
    command = [sys.executable, "-m", "hesstune", "label", "--votes", str(path), *options]
    command += ["--out", str(folder / "labels.csv"), "--json", "--quiet", "--overwrite"]
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    if status:
        raise SystemExit("the command failed")
    return seconds, usage.ru_maxrss / 1024, json.loads(printed)


def measure(case: dict[str, Any], run: Any) -> dict[str, Any]:
    """Label both files."""
    rows = run.settings["rows"]
    true, table = votes(rows)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "votes.csv", true, table)
        megabytes = (folder / "votes.csv").stat().st_size / 2**20
        seconds, memory, found = measured(folder, folder / "votes.csv", "--label-model", "dawid_skene")
        made = pd.read_csv(folder / "labels.csv", index_col=0).iloc[:, 0]
        of_votes, majority = write_long(folder / "long.csv", rows)
        long_seconds, long_memory, long_found = measured(folder, folder / "long.csv")
        chosen = pd.read_csv(folder / "labels.csv", index_col=0).iloc[:, 0]
    own = np.array(CLASSES)[true[[int(name[1:]) for name in made.index]]]
    wanted = pd.crosstab(own, made.to_numpy(), normalize="index").to_numpy()
    error = np.abs(np.array(found["noise_matrix"]["matrix"]) - wanted).sum(1).mean() / 2
    expected = pd.Series(np.array(CLASSES)[of_votes], [f"x{n}" for n in range(len(of_votes))])
    return {
        "rows": rows,
        "annotators": len(ACCURACIES),
        "classes": len(CLASSES),
        "file_mib": round(megabytes, 1),
        "seconds": round(seconds, 1),
        "peak_mib": round(memory),
        "distinct_rows": len(np.unique(table, axis=0)),
        "accuracy": found["accuracy"],
        "majority_accuracy": found["majority_accuracy"],
        "total_variation": float(error),
        "a_row_a_vote": {
            "annotators": ANNOTATORS,
            "examples": len(of_votes),
            "seconds": round(long_seconds, 1),
            "peak_mib": round(long_memory),
            "model": long_found["label_model"],
            "accuracy": float((chosen.reindex(expected.index) == expected).mean()),
            "majority_accuracy": majority,
        },
    }
