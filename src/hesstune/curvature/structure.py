"""What the autograd graph shows of each layer: the uses of its weight, and the operations that follow."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any

import torch
from torch.autograd.function import BackwardCFunction

from hesstune.curvature.layers import CapturedLayer

# Piecewise linear in all their operands together, with kinks: the derivative jumps, so difference quotients
# of gradients are not compared.
_KINK_NAMES = """
    Relu Threshold Hardtanh LeakyRelu Clamp ClampMin ClampMax Abs Hardshrink Softshrink
    Maximum Minimum Max Min Amax Amin Median Sort Topk RreluWithNoise
    MaxPool2DWithIndices MaxPool3DWithIndices MaxPool2D MaxPool3D AdaptiveMaxPool2D AdaptiveMaxPool3D
    FractionalMaxPool2D FractionalMaxPool3D MkldnnMaxPool2D MkldnnMaxPool3D
    """
_KINKS = frozenset(_KINK_NAMES.split())
# Linear in all their operands together, or a choice between them.
_LINEAR_NAMES = """
    Where MaskedFill AvgPool2D AvgPool3D AdaptiveAvgPool2D AdaptiveAvgPool3D MkldnnAdaptiveAvgPool2D
    Add Sub Rsub Neg Sum Mean Nansum Cumsum Cat Stack Clone Copy CopyBackwards ToCopy
    View UnsafeView Reshape ReshapeAlias Alias AsStrided Permute Transpose T Mt Expand Repeat Squeeze
    Unsqueeze Slice Select Split SplitWithSizes Chunk Unbind Narrow Index IndexSelect Gather Take TakeAlongDim
    Flip Roll Tril Triu Diagonal Unfold Im2Col Col2Im Movedim PixelShuffle PixelUnshuffle
    ChannelShuffle ConstantPadNd ReflectionPad1D ReflectionPad2D ReflectionPad3D
    ReplicationPad1D ReplicationPad2D ReplicationPad3D
    UpsampleNearest1D UpsampleNearest2D UpsampleNearest3D UpsampleNearestExact1D UpsampleNearestExact2D
    UpsampleLinear1D UpsampleBilinear2D UpsampleBicubic2D UpsampleTrilinear3D UpsampleBilinear2DAa
    UpsampleBicubic2DAa
    """
_PIECEWISE_LINEAR = _KINKS | frozenset(_LINEAR_NAMES.split())
# Linear in each operand, so piecewise linear if only one of them depends on the layer.
_MULTILINEAR_NAMES = """
    Mul Mm Bmm Mv Dot Addmm Addmv Baddbmm Addbmm Addcmul Linear MkldnnLinear
    Convolution MkldnnConvolution ThnnConv2D SlowConv3D ConvDepthwise2D PreluKernel Prelu
    """
_MULTILINEAR = frozenset(_MULTILINEAR_NAMES.split())
_OTHER_KINKS = frozenset({"Prelu", "PreluKernel", "Hardsigmoid", "Hardswish"})
_SLICE_WRITE = "CopySlices"
_BATCH_NORMS = frozenset({"NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm", "BatchNorm"})


@dataclass(frozen=True)
class Structure:
    """What the graph of one forward pass shows.

    Attributes:
        uses: How often each weight enters the graph of the logits.
        smooth: For each captured output that a smooth operation follows: the first such operation.
        unsure: Captured outputs followed by a write into a slice; the graph does not show its operation.
        custom: For each weight that a `torch.autograd.Function` written in Python follows: its name.
        has_kinks: Whether the graph has an operation with a derivative that jumps.
    """

    uses: Mapping[str, int]
    smooth: Mapping[str, str]
    unsure: frozenset[str]
    custom: Mapping[str, str]
    has_kinks: bool


def read_structure(
    logits: torch.Tensor, weights: Mapping[str, torch.Tensor], layers: Mapping[str, CapturedLayer]
) -> Structure:
    """Walk the graph of the logits.

    Args:
        logits: With the graph of one forward pass.
        weights: The parameters to count, by layer name; they must require gradients.
        layers: The captured layers.
    """
    order = _children_first(logits.grad_fn)
    names = {id(w): name for name, w in weights.items()}
    bits = {name: 1 << i for i, name in enumerate(layers)}
    start = {layers[name].edge.node: bit for name, bit in bits.items()}
    own = {name: 1 << (len(bits) + i) for i, name in enumerate(weights)}
    uses = dict.fromkeys(weights, 0)
    custom: dict[str, str] = {}
    masks: dict[Any, int] = {}
    culprits: dict[str, int] = {}
    for node in order:
        children = [child for child, _ in node.next_functions]
        for child in children:
            variable = getattr(child, "variable", None)
            if id(variable) in names:
                uses[names[id(variable)]] += 1
        operands = [masks.get(child, 0) for child in children]
        kind = _kind(node)
        if bad := _nonlinear_in(kind, node, operands):
            culprits[kind] = culprits.get(kind, 0) | bad
        mask = reduce(or_, operands, start.get(node, 0))
        if isinstance(node, BackwardCFunction):
            custom |= {name: kind for name, bit in own.items() if mask & bit and name not in custom}
        variable = names.get(id(getattr(node, "variable", None)))
        masks[node] = mask if variable is None else mask | own[variable]
    hidden = culprits.pop(_SLICE_WRITE, 0)
    smooth = {}
    for name, bit in bits.items():
        if found := [kind for kind, mask in culprits.items() if mask & bit]:
            smooth[name] = found[0]
    unsure = frozenset(name for name, bit in bits.items() if hidden & bit)
    return Structure(
        uses, smooth, unsure, custom, any(_kind(node) in _KINKS | _OTHER_KINKS for node in order)
    )


def graph_signature(logits: torch.Tensor) -> tuple[Any, ...]:
    """Return the operations of the graph of the logits and how they are connected, without their values."""
    order = _children_first(logits.grad_fn)
    places = {node: place for place, node in enumerate(order)}
    return tuple(
        (node.name(), *(places[child] for child, _ in node.next_functions if child is not None))
        for node in order
    )


def _nonlinear_in(kind: str, node: Any, operands: Sequence[int]) -> int:
    """Return the layers (as bits) for which this operation is not piecewise linear in their outputs."""
    if kind in _PIECEWISE_LINEAR:
        return 0
    if kind in _MULTILINEAR:
        seen = twice = 0
        for mask in operands:
            twice |= seen & mask
            seen |= mask
        return twice
    if kind == "Div":
        return operands[1] if len(operands) > 1 else 0
    if kind in _BATCH_NORMS and not getattr(node, "_saved_training", True):
        return 0
    return reduce(or_, operands, 0)


def _kind(node: Any) -> str:
    return re.sub(r"Backward\d*$", "", node.name().removeprefix("torch::autograd::"))


def _children_first(root: Any) -> list[Any]:
    order: list[Any] = []
    seen = set()
    stack: list[tuple[Any, bool]] = [(root, False)] if root is not None else []
    while stack:
        node, expanded = stack.pop()
        if expanded:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(child, False) for child, _ in node.next_functions if child is not None]
    return order
