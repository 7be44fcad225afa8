"""Which dimension of a layer's tensors runs over the examples: told by dependence, never by size alone.

The paths that take all examples of a batch at once rest on one fact: example b's logits depend on a
layer's output z in example b's part of it only. So that is what is looked at. Two passes over 3 and 4
examples show which dimension grows with the batch, so a sequence of as many tokens as there are examples
is not taken for them; and where ∂f_b/∂z is not zero must be inside b's part, which also holds for examples
that are all the same. A layer that passes for none, or for several, is measured in weight space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from hesstune.curvature.batches import changed_example, differing_rows, logits_of_each, rows_of
from hesstune.curvature.interception import Interceptor
from hesstune.curvature.layers import CapturedLayer, Layout, as_examples, layout_alone, layout_candidates
from hesstune.errors import HesstuneError, MeasureError
from hesstune.forward import Inputs, batch_size

__all__ = ["find_layouts"]

_EXAMPLES = 3
_SAME_INPUT = 1e-4


def find_layouts(model: nn.Module, inputs: Inputs, names: Sequence[str]) -> dict[str, Layout | None]:
    """Find where the examples are in each layer's tensors, from at most four examples of a batch.

    It takes two forward passes and three backward ones; four more forward passes where those leave a
    choice. Call it inside `differentiable(model, names)`.

    Args:
        model: The network, in eval mode.
        inputs: One batch; a single example has every layer's tensors to itself.
        names: The layers.

    Returns:
        The layout of every layer found in exactly one call; None where no dimension is known to run over
        the examples: z is shared by them (made from positions alone), holds them in another order or
        dimension, or the examples influence each other.

    Raises:
        MeasureError: If the network does not run on three or four examples, or the first dimension of
            its inputs is not that of its logits.
    """
    if batch_size(inputs) == 1:
        return {
            name: layout_alone(layer.input.shape) for name, layer in _seen(model, inputs, names)[1].items()
        }
    rows = differing_rows(inputs, _EXAMPLES)
    index = rows[torch.arange(_EXAMPLES) % len(rows)]
    few = rows_of(inputs, index)
    logits, layers = _seen(model, few, names)
    # One of the same examples again: nothing grows but the batch, not even a sequence cut to the longest.
    _, grown = _seen(model, rows_of(inputs, torch.cat([index, index[-1:]])), names)
    candidates = {
        name: _growing(layer.input.shape, grown[name].input.shape) if name in grown else []
        for name, layer in layers.items()
    }
    _keep_apart(logits, layers, candidates)
    unsure = [name for name, found in candidates.items() if len(found) > 1]
    if unsure:
        _keep_moving(model, few, unsure, candidates)
    return {name: found[0] if len(found) == 1 else None for name, found in candidates.items()}


def _seen(
    model: nn.Module, inputs: Inputs, names: Sequence[str], copied: frozenset[str] = frozenset()
) -> tuple[torch.Tensor, dict[str, CapturedLayer]]:
    size = batch_size(inputs)
    interceptor = Interceptor(model, names, size, copied=copied)
    try:
        with interceptor:
            logits = logits_of_each(model, inputs)
    except (HesstuneError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        raise MeasureError(
            f"the network does not run on {size} examples taken from the batch ({error}); it must take any "
            "number of them (tensors in a mapping whose first dimension is the batch's size count as "
            "holding one row an example: give others with a leading dimension of 1)"
        ) from error
    return logits, {name: calls[0] for name, calls in interceptor.found.items() if len(calls) == 1}


def _growing(small: torch.Size, large: torch.Size) -> list[Layout]:
    """List the layouts in which the tensor grew by one example's part, and by nothing else."""
    after = layout_candidates(large, _EXAMPLES + 1)
    return [
        layout
        for layout in layout_candidates(small, _EXAMPLES)
        if layout in after and _part(small, layout, _EXAMPLES) == _part(large, layout, _EXAMPLES + 1)
    ]


def _part(shape: torch.Size, layout: Layout, examples: int) -> torch.Size:
    return as_examples(torch.empty(shape, device="meta"), layout, examples).shape[1:]


def _keep_apart(
    logits: torch.Tensor, layers: Mapping[str, CapturedLayer], candidates: dict[str, list[Layout]]
) -> None:
    """Strike the layouts in which an example's logits depend on another's part of the output.

    Gradients of one example's logits are exact zeros wherever it does not depend on the output, so no
    tolerance is needed.
    """
    if not layers or logits.grad_fn is None:
        return
    generator = torch.Generator().manual_seed(0)
    # Random, since the sum of logits that are normalised has no gradient.
    weights = torch.randn(logits.shape[1], generator=generator, dtype=torch.float64).to(logits)
    edges = [layer.edge for layer in layers.values()]
    for row in range(_EXAMPLES):
        gradients = torch.autograd.grad(
            logits[row] @ weights, edges, retain_graph=row < _EXAMPLES - 1, allow_unused=True
        )
        for name, gradient in zip(layers, gradients, strict=True):
            if gradient is not None:
                depends = gradient != 0
                candidates[name] = [c for c in candidates[name] if _only_in(depends, c, row)]


def _keep_moving(
    model: nn.Module, inputs: Inputs, names: Sequence[str], candidates: dict[str, list[Layout]]
) -> None:
    """Strike the layouts in which a change of one example moves another's part of the layer's input."""
    copied = frozenset(names)  # the network may overwrite them in place
    before = _seen(model, inputs, names, copied)[1]
    for row in range(_EXAMPLES):
        changed = changed_example(inputs, row)
        if changed is None:
            continue
        after = _seen(model, changed, names, copied)[1]
        for name in names:
            old = before[name].input
            if name not in after or after[name].input.shape != old.shape:
                continue
            moved = (after[name].input - old).abs() > _SAME_INPUT * old.abs().max()
            candidates[name] = [c for c in candidates[name] if _only_in(moved, c, row)]


def _only_in(found: torch.Tensor, layout: Layout, row: int) -> bool:
    parts = as_examples(found, layout, _EXAMPLES)
    others = torch.arange(_EXAMPLES, device=parts.device) != row
    return not bool(parts[others].any())
