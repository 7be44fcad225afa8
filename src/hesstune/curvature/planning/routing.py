"""Networks whose calls depend on the values of their inputs: experts behind a router, early exits.

In such a network the examples of another batch may take other layers, or be in other rows of a layer's
tensors, than the examples of the batch that was planned on. So each batch is checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hesstune.curvature.batches import rows_of
from hesstune.curvature.capture import Capture
from hesstune.curvature.exact.passes import Passes
from hesstune.curvature.layers import CapturedLayer
from hesstune.curvature.planning.refusals import refuse_other_logits
from hesstune.curvature.planning.structure import read_structure
from hesstune.forward import Inputs, batch_size, logits_of, named_parameters

__all__ = ["calls_depend_on_values", "check_batch", "misplaced_layers", "reached"]

# Operators that turn values into shapes or into numbers of Python.
_READ_NAMES = """
    nonzero nonzero_static masked_select masked_scatter _unique _unique2 unique_dim unique_consecutive
    repeat_interleave bincount _local_scalar_dense equal is_nonzero allclose
    """
_READ_BY = frozenset(_READ_NAMES.split())
# Operators that move rows of activations to places that are values, in the first dimension.
_MOVE_NAMES = """
    index_select gather take embedding index_add index_add_ index_copy index_copy_ scatter scatter_
    scatter_add scatter_add_ scatter_reduce scatter_reduce_
    """
_MOVE_ROWS = frozenset(_MOVE_NAMES.split())
_MOVE_ROWS_BY_LIST = frozenset({"index", "index_put", "index_put_", "_index_put_impl_"})
# What reads memory without an operator.
_READ_DIRECTLY = frozenset((torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__))
# Factors of examples: ±2^-24 … ±2^24, which change no digit of a gradient.
_EXPONENTS = 24
_SAME_PRODUCT, _SMALL_PRODUCT = 1e-2, 1e-4


class _DirectReads(TorchFunctionMode):
    found = False

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.found |= func in _READ_DIRECTLY
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
        self.found = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.found = self.found or self._depends(func, args)
        return func(*args, **(kwargs or {}))

    def _depends(self, func: Any, args: Sequence[Any]) -> bool:
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


def calls_depend_on_values(model: nn.Module, inputs: Inputs) -> bool:
    """Tell whether a forward pass reads values, or moves rows to places that are values.

    Without that, all batches of inputs of the same kind are treated alike: a layer is called as often, and
    each example's rows are at the same places.
    """
    direct, operators = _DirectReads(), _Operators(model)
    with torch.no_grad(), direct, operators:
        logits_of(model, inputs)
    return direct.found or operators.found


def check_batch(model: nn.Module, inputs: Inputs, captured: Capture, exact: Sequence[str]) -> None:
    """Leave out of a capture the layers that this batch uses otherwise than planned.

    Args:
        model: The network.
        inputs: The batch.
        captured: Its forward pass; `layers` and `otherwise` are changed.
        exact: Layers planned as exact.

    Raises:
        MeasureError: If the logits are others in the batch's two halves.
    """
    if batch_size(inputs) > 1:
        _refuse_batch_conditions(model, inputs, captured.logits)
    parameters, layers, found = named_parameters(model), captured.layers, captured.otherwise
    nodes = {name: layer.edge.node for name, layer in layers.items()}
    structure = read_structure(captured.logits, {name: parameters[name] for name in captured.calls}, nodes)
    for name, calls in captured.calls.items():
        uses = structure.uses[name]
        if uses != calls or uses > 1:
            found[name] = f"{uses} uses of its weight, {calls} of them in plain calls"
        elif name in exact and name in structure.smooth:
            found[name] = f"{structure.smooth[name]} comes after it"
    found |= dict.fromkeys(misplaced_layers(captured, list(layers)), "its rows belong to other examples")
    for name in found.keys() & layers.keys():
        del layers[name]


def reached(captured: Capture, weights: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return those of the weights that the logits of this batch depend on, with a clause that says so."""
    if not weights:
        return {}
    uses = read_structure(captured.logits, weights, {}).uses
    return {name: "the logits depend on it" for name in weights if uses[name]}


def misplaced_layers(captured: Capture, names: Sequence[str]) -> set[str]:
    """Return the layers in which an example's part holds rows that other examples depend on.

    Two backward passes: ∂(Σ_b r_b wᵀf_b)/∂z, which in example b's part is r_b times what it is for r = 1.
    """
    layers, examples = [captured.layers[name] for name in names], len(captured.logits)
    if examples == 1 or not layers:
        return set()
    generator = torch.Generator().manual_seed(0)
    passes = Passes(
        captured.logits,
        layers,
        [_direction(layer, generator) for layer in layers],
        trace=False,
        spectrum=False,
    )
    seed = torch.randn(captured.logits.shape[1], generator=generator, dtype=torch.float64).to(captured.logits)
    exponents = torch.arange(-_EXPONENTS, _EXPONENTS + 1, dtype=torch.float64)
    factors = torch.cat([exponents.exp2(), -exponents.exp2()])
    places = torch.randperm(examples, generator=generator) % len(factors)
    factor = factors[torch.randperm(len(factors), generator=generator)][places, None].to(captured.logits)
    with passes.watching():
        plain = passes.products(seed.expand_as(captured.logits))
        scaled = passes.products(factor * seed) / factor
    allowed = _SAME_PRODUCT * plain.abs() + _SMALL_PRODUCT * plain.abs().amax(0)
    wrong = ~((scaled - plain).abs() <= allowed).all(0)
    return {name for name, bad in zip(names, wrong.tolist(), strict=True) if bad}


def _direction(layer: CapturedLayer, generator: torch.Generator) -> torch.Tensor:
    """Return a random vector of the output's channels, the same for all rows, in the output's shape."""
    channels = -1 if layer.kind == "linear" else 1
    vector = torch.randn(layer.shape[channels], generator=generator, dtype=torch.float64).to(layer.input)
    spatial = 0 if layer.kind == "linear" else layer.weight.ndim - 2
    return vector.view(-1, *[1] * spatial).expand(layer.shape) if spatial else vector.expand(layer.shape)


@torch.no_grad()
def _refuse_batch_conditions(model: nn.Module, inputs: Inputs, logits: torch.Tensor) -> None:
    size = batch_size(inputs)
    halves = torch.arange(size).split(-(-size // 2))
    found = torch.cat([logits_of(model, rows_of(inputs, half)) for half in halves])
    refuse_other_logits(found, logits.detach(), "in the two halves of a batch")
