"""The layers of a run's page, their eigenvalues, and the examples that set the measure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from hesstune.errors import counted
from hesstune.report.layer_shares import Block, blocks_of, carriers, is_large, layer_shares
from hesstune.report.rendering import quantile_curves, spectra
from hesstune.runs.read_records import Records
from hesstune.runs.records import LayerMeasure

# A layer counts as at its radius from here on: projection leaves it there up to rounding.
AT_RADIUS = 0.999
COLUMNS = ("share", "distance", "trace_mean", "maximum")
SETTERS = 12


@dataclass
class LayerRow:
    """A layer in the table: its share of the measure and radius, if any.

    `bars` has the length of each bar in percent of the column's largest value, `tick` the place of the radius
    on the bar of the distance.
    """

    layer: LayerMeasure
    share: float | None = None
    radius: float | None = None
    at_radius: bool = False
    bars: dict[str, float] = field(default_factory=dict)
    tick: float | None = None

    def column(self, name: str) -> float:
        """Return what a column's bar shows; 0 if there is nothing."""
        value = self.share if name == "share" else getattr(self.layer, name)
        return float(value or 0.0)


class BlockRow(NamedTuple):
    """A block in its table, and the lengths of its bars in percent of the largest."""

    block: Block
    share: float
    distance: float


class Setter(NamedTuple):
    """An example that sets the maximum of so many layers."""

    id: str
    label: str
    true_label: str
    layers: int


class Distribution(NamedTuple):
    """The spread over the examples: curves, {layer: quantiles}, and words."""

    svg: str
    rows: list[tuple[str, list[float]]]
    words: str


def layer_rows(records: Records) -> list[LayerRow]:
    """Return the layers, largest share of the measure first; distances alone if nothing was measured."""
    result, config = records.outcome, records.config
    if records.measure:
        rows = [LayerRow(layer, share) for layer, share in layer_shares(records.measure)]
    else:
        unmeasured = [
            LayerMeasure(name=name, distance=value, maximum=None) for name, value in result.distances.items()
        ]
        rows = [LayerRow(layer) for layer in unmeasured]
    # Radii are in the run's norm, distances in Frobenius: they are compared only if these agree.
    radii = result.radii if config.norm == "frobenius" else {}
    for row in rows:
        row.radius = radii.get(row.layer.name)
        row.at_radius = row.radius is not None and (row.layer.distance or 0.0) >= AT_RADIUS * row.radius
    scale = {key: max((row.column(key) for row in rows), default=0.0) for key in COLUMNS}
    scale["distance"] = max(scale["distance"], *(row.radius or 0.0 for row in rows), 0.0)
    for row in rows:
        row.bars = {k: round(100 * row.column(k) / (scale[k] or 1.0), 1) for k in COLUMNS}
        row.tick = row.radius and round(100 * row.radius / scale["distance"], 1)
    return sorted(rows, key=lambda row: -(row.share or 0.0))


def layer_words(rows: list[LayerRow]) -> str:
    """Return what the bars show, for a reader who does not see them."""
    held = [row for row in rows if row.radius is not None]
    at = sum(row.at_radius for row in held)
    text = f"{counted(len(rows), 'layer')}."
    if held:
        text += f" At the constraint radius: {at} of {counted(len(held), 'constrained layer')}."
    return text


def carrier_words(records: Records, rows: list[LayerRow]) -> str:
    """Say which layers or blocks carry the measure, and what would lower it; empty if nothing is known."""
    return carriers(_pairs(rows), records.config.method if records.outcome.radii else None)


def block_rows(rows: list[LayerRow]) -> list[BlockRow]:
    """Return the blocks of a large network; none of a small one, whose table of layers is enough."""
    pairs = _pairs(rows)
    if not is_large(pairs):
        return []
    blocks = blocks_of(pairs)
    share = max(block.share or 0.0 for block in blocks) or 1.0
    distance = max(block.distance for block in blocks) or 1.0
    return [
        BlockRow(
            block, round(100 * (block.share or 0.0) / share, 1), round(100 * block.distance / distance, 1)
        )
        for block in blocks
    ]


def _pairs(rows: list[LayerRow]) -> list[tuple[LayerMeasure, float | None]]:
    return [(row.layer, row.share) for row in rows]


def measured(records: Records) -> list[dict[str, str]]:
    """Return the examples that were measured, in the order of the measurement's rows."""
    if records.quadratic is None or not records.measure:
        return []
    rows = records.of_part(records.measure.part)
    if ids := records.measure.ids:
        known = {row["id"]: row for row in rows}
        rows = [known[i] for i in ids if i in known]
    return rows if len(rows) == len(records.quadratic) else []


def setters(records: Records) -> list[Setter]:
    """Return the examples that set the maximum of a layer, those of most layers first."""
    rows = measured(records)
    if not rows or records.quadratic is None:
        return []
    filled = np.where(np.isnan(records.quadratic), -np.inf, records.quadratic)
    best, counts = np.unique(filled.argmax(axis=0), return_counts=True)
    order = np.argsort(-counts, kind="stable")[:SETTERS]
    found = ((rows[best[i]], int(counts[i])) for i in order)
    return [Setter(row["id"], row["label"], row["true_label"], layers) for row, layers in found]


def distribution(records: Records) -> Distribution | None:
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
    few = not median > 0 or largest > 20 * median
    said = "a few examples set the maximum." if few else "it is no outlier."
    words = f"In {name} the largest value is {largest:.3g}, {spread}: {said}"
    return Distribution(quantile_curves("distribution", shares.tolist(), lines, title), rows, words)


SHOWN = 3


class Spectrum(NamedTuple):
    """The mean spectra of the layers with the largest shares: curves, (layer, its numbers) and words."""

    svg: str
    rows: list[tuple[str, list[str]]]
    columns: int
    words: str


def spectrum(rows: list[LayerRow]) -> Spectrum | None:
    """Return the mean eigenvalues of the layers with the largest shares; None if none were measured.

    Args:
        rows: The layers, largest share first.
    """
    known = [(row.layer.name, row.layer.spectrum) for row in rows if row.layer.spectrum is not None]
    first = known[:SHOWN]
    if not first:
        return None
    title = ("Largest eigenvalues of H, mean over the examples", "j-th largest", "eigenvalue")
    lines = [(name, found.mean, [2 * (error or 0.0) for error in found.stderr]) for name, found in first]
    numbers = [
        (
            name,
            [
                f"{mean:.3g}" + ("" if error is None else f" ± {error:.1g}")
                for mean, error in zip(found.mean, found.stderr, strict=True)
            ],
        )
        for name, found in known
    ]
    name, found = first[0]
    total = sum(found.mean) or 1.0
    words = f"In {name} the largest is {numbers[0][1][0]} (± its standard error)"
    if len(found.mean) > 1:
        words += f", {found.mean[0] / total:.0%} of the sum of the first {len(found.mean)}"
    if without := [row.layer.name for row in rows if row.layer.spectrum is None]:
        words += (
            f". No eigenvalues of {counted(len(without), 'layer')}: they are computed by the exact path only"
        )
    return Spectrum(spectra("spectrum", lines, title), numbers, max(len(v) for _, v in numbers), words + ".")
