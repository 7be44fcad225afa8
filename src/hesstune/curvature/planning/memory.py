"""What a measurement takes beside the network and its reference, told before it starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import nn

from hesstune.curvature.capture import Capture
from hesstune.curvature.declared import FORECAST
from hesstune.curvature.layers import CapturedLayer
from hesstune.curvature.smooth.token_space import span_is_affordable
from hesstune.errors import MeasureError
from hesstune.forward import Inputs

__all__ = ["SHARED", "ExampleMemory", "KeptBytes", "MemoryForecast", "bytes_of", "example_memory"]

MIB = 2**20
# At the largest output a backward pass holds the gradients before and after it, copies of them in the
# convolution's own layout, and products of them (measured).
_IN_FLIGHT = 8
# What small tensors that nothing here counts add to a pass (measured: 3 % at most).
_ALLOWANCE = 1.1
# Beside the basis: the product, the vector that it came from and the two that they are made of.
_SPARE_VECTORS = 4
# Double backward graphs are several times a forward pass: fewer examples share one.
SHARED = 8
# For the examples measured at a time, where no budget is given.
_EXAMPLES_BYTES = 512 * MIB


@dataclass(frozen=True)
class ExampleMemory:
    """What one example takes in a pass, in bytes.

    Attributes:
        inputs: Its inputs.
        passes: What its forward pass keeps for the backward passes, the layers' changes D_i, and the
            gradients in flight.
        trace: What traces of exact layers add: unfolded inputs and their Gram matrices, a weight gradient.
        spectrum: What spectra of exact layers add: K − 1 gradients of every output, and one layer's of the
            weights.
        graph: Of smooth layers: the graph of the gradients that Hessian-vector products are taken in.
        vector: One Lanczos vector of the layer with the largest.
        span: The tokens of one layer in float64, their eigenproblem and its results.
        start: v_i of one smooth layer in float64, which all examples share.
    """

    inputs: int = 0
    passes: int = 0
    trace: int = 0
    spectrum: int = 0
    graph: int = 0
    vector: int = 0
    span: int = 0
    start: int = 0

    def scaled(self, inputs: int) -> ExampleMemory:
        """Return what an example of so many bytes takes, if that is more: in proportion to its inputs."""
        factor = inputs / max(1, self.inputs)
        if factor <= 1:
            return self
        each = (math.ceil(factor * getattr(self, field.name)) for field in fields(self))
        return replace(ExampleMemory(*each), start=self.start)

    def at_least(self, other: ExampleMemory) -> ExampleMemory:
        """Return the larger one of each entry."""
        return ExampleMemory(*(max(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)))

    def exact(self, *, trace: bool, spectrum: bool) -> int:
        """Return the bytes of an example in the passes to the layers' outputs."""
        return self.passes + (self.trace if trace else 0) + (self.spectrum if spectrum else 0)

    def lanczos(self, products: int) -> int:
        """Return the bytes of an example in Lanczos of at most so many products; 0 without smooth layers."""
        return self.graph and self.graph + self.span + (products + 1 + _SPARE_VECTORS) * self.vector


class KeptBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts the distinct bytes that passes keep for backward, parameters and buffers aside."""

    def __init__(self, model: nn.Module) -> None:
        self.total = 0
        self._seen = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
        super().__init__(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor


def bytes_of(inputs: Inputs) -> int:
    """Return the bytes of a batch's tensors."""
    values = [inputs] if isinstance(inputs, torch.Tensor) else inputs.values()
    return sum(v.nbytes for v in values if isinstance(v, torch.Tensor))


def example_memory(
    inputs: Inputs,
    captured: Capture,
    kept: KeptBytes,
    exact: Sequence[str],
    smooth: Sequence[str],
    apart: Sequence[nn.Parameter],
) -> ExampleMemory:
    """Tell what one example takes, from a forward pass of some.

    Args:
        inputs: The examples of the forward pass.
        captured: The forward pass.
        kept: What counted it; counts the graph of gradients on top.
        exact: Captured layers that are measured exactly.
        smooth: Captured layers that Lanczos measures.
        apart: Weights that are measured in weight space.
    """
    layers, size, width = captured.layers, len(captured.logits), captured.logits.element_size()
    outputs = [layer.shape.numel() * width for layer in layers.values()]
    in_flight = _IN_FLIGHT * max(outputs, default=0)
    found = ExampleMemory(
        bytes_of(inputs) // size, int(_ALLOWANCE * (kept.total + sum(outputs) + in_flight)) // size
    )
    if exact:
        some = [layers[name] for name in exact]
        passes = captured.logits.shape[1] - 1
        one = max(layer.weight.numel() * width for layer in some)
        unfolded = sum(_unfolded(layer) for layer in some) * width
        each = sum(layer.shape.numel() for layer in some) * width // size
        found = replace(found, trace=unfolded + 2 * one, spectrum=passes * (each + 2 * one) + unfolded)
    if smooth or apart:
        edges: list[Any] = [*(layers[name].edge for name in smooth), *apart]
        with kept:
            slopes = _slopes(captured.logits, edges)
        spaces = [_spaces(layers[name]) for name in smooth]
        vectors = [vector for vector, _ in spaces] + [w.numel() for w in apart]
        # In weight space each example has a slope of its own, what its graph keeps of that, and products
        # that are stacked.
        own = 4 * width * max((w.numel() for w in apart), default=0)
        shared = kept.total + sum(s.nbytes for s in slopes if s is not None) + in_flight
        found = replace(
            found,
            graph=int(_ALLOWANCE * shared) // size + own,
            vector=max(vectors) * width,
            span=max((span for _, span in spaces), default=0),
            start=8 * max((layers[name].weight.numel() for name in smooth), default=0),
        )
    return found


