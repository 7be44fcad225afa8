"""The layers and blocks of a run: shares of the measure, tables, plots, and the examples that set maxima."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hesstune.checks import parse_integer
from hesstune.curvature.declared import FORMS, FormNames
from hesstune.errors import counted
from hesstune.report.rendering import Card, Cell, Plot, chart, number
from hesstune.runs.read_records import Records
from hesstune.runs.records import LayerMeasure, MeasureRecord

# With more layers, a table by block comes first.
MANY_LAYERS = 24
# Layers or blocks that a sentence names, layers in a plot, and examples that set the maximum, at most.
NAMED, PLOTTED, SETTERS = 5, 3, 12
# A layer is at its radius from this share of it on: projection leaves it there up to rounding.
AT_RADIUS = 0.999

LayerShares = Sequence[tuple[LayerMeasure, float | None]]
"""Layers with their shares of the measure, largest first; None if nothing was measured."""


@dataclass(frozen=True)
class Block:
    """Layers whose names begin alike: their share of the measure, √Σ‖v_i‖² and the largest ‖v_i‖ of them."""

    name: str
    layers: list[str]
    share: float | None
    distance: float
    farthest: float


def layer_shares(measure: MeasureRecord) -> list[tuple[LayerMeasure, float]]:
    """Return the layers with their shares of the measure, largest first.

    Over held-out examples the measure is the mean's, if every layer's is known, otherwise the maximum's.
    """
    means = [layer.mean for layer in measure.layers]
    known = measure.part == "val" and None not in means
    values = means if known else [layer.maximum for layer in measure.layers]
    terms = [max(value or 0.0, 0.0) ** 0.5 for value in values]
    total = sum(terms) or 1.0
    pairs = [(layer, term / total) for layer, term in zip(measure.layers, terms, strict=True)]
    return sorted(pairs, key=lambda pair: -pair[1])


def layer_rows(records: Records) -> LayerShares:
    """Return a run's layers, largest share of the measure first; distances alone if nothing was measured."""
    if records.measure:
        return layer_shares(records.measure)
    distances = records.outcome.distances
    return [
        (LayerMeasure(name=name, distance=value, maximum=None), None) for name, value in distances.items()
    ]


def block_names(names: Sequence[str]) -> dict[str, str]:
    """Return each layer's block.

    It is the longest dotted prefix that ends in an index and that several layers share, such as `_blocks.3`.
    A part of a block counts with the block if most of the block lies outside such parts. Without an index,
    it is the top-level module.

    Example:
        >>> names = ["stem.weight", "layer.0.a.weight", "layer.0.b.1.weight", "layer.0.c.weight"]
        >>> list(block_names(names).values())
        ['stem', 'layer.0', 'layer.0', 'layer.0']
    """
    prefixes: dict[str, list[str]] = {}
    under: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        indices = [at for at in range(len(parts) - 1) if parse_integer(parts[at]) is not None]
        prefixes[name] = [".".join(parts[: at + 1]) for at in indices]
        for prefix in prefixes[name]:
            under.setdefault(prefix, []).append(name)
    shared = {name: [p for p in found if len(under[p]) > 1] for name, found in prefixes.items()}
    blocks = {}
    for name in names:
        # The first block that is no stage; a layer outside the blocks of a stage belongs to the stage. Most
        # layers of a stage are in longer prefixes.
        block = next(
            (p for p in shared[name] if 2 * sum(shared[n][-1] != p for n in under[p]) <= len(under[p])),
            shared[name][-1] if shared[name] else name.split(".")[0],
        )
        blocks[name] = block
    return blocks


def blocks_of(rows: LayerShares) -> list[Block]:
    """Return the blocks of some layers, largest share first."""
    names = block_names([layer.name for layer, _ in rows])
    inside: dict[str, list[tuple[LayerMeasure, float | None]]] = {}
    for layer, share in rows:
        inside.setdefault(names[layer.name], []).append((layer, share))
    blocks = [_merged_block(name, own) for name, own in inside.items()]
    return sorted(blocks, key=lambda block: -(block.share or 0.0))


def _merged_block(name: str, rows: LayerShares) -> Block:
    moved = [layer.distance or 0.0 for layer, _ in rows]
    shares = [share for _, share in rows if share is not None]
    layers = [layer.name for layer, _ in rows]
    return Block(name, layers, sum(shares) if shares else None, math.hypot(*moved), max(moved))


def is_large(rows: LayerShares) -> bool:
    """Whether there are so many layers that a table of blocks is clearer, and enough blocks."""
    return len(rows) > MANY_LAYERS and 4 * len(blocks_of(rows)) <= 3 * len(rows)


