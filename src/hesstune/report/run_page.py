"""The page of a run."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hesstune.curvature.result import CONSTRAINT_EVIDENCE
from hesstune.report.layers import (
    block_table,
    carriers,
    distribution,
    layer_columns,
    layer_rows,
    layer_table,
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
from hesstune.report.rendering import Card, Plot, chart, heat_map, number, render
from hesstune.runs.model_card import test_labels
from hesstune.runs.read_records import Records
from hesstune.runs.records import LABEL_ISSUES
from hesstune.runs.run import Run
from hesstune.storage.tables import write_rows

SHOWN = 48
# Rows of the list of suspected label errors that the page itself carries; the run folder has all.
LISTED = 10_000


def render_run(run: Run | str | Path) -> str:
    """Return the HTML page of a run, or of its folder: one file, complete without JavaScript."""
    records = (run if isinstance(run, Run) else Run.load(run)).records
    outcome, issues = records.outcome, records.label_issues or []
    context = {
        "r": records,
        "facts": records.facts,
        "result": outcome,
        "test_labels": test_labels(records.facts),
        "verdict": verdict(records),
        "provenance": provenance(records),
        "c": records.certificate,
        "candidates": _candidates(records),
        "training": _training_curves(records),
        "gap_curve": _gap_curve(records),
        "matrices": _matrices(records),
        "layer_columns": layer_columns(records),
        "layers": layer_table(records),
        "layer_words": layer_words(records),
        "blocks": block_table(records),
        "carriers": carriers(layer_rows(records), records.config.method if outcome.radii else None),
        "constraint_evidence": CONSTRAINT_EVIDENCE,
        "spectrum": spectrum(records),
        "distribution": distribution(records),
        "setters": setters(records),
        "stability": _stability(records),
        "ranked": records.label_issues is not None,
        "issues": [_issue_card(records, row) for row in issues[:SHOWN]],
        "issues_file": LABEL_ISSUES,
        "issues_csv": _csv(issues[:LISTED]),
        "listed": min(len(issues), LISTED),
        "all_listed": len(issues) <= LISTED,
        "found": _found(issues[:SHOWN]),
        "probed": (record := records.label_issues_record) is not None and record.judged_by == "probes",
        "assumptions": assumptions(records),
    }
    return render("run.html.j2", context)


def example_ids(records: Records) -> list[str]:
    """Return the ids of the examples that the page wants to show."""
    ids = [row.id for row in setters(records)]
    ids += [row["id"] for row in (records.label_issues or [])[:SHOWN]]
    return list(dict.fromkeys(ids))


def _candidates(records: Records) -> list[tuple[object, ...]]:
    """Return the candidates for the head: name, score, and which of them is chosen."""
    details = records.facts.recipe.details if records.facts.recipe else {}
    marks = {details.get("plain"): "best plain", details.get("chosen"): "chosen"}
    rows = [(name, number(v, ".4f"), marks.get(name, "")) for name, v in details.get("scores", {}).items()]
    behind = "behind the best of its kind on the first fold; not fitted on the others"
    dropped = details.get("dropped") or {}
    return [*rows, *((name, number(v, "+.4f"), behind) for name, v in dropped.items())] if rows else []


def _training_curves(records: Records) -> Plot | None:
    epochs = records.epochs
    if not epochs:
        return None
    curves: dict[str, list[float | None]] = {
        "training, labels as trained on": [e.train_accuracy for e in epochs],
        "validation, labels as given": [e.val_accuracy for e in epochs],
        "validation, true labels": [e.val_accuracy_true_labels for e in epochs],
    }
    if all(value is None for value in curves["validation, true labels"]):
        del curves["validation, true labels"]
    limits: dict[str, tuple[float, bool]] = {}
    if (rate := uncontradicted_rate(records)) is not None:
        how = "" if records.facts.noise.injected else ", by the noise matrix"
        limits[f"share of training labels that are right{how}"] = (1 - rate, False)
    if (start := onset(records)) is not None:
        limits["starts to fit the noise"] = (start[0], True)
    plot = chart(
        "training",
        [(name, [e.epoch for e in epochs], values, None) for name, values in curves.items()],
        ("Accuracy by epoch", "epoch", "accuracy (share of 1)"),
        scales=("integer", "share"),
        limits=limits,
    )
    columns = [
        "epoch",
        "training loss",
        "training accuracy",
        "validation accuracy",
        "validation, true labels",
    ]
    rows = [
        (e.epoch, e.train_loss, e.train_accuracy, e.val_accuracy, e.val_accuracy_true_labels, e.distance)
        for e in epochs
    ]
    return Plot("Accuracy by epoch", plot, training_words(records), [*columns, "distance"], rows)


def _gap_curve(records: Records) -> Plot | None:
    """Return the gap of training and validation by epoch, with the measure; None if it was not measured."""
    epochs = [e for e in records.epochs if e.val_loss is not None and e.val_accuracy is not None]
    measured = [e for e in epochs if e.measure is not None]
    if not measured:
        return None
    gap = {e.epoch: (e.val_loss or 0.0) - e.train_loss for e in epochs}
    values, errors = [e.measure for e in measured], [2 * (e.measure_stderr or 0.0) for e in measured]
    title = "Gap and measure by epoch"
    plot = chart(
        "gap",
        [
            ("validation loss − training loss", list(gap), list(gap.values()), None),
            ("measure ± 2 standard errors", [e.epoch for e in measured], values, errors),
        ],
        (title, "epoch", "cross-entropy"),
        scales=("integer", "linear"),
    )
    first, last = measured[0], measured[-1]
    words = (
        f"The Gauss–Newton distance measure of {last.measure_examples} validation examples goes from "
        f"{first.measure:.3g} in epoch {first.epoch} to {last.measure:.3g} in epoch {last.epoch}. Validation "
        f"loss minus training loss goes from {gap[first.epoch]:.3g} to {gap[last.epoch]:.3g}. Losses are "
        "those of the method, on the labels as given. The measure guarantees nothing."
    )
    rows = [
        (e.epoch, gap[e.epoch], e.train_accuracy - (e.val_accuracy or 0.0), e.measure, e.measure_stderr)
        for e in epochs
    ]
    columns = ["epoch", "validation − training loss", "training − validation accuracy", "measure"]
    return Plot(title, plot, words, [*columns, "standard error"], rows)


def _matrices(records: Records) -> list[Plot]:
    """Return the noise matrix of the loss, the estimate and, if true labels are known, the true matrix."""
    classes = records.facts.classes
    found: dict[str, list[list[float]]] = {}
    if used := records.noise_matrix:
        how = f" (estimated: {used.method})" if used.method else ""
        found[f"Used by the loss{how}"] = used.matrix
    if after := records.estimated_afterwards:
        found[f"Estimated afterwards, from {after.examples} validation examples"] = after.matrix
    if records.train and all(row["true_label"] for row in records.train):
        index = {name: i for i, name in enumerate(classes)}
        counts = np.zeros((len(index), len(index)))
        for row in records.train:
            counts[index[row["true_label"]], index[row["label"]]] += 1
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        found["True: the changes made to the training labels"] = shares.tolist()
    plots = []
    for at, (title, matrix) in enumerate(found.items()):
        kept = np.diag(matrix)
        off = np.array(matrix) - np.diag(kept)
        i, j = np.unravel_index(off.argmax(), off.shape)
        words = (
            f"{title}. On average {kept.mean():.1%} of a class keep their label (least: "
            f"{classes[kept.argmin()]}, {kept.min():.1%}); the commonest mistake is {classes[i]} labelled "
            f"{classes[j]} ({off[i, j]:.1%})."
        )
        rows = [[name, *row] for name, row in zip(classes, matrix, strict=True)]
        plot = heat_map(f"noise{at}", matrix, classes, title)
        plots.append(Plot(title, plot, words, ["true \\ given", *classes], rows))
    return plots


def _stability(records: Records) -> Plot | None:
    """Return the rise of the loss under noise of size σ, with its Taylor prediction."""
    if records.stability is None or not (rows := records.stability.rows):
        return None
    sigma, last = [row.sigma for row in rows], rows[-1]
    plot = chart(
        "stability",
        [
            ("measured ± 2 standard errors", sigma, [r.value for r in rows], [2 * r.stderr for r in rows]),
            ("Taylor: ½σ²·Σ Tr H", sigma, [r.taylor for r in rows], None),
        ],
        ("Noise stability", "σ (units of the weights)", "rise of the mean loss"),
        scales=("log", "log"),
    )
    words = (
        "The rise of the mean loss under Gaussian noise of size σ on the weights, and what the trace of the "
        f"Hessian predicts. At σ = {last.sigma:.3g} it rises by {last.value:.3g}; Taylor's formula predicts "
        f"{last.taylor:.3g}."
    )
    table = [(r.sigma, r.value, f"{r.stderr:.1g}", r.taylor) for r in rows]
    return Plot("Noise stability", plot, words, ["σ", "rise", "standard error", "Taylor"], table)


def _issue_card(records: Records, row: Mapping[str, str]) -> Card:
    likely = ("likely", row["likely_label"], f" ({float(row['confidence']):.0%})")
    return Card(row["id"], records.images.get(row["id"]), (("given", row["given_label"], ""), likely))


def _found(rows: Sequence[Mapping[str, str]]) -> str:
    """Say how many of the labels listed first are in fact wrong, if true labels are known."""
    if not rows or not all(row["true_label"] for row in rows):
        return ""
    wrong = sum(row["given_label"] != row["true_label"] for row in rows)
    return (
        f"Of the {len(rows)} listed here, {wrong} were in fact changed (known, since the noise was injected)."
    )


def _csv(rows: Sequence[Mapping[str, str]]) -> str:
    """Return rows as a CSV file in base64, which the page carries; empty if there are none."""
    if not rows:
        return ""
    file = io.StringIO()
    write_rows(file, list(rows[0]), [list(row.values()) for row in rows])
    return base64.b64encode(file.getvalue().encode("utf-8")).decode("ascii")
