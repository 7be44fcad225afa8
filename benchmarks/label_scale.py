"""Time and memory of `hesstune label` on CSV files of a million rows of votes.

One row per example: ten annotators, five classes, a tenth of the votes missing, Dawid-Skene. One row per
vote: five of 500 annotators on each example, the label model `auto`. Each by the command line in its own
process. The posteriors of the first rows are compared with crowd-kit's.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLASSES = ("ant", "bee", "cow", "dog", "eel")
ACCURACIES = (0.9, 0.85, 0.8, 0.8, 0.75, 0.7, 0.7, 0.65, 0.6, 0.5)
MISSING = 0.1
# A row a vote: annotators, and votes on an example.
WORKERS, VOTES = 500, 5
Labels = NDArray[np.int64]


def votes(rows: int, seed: int = 0) -> tuple[Labels, Labels]:
    """Return true labels, (N,), and the annotators' votes, (N, M), -1 where one is missing."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, len(CLASSES), rows)
    shape = (rows, len(ACCURACIES))
    table = np.where(rng.random(shape) < ACCURACIES, true[:, None], rng.integers(0, len(CLASSES), shape))
    table[rng.random(shape) < MISSING] = -1
    return true, table


def write(path: Path, true: Labels, table: Labels) -> None:
    names = np.array([*CLASSES, ""], dtype=object)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "true_label", *(f"vote_{j}" for j in range(table.shape[1]))])
        for n, (own, row) in enumerate(zip(names[true].tolist(), names[table].tolist(), strict=True)):
            writer.writerow([f"x{n}", own, *row])


def write_long(path: Path, rows: int, seed: int = 1) -> tuple[Labels, float]:
    """Write a row a vote; return true labels, (N,), and the share that majority votes get right."""
    rng = np.random.default_rng(seed)
    n, k = rows // VOTES, len(CLASSES)
    true, ability = rng.integers(0, k, n), rng.uniform(0.55, 0.95, WORKERS)
    workers = rng.integers(0, WORKERS, (n, VOTES))
    given = np.where(rng.random((n, VOTES)) < ability[workers], true[:, None], rng.integers(0, k, (n, VOTES)))
    first = np.array([[w not in row[:j] for j, w in enumerate(row)] for row in workers.tolist()])
    counts = np.stack([((given == c) & first).sum(axis=1) for c in range(k)], axis=1)
    with path.open("w", newline="") as file:
        file.write("task,worker,label\n")
        for example, place in zip(*np.nonzero(first), strict=True):
            own = CLASSES[given[example, place]]
            file.write(f"x{example},w{workers[example, place]},{own}\n")
    return true, float((counts.argmax(axis=1) == true).mean())


def measured(folder: Path, path: Path, *options: str) -> tuple[float, float, dict[str, Any]]:
    """Run the command; return its seconds, its peak memory in MiB, and its record."""
    command = [sys.executable, "-m", "hesstune", "label", "--votes", str(path), *options]
    command += ["--out", str(folder / "labels.csv"), "--json", "--quiet", "--overwrite"]
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    if status:
        raise SystemExit("the command failed")
    return seconds, usage.ru_maxrss / 1024, json.loads(said)


def labels_in(folder: Path) -> dict[str, str]:
    """Return the labels that were written, by id."""
    with (folder / "labels.csv").open(newline="") as file:
        next(file)
        return {row[0]: row[1] for row in csv.reader(file)}


def cases(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the one case."""
    yield {}


def measure(case: dict[str, Any], run: Any) -> dict[str, Any]:
    """Label both files."""
    rows = run.settings["rows"]
    true, table = votes(rows)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "votes.csv", true, table)
        megabytes = (folder / "votes.csv").stat().st_size / 2**20
        seconds, memory, found = measured(folder, folder / "votes.csv", "--label-model", "dawid_skene")
        made = labels_in(folder)
        of_votes, majority = write_long(folder / "long.csv", rows)
        long_seconds, long_memory, long_found = measured(folder, folder / "long.csv")
        chosen = labels_in(folder)
    given = np.array([CLASSES.index(made[f"x{n}"]) for n in range(rows) if f"x{n}" in made])
    kept = np.array([f"x{n}" in made for n in range(rows)])
    joint = np.zeros((len(CLASSES), len(CLASSES)))
    np.add.at(joint, (true[kept], given), 1)
    wanted = joint / joint.sum(axis=1, keepdims=True)
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
        "total_variation": float(
            np.abs(np.array(found["noise_matrix"]["matrix"]) - wanted).sum(1).mean() / 2
        ),
        "a_row_a_vote": {
            "annotators": WORKERS,
            "examples": len(of_votes),
            "seconds": round(long_seconds, 1),
            "peak_mib": round(long_memory),
            "model": long_found["label_model"],
            "accuracy": float(np.mean([chosen[f"x{n}"] == CLASSES[y] for n, y in enumerate(of_votes)])),
            "majority_accuracy": majority,
        },
    }
