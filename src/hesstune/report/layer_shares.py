"""The layers and blocks with the largest shares of a run's measure, and what would lower it."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass

from hesstune.checks import parse_integer
from hesstune.curvature.result import CONSTRAINT_EVIDENCE
from hesstune.errors import counted
from hesstune.runs.records import LayerMeasure, MeasureRecord

# Above so many layers a table by block comes first.
MANY = 24
# The layers or blocks that are named, at most.
NAMED = 5

LayerShares = Sequence[tuple[LayerMeasure, float | None]]


@dataclass(frozen=True)
class Block:
    """Layers that belong together.

    Attributes:
        name: What their names begin with.
        layers: Their names, largest share first.
        share: Their share of the measure; None if nothing was measured.
        distance: √Σ‖v_i‖² over them.
        farthest: The largest ‖v_i‖ among them.
    """

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


def block_names(names: Sequence[str]) -> dict[str, str]:
    """Return each layer's block.

    It is the longest dotted prefix that ends in an index and that several layers share, such as
    `_blocks.3` or `layer1.0`. A part of a block counts with the block if most of the block lies outside such
    parts. Without an index, it is the top-level module.

    Example:
        >>> names = ["stem.weight", "layer.0.a.weight", "layer.0.b.1.weight", "layer.0.c.weight"]
        >>> list(block_names(names).values())
        ['stem', 'layer.0', 'layer.0', 'layer.0']
    """
    under: dict[str, list[str]] = {}
    for name in names:
        for prefix in _indexed(name):
            under.setdefault(prefix, []).append(name)
    shared = {prefix for prefix, layers in under.items() if len(layers) > 1}
    # A prefix with most layers in longer ones only contains blocks.
    whole = {
        prefix
        for prefix in shared
        if 2 * sum(_longest(name, shared) != prefix for name in under[prefix]) <= len(under[prefix])
    }
    blocks = {}
    for name in names:
        prefixes = [prefix for prefix in _indexed(name) if prefix in shared]
        # The first whole one; a layer outside the blocks belongs to the module that contains them.
        block = next((prefix for prefix in prefixes if prefix in whole), prefixes[-1] if prefixes else None)
        blocks[name] = name.split(".")[0] if block is None else block
    return blocks


def _indexed(name: str) -> list[str]:
    """Return the prefixes of a parameter's name that end in an index, shortest first."""
    parts = name.split(".")
    return [".".join(parts[: at + 1]) for at in range(len(parts) - 1) if parse_integer(parts[at]) is not None]


def _longest(name: str, shared: set[str]) -> str:
    return next((prefix for prefix in reversed(_indexed(name)) if prefix in shared), "")


def blocks_of(rows: LayerShares) -> list[Block]:
    """Return the blocks of some layers, largest share first.

    Args:
        rows: The layers, largest share first; shares are None if nothing was measured.
    """
    names = block_names([layer.name for layer, _ in rows])
    inside: dict[str, list[tuple[LayerMeasure, float | None]]] = {}
    for layer, share in rows:
        inside.setdefault(names[layer.name], []).append((layer, share))
    blocks = []
    for name, own in inside.items():
        moved = [layer.distance or 0.0 for layer, _ in own]
        shares = [share for _, share in own if share is not None]
        share = sum(shares) if shares else None
        blocks.append(Block(name, [layer.name for layer, _ in own], share, math.hypot(*moved), max(moved)))
    return sorted(blocks, key=lambda block: -(block.share or 0.0))


def is_large(rows: LayerShares) -> bool:
    """Whether there are so many layers that a table of blocks is clearer, and enough blocks."""
    return len(rows) > MANY and 4 * len(blocks_of(rows)) <= 3 * len(rows)


def carriers(rows: LayerShares, method: str | None = None) -> str:
    """Describe which layers, or blocks of a large network, have most of the measure, and what would lower it.

    Args:
        rows: The layers with their shares, largest first.
        method: The run's method, if it has distance constraints; default: `robust`.

    Returns:
        Sentences; empty if nothing was measured, or no layer moved.
    """
    large = is_large(rows)
    alone = [
        Block(layer.name, [layer.name], share, layer.distance or 0.0, layer.distance or 0.0)
        for layer, share in rows
    ]
    parts = blocks_of(rows) if large else alone
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
    kind = "block" if large else "layer"
    top = first[0]
    names = [layer.name for layer, _ in rows]
    pattern = _pattern(top, names)
    return (
        f"{total:.0%} of the measure {'come' if len(first) > 1 else 'comes'} from {len(first)} of "
        f"{counted(len(parts), kind)}: {shown}. What could lower it: a smaller constraint radius there, such "
        f'as hesstune finetune --method {method or "robust"} --radius "{pattern}=R,*=S" with R below '
        f"{top.farthest:.3g}, the largest distance there now (Frobenius), and S for all others. "
        f"{CONSTRAINT_EVIDENCE}."
    )


def _pattern(block: Block, names: Sequence[str]) -> str:
    """Return the radius pattern of a block's layers alone; of its first layer if there is none."""
    pattern = f"{block.name}.*"
    if sorted(fnmatch.filter(names, pattern)) == sorted(block.layers):
        return pattern
    return block.layers[0]