def _slopes(logits: torch.Tensor, edges: Sequence[Any]) -> Sequence[torch.Tensor | None]:
    if not logits.requires_grad:
        return []
    loss = logits.double().log_softmax(1)[:, 0].sum()
    found: Sequence[torch.Tensor | None] = torch.autograd.grad(
        loss, edges, create_graph=True, allow_unused=True
    )
    return found


def _counts(layer: CapturedLayer) -> tuple[int, int, int, int]:
    """Return an example's groups, its tokens a group, and a group's inputs and outputs a token."""
    groups = layer.options.get("groups", 1) if layer.kind == "conv" else 1
    rows = layer.weight.shape[1 if layer.transposed else 0]
    tokens = layer.shape.numel() // (rows * layer.examples)
    return groups, tokens, layer.weight.numel() // rows, rows // groups


def _unfolded(layer: CapturedLayer) -> int:
    """Return how many numbers an example's tokens are, and their Gram matrices where those are used."""
    if layer.kind == "conv_transpose":
        return layer.weight.numel()
    groups, tokens, inputs, _ = _counts(layer)
    gram = groups * tokens**2 if layer.prefers_gram() else 0
    return groups * tokens * inputs * (layer.kind == "conv") + gram


def _spaces(layer: CapturedLayer) -> tuple[int, int]:
    """Return how many numbers a Lanczos vector of the layer is, and the bytes of what it is made with."""
    if layer.kind == "conv_transpose" or not span_is_affordable(layer):
        return layer.weight.numel(), 0
    groups, tokens, inputs, outputs = _counts(layer)
    rank = min(tokens, inputs)
    numbers = 3 * tokens * inputs + 3 * rank**2 + 2 * inputs * rank + 2 * tokens * rank + 2 * outputs * rank
    return groups * outputs * rank, 8 * groups * numbers


@dataclass(frozen=True)
class MemoryForecast:
    """The most that a measurement takes beside the network and its reference, in bytes.

    Attributes:
        differences: W_i − W_i⁽ˢ⁾ of the layers, and float32 copies of weights in half precision.
        inputs: The batch that is measured, the next one, and the inputs kept until the maxima are refined.
        example: One example in the passes of the exact path, or of the ranking.
        lanczos: One example in Lanczos, its vectors included; 0 without smooth layers.
        vectors: How many vectors Lanczos keeps at most.
        at_once: Examples that share the passes.
        sharing: Examples that share the graph of Lanczos.

    Example:
        >>> forecast = MemoryForecast(differences=2**20, inputs=2**19, example=2**20)
        >>> forecast.within(4 * 2**20).at_once, forecast.least / 2**20
        (2, 2.5)
        >>> forecast.within(2**20)
        Traceback (most recent call last):
        hesstune.errors.MeasureError: measuring one example at a time takes 2.5 MiB beside the network and ...
    """

    differences: int
    inputs: int
    example: int
    lanczos: int = 0
    vectors: int = 0
    at_once: int = 1
    sharing: int = SHARED

    @property
    def total(self) -> int:
        """The most that is taken at a time."""
        return self.differences + self.inputs + max(self.at_once * self.example, self.sharing * self.lanczos)

    @property
    def least(self) -> int:
        """The most that is taken at a time where each example is measured alone."""
        return self.differences + self.inputs + self._own

    @property
    def _own(self) -> int:
        return max(self.example, self.lanczos)

    def within(
        self, budget: float | None, free: int | None = None, examples: int | None = None
    ) -> MemoryForecast:
        """Return the forecast with as many examples at a time as fit into a budget.

        Args:
            budget: In bytes, for everything that is forecast; None: 512 MiB for the examples' part, or more
                where one example takes more.
            free: What the device has left, which is the limit where no budget is given; None: unknown.
            examples: No more than so many at a time; of those that share a graph, no more than `sharing`.

        Raises:
            MeasureError: If one example does not fit; the message names what would.
        """
        limit = free if budget is None else budget
        if limit is not None and self.least > limit:
            needed, given, way = _mib(self.least), f"{limit / MIB:.4g} MiB are free", "take another device"
            if budget is not None:
                given = f"memory_mib is {limit / MIB:.4g}"
                way = f"give memory_mib={needed} (--memory-mib {needed})"
            raise MeasureError(
                f"measuring one example at a time takes {needed} MiB beside the network and its reference "
                f"(differences of the layers {_mib(self.differences)}, inputs {_mib(self.inputs)}, one "
                f"example {_mib(self._own)}), and {given}; {way}, or measure some of the layers (layers=, "
                "--layers), or fewer examples where inputs take the most"
            )
        room = max(_EXAMPLES_BYTES, self._own) if budget is None else budget - self.differences - self.inputs
        most = math.inf if examples is None else max(1, examples)
        at_once = int(min(most, max(1, room // max(1, self.example))))
        sharing = int(min(most, self.sharing, max(1, room // max(1, self.lanczos))))
        return replace(self, at_once=at_once, sharing=sharing)

    def sentence(self) -> str:
        """Say in one line what is taken, and by what."""
        text = (
            f"{FORECAST} at most {_mib(self.total)} MiB beside the network and its reference: layers' "
            f"differences {_mib(self.differences)}, inputs {_mib(self.inputs)}, {self.at_once} at a time of "
            f"{_mib(self.example)} an example"
        )
        if self.lanczos:
            text += f", in Lanczos {self.sharing} of {_mib(self.lanczos)} with {self.vectors} vectors at most"
        return text


def _mib(size: float) -> str:
    """Return MiB, rounded up."""
    return str(math.ceil(size / MIB)) if size >= 10 * MIB else f"{math.ceil(size / MIB * 1000) / 1000:g}"
