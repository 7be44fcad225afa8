"""One forward pass that captures the layers as they were used in it, and the conditions it needs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hesstune.curvature.batches import logits_of_each
from hesstune.curvature.full_precision import full_precision
from hesstune.curvature.interception import Interceptor, OnOutput
from hesstune.curvature.layers import CapturedLayer, Layout, layout_fits
from hesstune.errors import MeasureError
from hesstune.forward import Inputs, batch_size, evaluating, named_parameters

__all__ = ["Capture", "capture", "differentiable", "kept_buffers", "restored"]


@dataclass
class Capture:
    """One forward pass of B examples.

    Attributes:
        logits: (B, K), with the graph.
        layers: The layers whose weight was found in exactly one call, and of which it is known where the
            examples are and the tensors are like that, in order of use.
        calls: How often each asked layer's weight was found in a call (0: never, or used otherwise).
        overwritten: Layers whose input the network changed in place later on; pass them as `copied`
            to the next capture, which saves this one's second forward pass.
        otherwise: Layers that were found to be used otherwise than planned, with a clause that says how.
    """

    logits: torch.Tensor
    layers: dict[str, CapturedLayer]
    calls: dict[str, int]
    overwritten: frozenset[str] = frozenset()
    otherwise: dict[str, str] = field(default_factory=dict)

    def left_out(self, names: Sequence[str]) -> dict[str, str]:
        """Return those of the layers that were not captured, with a clause that says why."""
        return {
            name: self.otherwise.get(
                name, f"{self.calls.get(name, 0)} calls, or tensors of another kind of shape"
            )
            for name in names
            if name not in self.layers
        }

    def require(self, names: Sequence[str]) -> None:
        """Raise MeasureError, naming it, if one of the layers was not captured."""
        for name, how in self.left_out(names).items():
            raise MeasureError(
                f"'{name}' is used in another way on this batch ({how}) than on the examples looked at "
                "first, so it is unknown where the examples are in it; leave it out with layers=, or give "
                "batches of one shape"
            )


def capture(
    model: nn.Module,
    inputs: Inputs,
    names: Sequence[str],
    layouts: Mapping[str, Layout],
    on_output: OnOutput | None = None,
    copied: frozenset[str] = frozenset(),
) -> Capture:
    """Run one forward pass and return the named layers as they were used in it.

    Call it inside `differentiable(model, names)`, which sets eval mode, gradient flags and kernels.

    Args:
        model: The network.
        inputs: One batch of B examples.
        names: Layer names, as in `Reference.layers()`.
        layouts: Where the examples are in each layer's tensors; a layer that it leaves out is not captured.
        on_output: Called with each captured layer and its output z; what it returns takes z's place.
        copied: Layers whose input is copied, because the network overwrites it.

    Raises:
        ModelError: If the output holds no (B, K) logits.
        MeasureError: If the logits are not one row an example.
    """
    examples = batch_size(inputs)
    interceptor = Interceptor(model, names, examples, layouts, on_output, copied)
    with interceptor:
        logits = logits_of_each(model, inputs)
    overwritten = interceptor.overwritten()
    if overwritten:
        again = capture(model, inputs, names, layouts, on_output, copied | overwritten)
        return replace(again, overwritten=again.overwritten | overwritten)
    calls = {name: len(found) for name, found in interceptor.found.items()}
    layers = {name: interceptor.found[name][0] for name in interceptor.order if calls[name] == 1}
    layers = {name: layer for name, layer in layers.items() if name in layouts and _fits(layer)}
    return Capture(logits, layers, calls)


def _fits(layer: CapturedLayer) -> bool:
    return layout_fits(layer.input.shape, layer.layout, layer.examples)


def _hardsigmoid(inputs: torch.Tensor) -> torch.Tensor:
    # The same function: torch's own kernel has no second derivative.
    return F.relu6(inputs + 3.0) / 6.0


@contextmanager
def differentiable(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Set eval mode, gradients for the named weights alone, float32, and kernels that differentiate twice.

    Everything is as before afterwards: training flags, requires_grad flags, global switches, the
    random state.
    """
    wanted = set(names)
    hard: list[nn.Module] = []
    flags = [(p, p.requires_grad) for p in model.parameters()]
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for name, parameter in named_parameters(model).items():
            parameter.requires_grad_(name in wanted)
        hard = [m for m in model.modules() if isinstance(m, nn.Hardsigmoid) and "forward" not in vars(m)]
        for module in hard:
            module.forward = _hardsigmoid
        with (
            kept_buffers(model),
            full_precision(model),
            evaluating(model),
            sdpa_kernel(SDPBackend.MATH),
            torch.random.fork_rng(),
            torch.enable_grad(),
        ):
            yield
    except RuntimeError as error:
        lacks = re.search(r"derivative for (?:aten::)?(\w+?)(?:_backward)? is not implemented", str(error))
        if lacks is None:
            raise
        raise MeasureError(
            f"the network calls {lacks[1]}, which torch cannot differentiate twice; write it by operations "
            "that it can (hardsigmoid: relu6(x + 3) / 6, or the module nn.Hardsigmoid)"
        ) from error
    finally:
        for module in hard:
            del module.forward
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextmanager
def restored(weights: Mapping[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """Yield clones of the weights, and put them back to the bit afterwards, also after an error."""
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    try:
        yield before
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(before[name])


@contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Put every buffer back afterwards, the same tensor with the same values.

    Some networks write buffers in every forward pass, also in eval mode: quantised ones keep their integer
    weights there.
    """
    before = [(m, name, b) for m in model.modules() for name, b in m._buffers.items() if b is not None]
    values = [buffer.detach().clone() for _, _, buffer in before]
    try:
        yield
    finally:
        with torch.no_grad():
            for (module, name, buffer), value in zip(before, values, strict=True):
                module._buffers[name] = buffer
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
