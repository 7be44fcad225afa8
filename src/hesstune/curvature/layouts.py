"""The place of the examples in a layer's tensors, found by dependence; and checks of networks with routing.

All examples of a batch can be measured at once because example b's logits depend on a layer's output z only
in example b's part. Passes over 3 and 4 examples show which dimension grows with the batch, and ∂f_b/∂z must
be zero outside b's part. A layer with no such dimension, or several, is measured in weight space.

In a network with calls that depend on the values of its inputs (experts behind a router, early exits),
another batch may use other layers, or have its examples in other rows. So each batch of such a network is
checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hesstune.curvature.batches import changed_example, differing_rows, logits_of_each, rows_of
from hesstune.curvature.capture import Capture, Interceptor
from hesstune.curvature.exact import BackwardPasses
from hesstune.curvature.layers import CapturedLayer, Layout, as_examples, layout_alone, layout_candidates
from hesstune.curvature.structure import read_structure
from hesstune.curvature.verification import refuse_other_logits
from hesstune.errors import HesstuneError, MeasureError
from hesstune.forward import Inputs, batch_size, logits_of, named_parameters

_EXAMPLES = 3
_SAME_INPUT = 1e-4
# Operators that turn values into shapes or Python numbers.
_READ_NAMES = """
    nonzero nonzero_static masked_select masked_scatter _unique _unique2 unique_dim unique_consecutive
    repeat_interleave bincount _local_scalar_dense equal is_nonzero allclose
    """
_READ_BY = frozenset(_READ_NAMES.split())
# Operators that move rows of activations to places given by values, in the first dimension.
_MOVE_NAMES = """
    index_select gather take embedding index_add index_add_ index_copy index_copy_ scatter scatter_
    scatter_add scatter_add_ scatter_reduce scatter_reduce_
    """
_MOVE_ROWS = frozenset(_MOVE_NAMES.split())
_MOVE_ROWS_BY_LIST = frozenset({"index", "index_put", "index_put_", "_index_put_impl_"})
# Functions that read memory without an operator.
_READ_DIRECTLY = frozenset((torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__))
# Factors of examples: ±2^-24 … ±2^24, which change no digit of a gradient.
_EXPONENTS = 24
_SAME_PRODUCT, _SMALL_PRODUCT = 1e-2, 1e-4


def find_layouts(model: nn.Module, inputs: Inputs, names: Sequence[str]) -> dict[str, Layout | None]:
    """Find the place of the examples in each layer's tensors, from at most four examples of a batch.

    It takes two forward and three backward passes, and four more forward passes if several layouts remain.
    Call it inside `differentiable(model, names)`.

    Returns:
        The layout of every layer found in exactly one call. None if no dimension is known to run over the
        examples: they share z (computed from positions only), z has them in another order or dimension, or
        they influence each other.

    Raises:
        MeasureError: If the network does not run on three or four examples, or the first dimension of
            its inputs is not that of its logits.
    """
    if batch_size(inputs) == 1:
        return {
            name: layout_alone(layer.input.shape) for name, layer in _probe(model, inputs, names)[1].items()
        }
    rows = differing_rows(inputs, _EXAMPLES)
    index = rows[torch.arange(_EXAMPLES) % len(rows)]
    few = rows_of(inputs, index)
    logits, layers = _probe(model, few, names)
    # With one of the same examples again, only the batch grows: not a sequence cut to the longest.
    _, grown = _probe(model, rows_of(inputs, torch.cat([index, index[-1:]])), names)
    candidates = {
        name: _growing(layer.input.shape, grown[name].input.shape) if name in grown else []
        for name, layer in layers.items()
    }
    _exclude_by_gradients(logits, layers, candidates)
    unsure = [name for name, found in candidates.items() if len(found) > 1]
    if unsure:
        _exclude_by_changes(model, few, unsure, candidates)
    return {name: found[0] if len(found) == 1 else None for name, found in candidates.items()}


def _probe(
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
            "number of them (a tensor in a mapping has one row for each example if its first dimension is "
            "the batch's size: give others with a leading dimension of 1)"
        ) from error
    return logits, {name: calls[0] for name, calls in interceptor.found.items() if len(calls) == 1}


def _growing(small: torch.Size, large: torch.Size) -> list[Layout]:
    """List the layouts in which the tensor grew by exactly one example's part."""
    after = layout_candidates(large, _EXAMPLES + 1)
    return [
        layout
        for layout in layout_candidates(small, _EXAMPLES)
        if layout in after
        and _shape_of_example(small, layout, _EXAMPLES) == _shape_of_example(large, layout, _EXAMPLES + 1)
    ]


