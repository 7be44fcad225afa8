"""A run's page: what its records say, in the order a reader asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hesstune.report.figures import curves, heat_map, quantile_curves, stability
from hesstune.report.records import Records, read_records

__all__ = ["render_run"]

SHOWN = 48


def render_run(path: str | Path) -> str:
    """Return the HTML page of a run folder: one file, no external resource, complete without JavaScript.

    Raises:
        RunError: If the folder is no finished run, or a record is damaged.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    records = read_records(Path(path))
    environment = Environment(
        loader=PackageLoader("hesstune", "report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page: str = environment.get_template("run.html.j2").render(**context(records))
    return page


def context(records: Records) -> dict[str, Any]:
    """Return everything the template shows."""
    return {
        "r": records,
        "result": records.run["result"],
        "verdict": verdict(records),
        "provenance": provenance(records),
        "fitting": first_fit(records),
        "training": _training(records),
        "matrices": _matrices(records),
        "layers": _layers(records),
        "setters": _setters(records),
        "distribution": _distribution(records),
        "stability": stability("stability", rows) if (rows := _rows(records.stability)) else None,
        "stability_rows": rows,
        "doubtful": None if records.doubtful is None else records.doubtful[:SHOWN],
        "found": _found(records),
    }


def verdict(records: Records) -> str:
    """Return the run in words: whether it learnt wrong labels, as far as the records tell."""
    result, rate = records.run["result"], _rate(records)
    if rate is None:
        return "Nothing is known about the labels' noise, so whether wrong labels were learnt cannot be told."
    agrees = result["train_accuracy"]
    if agrees > 1 - rate + 0.02:
        return (
            f"The network has learnt wrong labels: it agrees with {agrees:.1%} of the labels it was trained "
            f"on, though only about {1 - rate:.1%} of them are right."
        )
    return (
        f"The network agrees with {agrees:.1%} of the labels it was trained on, of which about "
        f"{1 - rate:.1%} are right: so looks a network that has not fitted the noise, though agreement "
        "alone cannot exclude that some wrong labels were learnt."
    )


def provenance(records: Records) -> str:
    """Say whether the labels' noise was known, or assumed by whoever started the run."""
    noise = records.run["noise"]
    if noise["injected"]:
        told = "and the loss was told it" if records.noise else "and the loss was not told"
        return f"The labels' noise is known: {noise['injected']} was injected, {told}."
    if records.noise:
        return f"The labels' noise is assumed: the loss was told {noise['told']}."
    return "The loss assumed labels without noise."


def first_fit(records: Records) -> int | None:
    """Return the first epoch whose agreement with the given labels exceeds the share that is right."""
    rate = _rate(records)
    epochs = [m["epoch"] for m in records.metrics if rate is not None and m["train_accuracy"] > 1 - rate]
    return epochs[0] if epochs else None


def _rate(records: Records) -> float | None:
    noise = records.run["noise"]
    rate = noise["realised_rate"] if noise["injected"] else noise["told_rate"]
    return None if rate is None else float(rate)


def _rows(record: dict[str, Any] | None) -> list[dict[str, Any]]:
    return record["rows"] if record else []


def _training(records: Records) -> str | None:
    if not records.metrics:
        return None
    columns = [
        ("training, labels as trained on", "train_accuracy"),
        ("validation, labels as given", "val_accuracy"),
    ]
    if any(m["val_accuracy_true_labels"] is not None for m in records.metrics):
        columns.append(("validation, true labels", "val_accuracy_true_labels"))
    rate = _rate(records)
    return curves(
        "training",
        [m["epoch"] for m in records.metrics],
        [(title, [m[key] for m in records.metrics]) for title, key in columns],
        ("Accuracy by epoch", "epoch", "accuracy (share of 1)"),
        None if rate is None else ("share of training labels that are right", 1 - rate),
    )


def _matrices(records: Records) -> list[dict[str, Any]]:
    """Return the matrix that the loss was told, and the changes that happened where true labels are known."""
    classes, found = [str(c) for c in records.run["classes"]], []
    if records.noise:
        found.append({"title": "Believed by the loss", "rows": records.noise["matrix"]})
    if records.train and all(row["true_label"] for row in records.train):
        index = {name: i for i, name in enumerate(classes)}
        counts = np.zeros((len(classes), len(classes)))
        for row in records.train:
            counts[index[row["true_label"]], index[row["label"]]] += 1
        total = counts.sum(axis=1, keepdims=True)
        found.append(
            {"title": "Realised in the training labels", "rows": (counts / np.maximum(total, 1)).tolist()}
        )
    for at, matrix in enumerate(found):
        matrix["svg"] = heat_map(f"noise{at}", matrix["rows"], classes, matrix["title"])
    return found


def _layers(records: Records) -> list[dict[str, Any]]:
    """Return the layers, largest share of the measure first; distances alone where nothing was measured."""
    if not records.measure:
        distances = records.run["result"]["distances"]
        return [{"name": name, "distance": value} for name, value in distances.items()]
    layers = records.measure["layers"]
    terms = [max(layer["maximum"] or 0.0, 0.0) ** 0.5 for layer in layers]
    total = sum(terms) or 1.0
    shared = [{**layer, "share": term / total} for layer, term in zip(layers, terms, strict=True)]
    return sorted(shared, key=lambda layer: -layer["share"])


def _setters(records: Records) -> list[dict[str, Any]]:
    """Return the examples that set the maximum of a layer, those of most layers first."""
    if records.quadratic is None or not records.measure or len(records.quadratic) != len(records.train):
        return []
    filled = np.where(np.isnan(records.quadratic), -np.inf, records.quadratic)
    best = filled.argmax(axis=0)
    rows, counts = np.unique(best, return_counts=True)
    return [{**records.train[rows[i]], "layers": int(counts[i])} for i in np.argsort(-counts)[:12]]


def _distribution(records: Records) -> dict[str, Any] | None:
    """Return the spread over the examples of the three layers with the largest maxima."""
    if records.quadratic is None or not records.measure:
        return None
    names = [layer["name"] for layer in records.measure["layers"]]
    whole = [i for i in range(len(names)) if not np.isnan(records.quadratic[:, i]).any()]
    first = sorted(whole, key=lambda i: -records.quadratic[:, i].max())[:3]
    if not first:
        return None
    shares = np.linspace(0, 1, 101)
    lines = [(names[i], np.quantile(records.quadratic[:, i], shares).tolist()) for i in first]
    title = ("vᵀH⁺v over the examples", "share of the examples below", "vᵀH⁺v (loss)")
    rows = [(name, [values[at] for at in (0, 50, 90, 99, 100)]) for name, values in lines]
    return {"svg": quantile_curves("distribution", shares.tolist(), lines, title), "rows": rows}


def _found(records: Records) -> str | None:
    """Say how many of the labels listed first are in fact wrong, where true labels are known."""
    rows = (records.doubtful or [])[:SHOWN]
    if not rows or not all(row["true_label"] for row in rows):
        return None
    wrong = sum(row["given_label"] != row["true_label"] for row in rows)
    return (
        f"Of the {len(rows)} listed here, {wrong} were in fact changed (known, since the noise was injected)."
    )
