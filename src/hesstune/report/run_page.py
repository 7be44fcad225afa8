"""A run's page: what its records say, in the order a reader asks."""

from __future__ import annotations

import base64
import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from hesstune.report.environment import render
from hesstune.report.figures import curves, heat_map, stability
from hesstune.report.layers import distribution, layer_rows, layer_words, setters
from hesstune.report.narrative import assumptions, onset, provenance, training_words, verdict
from hesstune.report.records import Records, read_records

__all__ = ["pictured", "render_run"]

SHOWN = 48
# Rows of the list of doubtful labels that the page itself carries; the run folder has all.
LISTED = 10_000


def render_run(path: str | Path) -> str:
    """Return the HTML page of a run folder: one file, no external resource, complete without JavaScript.

    Raises:
        RunError: If the folder is no finished run, or a record is damaged.
    """
    return render("run.html.j2", context(read_records(Path(path))))


def pictured(path: str | Path) -> list[str]:
    """Return the ids of the training examples that the page wants to show."""
    records = read_records(Path(path))
    ids = [row["id"] for row in setters(records)] + [row["id"] for row in (records.doubtful or [])[:SHOWN]]
    return list(dict.fromkeys(ids))


def context(records: Records) -> dict[str, Any]:
    """Return everything the template shows."""
    layers, rows = layer_rows(records), _rows(records.stability)
    return {
        "r": records,
        "result": records.run["result"],
        "verdict": verdict(records),
        "provenance": provenance(records),
        "training": _training(records),
        "matrices": _matrices(records),
        "layers": layers,
        "layer_words": layer_words(layers),
        "setters": setters(records),
        "distribution": distribution(records),
        "stability": stability("stability", rows) if rows else None,
        "stability_rows": rows,
        "doubtful": None if records.doubtful is None else records.doubtful[:SHOWN],
        "found": _found(records),
        "listed": _listed(records),
        "assumptions": assumptions(records),
    }


def _rows(record: dict[str, Any] | None) -> list[dict[str, Any]]:
    return record["rows"] if record else []


def _training(records: Records) -> dict[str, Any] | None:
    if not records.metrics:
        return None
    columns = [
        ("training, labels as trained on", "train_accuracy"),
        ("validation, labels as given", "val_accuracy"),
    ]
    if any(m["val_accuracy_true_labels"] is not None for m in records.metrics):
        columns.append(("validation, true labels", "val_accuracy_true_labels"))
    start, rate = onset(records), records.rate
    picture = curves(
        "training",
        [m["epoch"] for m in records.metrics],
        [(title, [m[key] for m in records.metrics]) for title, key in columns],
        ("Accuracy by epoch", "epoch", "accuracy (share of 1)"),
        None if rate is None else ("share of training labels that are right", 1 - rate),
        None if start is None else ("starts to fit the noise", start[0]),
    )
    return {"svg": picture, "words": training_words(records)}


def _matrices(records: Records) -> list[dict[str, Any]]:
    """Return the matrices believed, estimated and, where true labels are known, true."""
    classes, found = records.classes, []
    if records.noise:
        how = records.noise.get("method")
        title = f"Believed by the loss (estimated: {how})" if how else "Believed by the loss"
        found.append({"title": title, "rows": records.noise["matrix"]})
    if records.estimate:
        title = f"Estimated afterwards, from {records.estimate['examples']} validation examples"
        found.append({"title": title, "rows": records.estimate["matrix"]})
    if (true := _true_matrix(records)) is not None:
        found.append({"title": "True: the changes made to the training labels", "rows": true})
    for at, matrix in enumerate(found):
        matrix["svg"] = heat_map(f"noise{at}", matrix["rows"], classes, matrix["title"])
        matrix["words"] = _matrix_words(np.array(matrix["rows"]), classes)
    return found


def _true_matrix(records: Records) -> list[list[float]] | None:
    if not records.train or not all(row["true_label"] for row in records.train):
        return None
    index = {name: i for i, name in enumerate(records.classes)}
    counts = np.zeros((len(index), len(index)))
    for row in records.train:
        counts[index[row["true_label"]], index[row["label"]]] += 1
    rows: list[list[float]] = (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).tolist()
    return rows


def _matrix_words(matrix: np.ndarray[Any, Any], classes: list[str]) -> str:
    kept = np.diag(matrix)
    off = matrix - np.diag(kept)
    i, j = np.unravel_index(off.argmax(), off.shape)
    return (
        f"On average {kept.mean():.1%} of a class keep their label (least: {classes[kept.argmin()]}, "
        f"{kept.min():.1%}); the commonest mistake is {classes[i]} labelled {classes[j]} ({off[i, j]:.1%})."
    )


def _found(records: Records) -> str | None:
    """Say how many of the labels listed first are in fact wrong, where true labels are known."""
    rows = (records.doubtful or [])[:SHOWN]
    if not rows or not all(row["true_label"] for row in rows):
        return None
    wrong = sum(row["given_label"] != row["true_label"] for row in rows)
    return (
        f"Of the {len(rows)} listed here, {wrong} were in fact changed (known, since the noise was injected)."
    )


def _listed(records: Records) -> dict[str, Any] | None:
    """Return the list of doubtful labels as a CSV file that the page carries, base64."""
    if not records.doubtful:
        return None
    file, rows = io.StringIO(), records.doubtful[:LISTED]
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    encoded = base64.b64encode(file.getvalue().encode("utf-8")).decode("ascii")
    return {"csv": encoded, "rows": len(rows), "all": len(records.doubtful)}