def _shape_of_example(shape: torch.Size, layout: Layout, examples: int) -> torch.Size:
    return as_examples(torch.empty(shape, device="meta"), layout, examples).shape[1:]


def _exclude_by_gradients(
    logits: torch.Tensor, layers: Mapping[str, CapturedLayer], candidates: dict[str, list[Layout]]
) -> None:
    """Remove the layouts in which an example's logits depend on another's part of the output.

    Gradients are exact zeros without dependence, so no tolerance is needed.
    """
    if not layers or logits.grad_fn is None:
        return
    generator = torch.Generator().manual_seed(0)
    # Random: the sum of normalised logits has no gradient.
    weights = torch.randn(logits.shape[1], generator=generator, dtype=torch.float64).to(logits)
    edges = [layer.edge for layer in layers.values()]
    for row in range(_EXAMPLES):
        gradients = torch.autograd.grad(
            logits[row] @ weights, edges, retain_graph=row < _EXAMPLES - 1, allow_unused=True
        )
        for name, gradient in zip(layers, gradients, strict=True):
            if gradient is not None:
                depends = gradient != 0
                candidates[name] = [c for c in candidates[name] if _only_example_moved(depends, c, row)]


def _exclude_by_changes(
    model: nn.Module, inputs: Inputs, names: Sequence[str], candidates: dict[str, list[Layout]]
) -> None:
    """Remove the layouts in which a change of one example changes another's part of the layer's input."""
    copied = frozenset(names)  # the network may overwrite them in place
    before = _probe(model, inputs, names, copied)[1]
    for row in range(_EXAMPLES):
        changed = changed_example(inputs, row)
        if changed is None:
            continue
        after = _probe(model, changed, names, copied)[1]
        for name in names:
            old = before[name].input
            if name not in after or after[name].input.shape != old.shape:
                continue
            moved = (after[name].input - old).abs() > _SAME_INPUT * old.abs().max()
            candidates[name] = [c for c in candidates[name] if _only_example_moved(moved, c, row)]


def _only_example_moved(found: torch.Tensor, layout: Layout, row: int) -> bool:
    parts = as_examples(found, layout, _EXAMPLES)
    others = torch.arange(_EXAMPLES, device=parts.device) != row
    return not bool(parts[others].any())


def calls_depend_on_values(model: nn.Module, inputs: Inputs) -> bool:
    """Tell whether a forward pass reads values, or moves rows to places given by values.

    If not, all batches have the same calls of each layer, and each example's rows at the same places.
    """
    direct, operators = _DirectReads(), _Operators(model)
    with torch.no_grad(), direct, operators:
        logits_of(model, inputs)
    return direct.found or operators.found


