"""The page of a run."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hesstune.report.layers import (
    block_rows,
    carrier_words,
    distribution,
    layer_rows,
    layer_words,
    setters,
    spectrum,
)
from hesstune.report.narrative import (
    assumptions,
    onset,
    provenance,
    training_words,
    uncontradicted_rate,
    verdict,
)
from hesstune.report.rendering import curves, heat_map, render, stability
from hesstune.runs.model_card import test_labels
from hesstune.runs.read_records import Records
from hesstune.runs.records import LABEL_ISSUES
from hesstune.runs.run import Run
from hesstune.storage.tables import write_rows

SHOWN = 48
# Rows of the list of suspected label errors that the page itself carries; the run folder has all.
LISTED = 10_000


class Plot(NamedTuple):
    """A plot, and its description in words."""

    svg: str
    words: str


class Matrix(NamedTuple):
    """A noise matrix as numbers, plot and words."""

    title: str
    rows: list[list[float]]
    svg: str
    words: str


class Listed(NamedTuple):
    """A CSV file in base64, the number of its rows, and of all rows that there are."""

    csv: str
    rows: int
    all: int


def render_run(run: Run | str | Path) -> str:
    """Return the HTML page of a run: one file, no external resource, complete without JavaScript.

    Args:
        run: A finished run, or its folder.

    Raises:
        RunError: If the folder is no finished run, or a record is damaged.
    """
    run = run if isinstance(run, Run) else Run.load(run)
    return render("run.html.j2", context(run.records))


def example_ids(records: Records) -> list[str]:
    """Return the ids of the examples that the page wants to show."""
    ids = [row.id for row in setters(records)]
    ids += [row["id"] for row in (records.label_issues or [])[:SHOWN]]
    return list(dict.fromkeys(ids))


def context(records: Records) -> dict[str, object]:
    """Return everything the template shows."""
    layers, rows = layer_rows(records), records.stability.rows if records.stability else []
    return {
        "r": records,
        "facts": records.facts,
        "result": records.outcome,
        "test_labels": test_labels(records.facts),
        "verdict": verdict(records),
        "provenance": provenance(records),
        "training": _training(records),
        "matrices": _matrices(records),
        "layers": layers,
        "layer_words": layer_words(layers),
        "blocks": block_rows(layers),
        "carriers": carrier_words(records, layers),
        "spectrum": spectrum(layers),
        "setters": setters(records),
        "distribution": distribution(records),
        "stability": stability("stability", rows) if rows else None,
        "stability_rows": rows,
        "issues": None if records.label_issues is None else records.label_issues[:SHOWN],
        "issues_file": LABEL_ISSUES,
        "found": _found(records),
        "probed": _probed(records),
        "listed": _listed(records),
        "assumptions": assumptions(records),
    }


def _training(records: Records) -> Plot | None:
    epochs = records.epochs
    if not epochs:
        return None
    lines: list[tuple[str, list[float | None]]] = [
        ("training, labels as trained on", [e.train_accuracy for e in epochs]),
        ("validation, labels as given", [e.val_accuracy for e in epochs]),
    ]
    true = [e.val_accuracy_true_labels for e in epochs]
    if any(value is not None for value in true):
        lines.append(("validation, true labels", true))
    start, rate = onset(records), uncontradicted_rate(records)
    share = "share of training labels that are right"
    share += "" if records.facts.noise.injected else ", by the noise matrix"
    plot = curves(
        "training",
        [e.epoch for e in epochs],
        lines,
        ("Accuracy by epoch", "epoch", "accuracy (share of 1)"),
        None if rate is None else (share, 1 - rate),
        None if start is None else ("starts to fit the noise", start[0]),
    )
    return Plot(plot, training_words(records))


def _matrices(records: Records) -> list[Matrix]:
    """Return the noise matrix of the loss, the estimate and, if true labels are known, the true matrix."""
    classes = records.facts.classes
    found: list[tuple[str, list[list[float]]]] = []
    if used := records.noise_matrix:
        how = used.method
        title = f"Used by the loss (estimated: {how})" if how else "Used by the loss"
        found.append((title, used.matrix))
    if after := records.estimated_afterwards:
        title = f"Estimated afterwards, from {after.examples} validation examples"
        found.append((title, after.matrix))
    if (true := _true_matrix(records)) is not None:
        found.append(("True: the changes made to the training labels", true))
    return [
        Matrix(
            title, rows, heat_map(f"noise{at}", rows, classes, title), _matrix_words(np.array(rows), classes)
        )
        for at, (title, rows) in enumerate(found)
    ]


def _true_matrix(records: Records) -> list[list[float]] | None:
    if not records.train or not all(row["true_label"] for row in records.train):
        return None
    index = {name: i for i, name in enumerate(records.facts.classes)}
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
    """Say how many of the labels listed first are in fact wrong, if true labels are known."""
    rows = (records.label_issues or [])[:SHOWN]
    if not rows or not all(row["true_label"] for row in rows):
        return None
    wrong = sum(row["given_label"] != row["true_label"] for row in rows)
    return (
        f"Of the {len(rows)} listed here, {wrong} were in fact changed (known, since the noise was injected)."
    )


def _probed(records: Records) -> bool:
    """Return whether probes that did not see the labels ranked them, instead of the run's network."""
    record = records.label_issues_record
    return record is not None and record.judged_by == "probes"


def _listed(records: Records) -> Listed | None:
    """Return the list of label issues as a CSV file that the page carries, base64."""
    if not records.label_issues:
        return None
    file, rows = io.StringIO(), records.label_issues[:LISTED]
    write_rows(file, list(rows[0]), [list(row.values()) for row in rows])
    encoded = base64.b64encode(file.getvalue().encode("utf-8")).decode("ascii")
    return Listed(encoded, len(rows), len(records.label_issues))
