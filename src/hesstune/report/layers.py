"""Layers and examples of a run's page: who carries the measure."""

from __future__ import annotations

from typing import Any

import numpy as np

from hesstune.report.figures import quantile_curves
from hesstune.runs.read_records import Records

__all__ = ["distribution", "layer_rows", "layer_words", "measured", "setters"]

# A layer counts as at its radius from here on: projection leaves it there up to rounding.
AT_RADIUS = 0.999
COLUMNS = ("share", "distance", "trace_mean", "maximum")
SETTERS = 12


def layer_rows(records: Records) -> list[dict[str, Any]]:
    """Return the layers, largest share of the measure first; distances alone where nothing was measured.

    `bars` holds the length of each bar in percent of the column's largest value, `tick` the place of the
    radius on the distance's bar.
    """
    result, config = records.outcome, records.config
    rows: list[dict[str, Any]]
    if records.measure:
        layers = records.measure.layers
        terms = [max(layer.maximum or 0.0, 0.0) ** 0.5 for layer in layers]
        total = sum(terms) or 1.0
        rows = [{**layer.to_dict(), "share": term / total} for layer, term in zip(layers, terms, strict=True)]
    else:
        rows = [{"name": name, "distance": value} for name, value in result.distances.items()]
    # Radii are in the run's norm, distances in Frobenius: they are compared only where these agree.
    radii = result.radii if config.norm == "frobenius" else {}
    for row in rows:
        row["radius"] = radii.get(row["name"])
        row["at_radius"] = (
            row["radius"] is not None and (row.get("distance") or 0.0) >= AT_RADIUS * row["radius"]
        )
    scale = {key: max((row.get(key) or 0.0 for row in rows), default=0.0) for key in COLUMNS}
    scale["distance"] = max(scale["distance"], *(row["radius"] or 0.0 for row in rows), 0.0)
    for row in rows:
        row["bars"] = {k: round(100 * (row.get(k) or 0.0) / (scale[k] or 1.0), 1) for k in COLUMNS}
        row["tick"] = row["radius"] and round(100 * row["radius"] / scale["distance"], 1)
    return sorted(rows, key=lambda row: -row.get("share", 0.0))


def layer_words(rows: list[dict[str, Any]]) -> str:
    """Return what the bars show, for a reader who does not see them."""
    held = [row for row in rows if row["radius"] is not None]
    at = sum(row["at_radius"] for row in held)
    text = f"{len(rows)} layers. "
    if held:
        text += f"{at} of the {len(held)} constrained layers are at their radius. "
    if rows and "share" in rows[0]:
        half, total = 0, 0.0
        while total < 0.5 and half < len(rows):
            total += rows[half]["share"]
            half += 1
        text += (
            f"{rows[0]['name']} has the largest share of the measure ({rows[0]['share']:.1%}); "
            f"{half} layer{'s carry' if half > 1 else ' carries'} half of it."
        )
    return text.strip()


def measured(records: Records) -> list[dict[str, str]]:
    """Return the training examples that were measured, in the order of the measurement's rows."""
    if records.quadratic is None or not records.measure:
        return []
    rows = records.train
    if ids := records.measure.ids:
        known = {row["id"]: row for row in rows}
        rows = [known[i] for i in ids if i in known]
    return rows if len(rows) == len(records.quadratic) else []


def setters(records: Records) -> list[dict[str, Any]]:
    """Return the examples that set the maximum of a layer, those of most layers first."""
    rows = measured(records)
    if not rows or records.quadratic is None:
        return []
    filled = np.where(np.isnan(records.quadratic), -np.inf, records.quadratic)
    best, counts = np.unique(filled.argmax(axis=0), return_counts=True)
    order = np.argsort(-counts, kind="stable")[:SETTERS]
    return [{**rows[best[i]], "layers": int(counts[i])} for i in order]


def distribution(records: Records) -> dict[str, Any] | None:
    """Return the spread over the examples of the three layers with the largest maxima."""
    values = records.quadratic
    if values is None or not records.measure:
        return None
    names = [layer.name for layer in records.measure.layers]
    whole = [i for i in range(len(names)) if not np.isnan(values[:, i]).any()]
    first = sorted(whole, key=lambda i: -float(values[:, i].max()))[:3]
    if not first:
        return None
    shares = np.linspace(0, 1, 101)
    lines = [(names[i], np.quantile(values[:, i], shares).tolist()) for i in first]
    title = ("vᵀH⁺v over the examples", "share of the examples below", "vᵀH⁺v (units of the loss)")
    rows = [(name, [line[at] for at in (0, 50, 90, 99, 100)]) for name, line in lines]
    name, (_, median, _, _, largest) = rows[0]
    spread = f"{largest / median:.3g} times the median" if median > 0 else "while the median is 0"
    return {
        "svg": quantile_curves("distribution", shares.tolist(), lines, title),
        "rows": rows,
        "words": f"In {name} the largest value is {largest:.3g}, {spread}: "
        + (
            "a few examples set the maximum."
            if not median > 0 or largest > 20 * median
            else "it is no outlier."
        ),
    }
