"""The study's measures against the generalization gap: a table, and the scatter study_gap.png."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from scipy.stats import kendalltau

from hesstune.study.records import StudyResults
from records import FIGURES

FIGURE = FIGURES / "study_gap.png"
MEASURES = {
    "measure": "Hessian distance measure",
    "measure_mean": "the same with half the mean in place of the maximum",
    "distance": "distance from the reference",
    "scaled_distance": "√C · distance / √n, the measure without the Hessian",
    "stability": "noise stability, σ = 0.01",
}
TITLES = {
    "programmatic_head": "weak labels, heads",
    "programmatic_full": "weak labels, all layers",
    "injected_head": "injected noise, heads",
    "clean_head": "clean labels, heads",
    "clean_full": "clean labels, all layers",
    "architectures": "other networks",
}
FACTOR = 5.0


# Whose labels are wrong in ways that no matrix tells: their gap is that to the validation examples, which
# are labelled alike. Elsewhere the expectation over the known noise is taken, on the test examples.
WEAK = ("programmatic_head", "programmatic_full")


def runs(name: str, record: StudyResults) -> list[dict[str, Any]]:
    """Return the metrics of the finished cells, with the distance on the measure's scale."""
    found = []
    for cell in record["cells"]:
        if cell["status"] != "done":
            continue
        own = record["configs"].get(cell["task"], {}).get(cell["method"], {})
        n = own.get("limit") or record["shared"].get("limit")
        values: dict[str, Any] = dict(cell["metrics"])
        if name in WEAK:
            values["gap"] = values["val_gap"]
        if values.get("max_loss") is not None:
            values["scaled_distance"] = math.sqrt(values["max_loss"] / n) * values["distance"]
        found.append(values)
    return found


def pairs(cells: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(m[key], m["gap"]) for m in cells if m.get(key) is not None and m.get("gap") is not None]


def tau(points: list[tuple[float, float]]) -> float:
    return float(kendalltau([a for a, _ in points], [b for _, b in points]).statistic)


def near(points: list[tuple[float, float]]) -> float:
    """Return the share of the runs whose measure is within the factor of the gap."""
    return sum(a > 0 and b > 0 and 1 / FACTOR <= a / b <= FACTOR for a, b in points) / len(points)


def summary(records: Mapping[str, StudyResults]) -> dict[str, dict[str, Any]]:
    """Return for each measure: Kendall's τ by part and over all runs, and how its scale compares."""
    parts = {name: runs(name, record) for name, record in records.items() if name in TITLES}
    every = [cell for cells in parts.values() for cell in cells]
    found: dict[str, dict[str, Any]] = {}
    for key in MEASURES:
        points = pairs(every, key)
        ratios = sorted(a / b for a, b in points if a > 0 and b > 0)
        found[key] = {
            "tau": tau(points),
            "parts": {name: tau(pairs(cells, key)) for name, cells in parts.items()},
            "near": near(points),
            "parts_near": {name: near(pairs(cells, key)) for name, cells in parts.items()},
            "ratio": ratios[len(ratios) // 2],
            "runs": len(points),
        }
    return found


def draw(records: Mapping[str, StudyResults], path: Path = FIGURE) -> None:
    """Draw measure, scaled distance and stability against the gap, on logarithmic axes."""
    shown = ("measure", "scaled_distance", "stability")
    figure = Figure(figsize=(10, 3.8), layout="constrained", dpi=110)
    for ax, key in zip(figure.subplots(1, 3, sharey=True), shown, strict=True):
        for name, title in TITLES.items():
            if name not in records:
                continue
            points = [(a, b) for a, b in pairs(runs(name, records[name]), key) if a > 0 and b > 0]
            ax.plot([a for a, _ in points], [b for _, b in points], ".", ms=4, alpha=0.6, label=title)
        ends = [1e-3, 1e2]
        ax.plot(ends, ends, "k-", lw=0.8)
        for factor in (FACTOR, 1 / FACTOR):
            ax.plot(ends, [factor * e for e in ends], "k:", lw=0.8)
        ax.set(xscale="log", yscale="log", xlabel=MEASURES[key].split(",")[0], ylim=(1e-3, 1e3))
    figure.axes[0].set_ylabel("generalization gap")
    figure.axes[-1].legend(fontsize=7, loc="lower right")
    figure.savefig(path)