def carriers(rows: LayerShares, method: str | None = None) -> str:
    """Describe the layers, or blocks of a large network, that have most of the measure, and what lowers it.

    The run's method is named if it has distance constraints; default: `robust`. Empty if nothing was
    measured, or no layer moved.
    """
    large = is_large(rows)
    parts = blocks_of(rows) if large else [_merged_block(row[0].name, [row]) for row in rows]
    if not parts or not parts[0].share:
        return ""
    first, total = [], 0.0
    for part in parts:
        if total >= 0.5:
            break
        first.append(part)
        total += part.share or 0.0
    shown = ", ".join(f"{part.name} ({part.share or 0.0:.1%})" for part in first[:NAMED])
    if len(first) > NAMED:
        shown += f" and {len(first) - NAMED} more"
    top = first[0]
    # A pattern that matches the block's layers alone, or the block's first layer.
    pattern = f"{top.name}.*"
    if sorted(fnmatch.filter([layer.name for layer, _ in rows], pattern)) != sorted(top.layers):
        pattern = top.layers[0]
    error = _share_error(rows, {name for part in first for name in part.layers}, total)
    return (
        f"{total:.0%}{error} of the measure {'come' if len(first) > 1 else 'comes'} from {len(first)} of "
        f"{counted(len(parts), 'block' if large else 'layer')}: {shown}. What could lower it: a smaller "
        f"constraint radius there, such as hesstune finetune --method {method or 'robust'} --radius "
        f'"{pattern}=R,*=S" with R below {top.farthest:.3g}, the largest distance there now (Frobenius), and '
        "S for all others."
    )


def _share_error(rows: LayerShares, names: set[str], share: float) -> str:
    """Return "" or the standard error of some layers' share of the measure, for people: an upper bound.

    Layers are measured on the same examples, so errors inside and outside the group are added up.
    """
    relative = [0.0, 0.0]
    for layer, part in rows:
        if not layer.mean:
            continue
        if layer.mean_stderr is None or not part:
            return ""
        inside = layer.name in names
        relative[inside] += part / (share if inside else 1 - share) * layer.mean_stderr / (2 * layer.mean)
    return f" ± {share * (1 - share) * sum(relative):.0%}"


# -- tables ------------------------------------------------------------------------------------


def layer_columns(records: Records) -> tuple[str, ...]:
    """Return the titles of the columns of `layer_table`."""
    form = _form_names(records)
    return (
        "layer", "share of the measure", "distance", "radius", "at its radius", f"mean {form.trace}",
        f"max {form.form}", f"mean {form.form}", "standard error", "how",
    )  # fmt: skip


def _form_names(records: Records) -> FormNames:
    return records.measure.form if records.measure else FORMS["positive_form"]


def _bars(
    values: Sequence[float | None], form: str = ".3g", radii: Sequence[float | None] | None = None
) -> list[Cell | None]:
    """Return the cells of a column, with bars in proportion to the largest number and marks at the radii."""
    ticks = radii or [None] * len(values)
    scale = max([0.0, *(value or 0.0 for value in [*values, *ticks])]) or 1.0
    return [
        None
        if value is None
        else Cell(
            format(value, form),
            round(100 * value / scale, 1),
            None if tick is None else round(100 * tick / scale, 1),
            tick is not None and value >= AT_RADIUS * tick,
        )
        for value, tick in zip(values, ticks, strict=True)
    ]


def _radii(records: Records) -> list[float | None]:
    """Return each layer's radius if it is in the norm of the distances, Frobenius."""
    radii = records.outcome.radii if records.config.norm == "frobenius" else {}
    return [radii.get(layer.name) for layer, _ in layer_rows(records)]


def layer_table(records: Records) -> list[tuple[object, ...]]:
    """Return a row of cells a layer, in the order of `layer_columns`."""
    rows, radii = layer_rows(records), _radii(records)
    layers = [layer for layer, _ in rows]
    distances = _bars([layer.distance for layer in layers], radii=radii)
    columns: list[Sequence[object]] = [
        [layer.name for layer in layers],
        _bars([share for _, share in rows], ".1%"),
        distances,
        radii,
        [
            "–" if radius is None else "● yes" if cell and cell.at_radius else "no"
            for radius, cell in zip(radii, distances, strict=True)
        ],
        _bars([layer.trace_mean for layer in layers]),
        _bars([layer.maximum for layer in layers]),
        [layer.mean for layer in layers],
        [number(layer.mean_stderr, ".1g") for layer in layers],
        [layer.how for layer in layers],
    ]
    return list(zip(*columns, strict=True))


def layer_words(records: Records) -> str:
    """Return what the bars show, for a reader who does not see them."""
    column = [row[4] for row in layer_table(records)]
    text = f"{counted(len(column), 'layer')}."
    if constrained := [cell for cell in column if cell != "–"]:
        at = constrained.count("● yes")
        text += f" At the constraint radius: {at} of {counted(len(constrained), 'constrained layer')}."
    return text