class _DirectReads(TorchFunctionMode):
    """Finds functions that read values of a tensor."""

    found = False

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.found |= func in _READ_DIRECTLY
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    """Finds operators that read values, or move rows of activations by values."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
        self.found = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.found = self.found or self._reads_values(func, args)
        return func(*args, **(kwargs or {}))

    def _reads_values(self, func: Any, args: Sequence[Any]) -> bool:
        space, name = func.name().split(".")[0].split("::")
        if space not in ("aten", "prims") or name in _READ_BY:
            return True
        if name in _MOVE_ROWS_BY_LIST:
            return args[1][0] is not None and self._is_activation(args[0])
        if name in _MOVE_ROWS:
            by_row = name in ("take", "embedding") or args[1] in (0, -args[0].ndim)
            return by_row and self._is_activation(args[0])
        return False

    def _is_activation(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() not in self._own


def check_batch(model: nn.Module, inputs: Inputs, captured: Capture, exact: Sequence[str]) -> None:
    """Move the layers that this batch uses in another way than planned from `layers` to `otherwise`.

    `captured` is the batch's forward pass, and `exact` are the layers planned as exact.

    Raises:
        MeasureError: If the batch's two halves have other logits.
    """
    size = batch_size(inputs)
    if size > 1:
        with torch.no_grad():
            halves = torch.arange(size).split(-(-size // 2))
            alone = torch.cat([logits_of(model, rows_of(inputs, half)) for half in halves])
        refuse_other_logits(alone, captured.logits.detach(), "in the two halves of a batch")
    parameters, found = named_parameters(model), captured.otherwise
    weights = {name: parameters[name] for name in captured.calls}
    structure = read_structure(captured.logits, weights, captured.layers)
    for name, calls in captured.calls.items():
        uses = structure.uses[name]
        if uses != calls or uses > 1:
            found[name] = f"{uses} uses of its weight, {calls} of them in plain calls"
        elif name in exact and name in structure.smooth:
            found[name] = f"{structure.smooth[name]} comes after it"
    found |= dict.fromkeys(layers_with_mixed_rows(captured), "its rows belong to other examples")
    for name in found.keys() & captured.layers.keys():
        del captured.layers[name]


def used_weights(captured: Capture, weights: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the weights on which the logits of this batch depend, and a reason for people."""
    if not weights:
        return {}
    uses = read_structure(captured.logits, weights, {}).uses
    return {name: "the logits depend on it" for name in weights if uses[name]}


def layers_with_mixed_rows(captured: Capture) -> set[str]:
    """Return the layers in which an example's part has rows that other examples depend on.

    Two backward passes: ∂(Σ_b r_b wᵀf_b)/∂z, which in example b's part is r_b times what it is for r = 1.
    """
    layers, logits = list(captured.layers.values()), captured.logits
    if len(logits) == 1 or not layers:
        return set()
    generator = torch.Generator().manual_seed(0)
    passes = BackwardPasses(logits, layers, [_direction(layer, generator) for layer in layers])
    seed = torch.randn(logits.shape[1], generator=generator, dtype=torch.float64).to(logits)
    exponents = torch.arange(-_EXPONENTS, _EXPONENTS + 1, dtype=torch.float64)
    factors = torch.cat([exponents.exp2(), -exponents.exp2()])
    places = torch.randperm(len(logits), generator=generator) % len(factors)
    factor = factors[torch.randperm(len(factors), generator=generator)][places, None].to(logits)
    with passes.watching():
        plain = passes.products(seed.expand_as(logits))
        scaled = passes.products(factor * seed) / factor
    allowed = _SAME_PRODUCT * plain.abs() + _SMALL_PRODUCT * plain.abs().amax(0)
    wrong = ~((scaled - plain).abs() <= allowed).all(0)
    return {layer.name for layer, bad in zip(layers, wrong.tolist(), strict=True) if bad}


def _direction(layer: CapturedLayer, generator: torch.Generator) -> torch.Tensor:
    """Return a random vector of the output's channels, the same for all rows, in the output's shape."""
    linear = layer.kind == "linear"
    channels = layer.shape[-1 if linear else 1]
    vector = torch.randn(channels, generator=generator, dtype=torch.float64).to(layer.input)
    spatial = 0 if linear else layer.weight.ndim - 2
    return vector.view(-1, *[1] * spatial).expand(layer.shape)