def block_table(records: Records) -> list[tuple[object, ...]]:
    """Return a row a block: name, number of layers, share, distance; none if there are few layers."""
    rows = layer_rows(records)
    blocks = blocks_of(rows) if is_large(rows) else []
    shares, distances = _bars([b.share for b in blocks], ".1%"), _bars([b.distance for b in blocks])
    return [
        (block.name, len(block.layers), share, distance)
        for block, share, distance in zip(blocks, shares, distances, strict=True)
    ]


# -- examples and plots ------------------------------------------------------------------------


def setters(records: Records) -> list[Card]:
    """Return the examples that set the maximum of a layer, those of most layers first."""
    if records.quadratic is None or not records.measure:
        return []
    rows = records.of_part(records.measure.part)
    if ids := records.measure.ids:
        known = {row["id"]: row for row in rows}
        rows = [known[i] for i in ids if i in known]
    if not rows or len(rows) != len(records.quadratic):
        return []
    filled = np.where(np.isnan(records.quadratic), -np.inf, records.quadratic)
    best, counts = np.unique(filled.argmax(axis=0), return_counts=True)
    order = np.argsort(-counts, kind="stable")[:SETTERS]
    cards = []
    for row, layers in ((rows[best[i]], int(counts[i])) for i in order):
        label = ("label", row["label"], f", true: {row['true_label']}" if row["true_label"] else "")
        maxima = ("sets the maximum of", counted(layers, "layer"), "")
        cards.append(Card(row["id"], records.images.get(row["id"]), (label, maxima)))
    return cards


def distribution(records: Records) -> Plot | None:
    """Return the quantiles over the examples of the three layers with the largest maxima."""
    values = records.quadratic
    if values is None or not records.measure:
        return None
    whole = [i for i in range(len(records.measure.layers)) if not np.isnan(values[:, i]).any()]
    first = sorted(whole, key=lambda i: -float(values[:, i].max()))[:PLOTTED]
    if not first:
        return None
    shares = np.linspace(0, 1, 101).tolist()
    lines = {records.measure.layers[i].name: np.quantile(values[:, i], shares).tolist() for i in first}
    rows = [[name, *(line[at] for at in (0, 50, 90, 99, 100))] for name, line in lines.items()]
    name, _, median, *_, largest = rows[0]
    spread = f"{largest / median:.3g} times the median" if median > 0 else "while the median is 0"
    few = not median > 0 or largest > 20 * median
    said = "a few examples set the maximum." if few else "it is no outlier."
    form = _form_names(records).form
    title = f"{form} over the examples"
    plot = chart(
        "distribution",
        [(f"layer {name}", shares, line, None) for name, line in lines.items()],
        (title, "share of the examples below", f"{form} (units of the loss)"),
        scales=("linear", "log"),
    )
    words = f"In {name} the largest value is {largest:.3g}, {spread}: {said}"
    return Plot(title, plot, words, ["layer", "smallest", "median", "90 %", "99 %", "largest"], rows)


def _with_error(mean: float, error: float | None) -> str:
    return f"{mean:.3g}" if error is None else f"{mean:.3g} ± {error:.1g}"


def spectrum(records: Records) -> Plot | None:
    """Return the mean eigenvalues of the layers with the largest shares; None if none were measured."""
    layers = [layer for layer, _ in layer_rows(records)]
    known = [(layer.name, layer.spectrum) for layer in layers if layer.spectrum is not None]
    if not known:
        return None
    rows = [[name, *map(_with_error, s.mean, s.stderr)] for name, s in known]
    name, found = known[0]
    words = f"In {name} the largest is {rows[0][1]} (± its standard error)"
    if len(found.mean) > 1:
        words += f", {found.mean[0] / (sum(found.mean) or 1.0):.0%} of the sum of the first {len(found.mean)}"
    if without := len(layers) - len(known):
        words += f". No eigenvalues of {counted(without, 'layer')}: they are computed by the exact path only"
    title = f"Largest eigenvalues of {_form_names(records).matrix}, mean over the examples"
    plot = chart(
        "spectrum",
        [
            # Side by side, so that no bar hides another.
            (
                f"layer {name}",
                [rank + 0.08 * at for rank in range(1, len(s.mean) + 1)],
                s.mean,
                [2 * (error or 0.0) for error in s.stderr],
            )
            for at, (name, s) in enumerate(known[:PLOTTED])
        ],
        (title, "j-th largest", "eigenvalue"),
        scales=("integer", "log"),
    )
    return Plot(title, plot, f"{words}.", ["layer", *range(1, max(map(len, rows)))], rows)
