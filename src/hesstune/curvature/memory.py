"""Forecast of the memory that a measurement takes beside the network and its reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import nn

from hesstune.curvature.capture import Capture
from hesstune.curvature.declared import FORECAST
from hesstune.curvature.lanczos import span_is_affordable
from hesstune.curvature.layers import CapturedLayer
from hesstune.errors import MeasureError
from hesstune.forward import Inputs

MIB = 2**20
# At the largest output a backward pass holds the gradients before and after it, their copies in the
# convolution's own layout, and products of them (measured).
_IN_FLIGHT = 8
# Small tensors that are not counted here add up to 3 % to a pass (measured).
_ALLOWANCE = 1.1
# Beside the basis: the product, the vector that it came from, and two temporary vectors.
_SPARE_VECTORS = 4
# Double backward graphs are several times as large as a forward pass, so fewer examples share one.
SHARED_GRAPH_EXAMPLES = 8
# For the examples measured at a time, without a budget.
_EXAMPLES_BYTES = 512 * MIB


@dataclass(frozen=True)
class ExampleMemory:
    """The memory of one example in a pass, in bytes.

    Attributes:
        inputs: Its inputs.
        passes: The tensors that its forward pass keeps for backward, the changes D_i, and gradients in
            flight.
        trace: Added by traces in closed form: unfolded inputs, their Gram matrices, a weight gradient.
        spectrum: Added by spectra: K − 1 gradients of every output, and of one layer's
            weights.
        graph: The graph of the gradients for Hessian-vector products with smooth layers.
        vector: The largest Lanczos vector of a layer.
        span: The tokens of one layer in float64 and their eigenproblem.
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
        """Return the memory of an example with so many bytes of inputs, in proportion; not less than this."""
        factor = inputs / max(1, self.inputs)
        if factor <= 1:
            return self
        each = (math.ceil(factor * getattr(self, field.name)) for field in fields(self))
        return replace(ExampleMemory(*each), start=self.start)

    def at_least(self, other: ExampleMemory) -> ExampleMemory:
        """Return the larger one of each entry."""
        return ExampleMemory(*(max(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)))

    def lanczos(self, products: int) -> int:
        """Return the bytes of an example in Lanczos with so many products; 0 without smooth layers."""
        return self.graph and self.graph + self.span + (products + 1 + _SPARE_VECTORS) * self.vector


class KeptBytes(torch.autograd.graph.saved_tensors_hooks):
    """Count the distinct bytes that passes keep for backward, without parameters and buffers."""

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
    closed: Sequence[str],
    smooth: Sequence[str],
    apart: Sequence[nn.Parameter],
    *,
    closed_apart: bool = False,
) -> ExampleMemory:
    """Compute the memory of one example from a forward pass of some examples, which `kept` has counted.

    `closed` and `smooth` are the captured layers that are measured in closed form and by Lanczos, and `apart`
    the weights that are measured in weight space: by Lanczos, or with `closed_apart` in closed form.
    """
    layers, size, width = captured.layers, len(captured.logits), captured.logits.element_size()
    outputs = [layer.shape.numel() * width for layer in layers.values()]
    in_flight = _IN_FLIGHT * max(outputs, default=0)
    found = ExampleMemory(
        bytes_of(inputs) // size, int(_ALLOWANCE * (kept.total + sum(outputs) + in_flight)) // size
    )
    passes = captured.logits.shape[1] - 1
    if closed:
        some = [layers[name] for name in closed]
        # A layer with fewer tokens than weights forms products with its Gram matrix, no weight gradient.
        one = width * max(
            layer.shape.numel() // size if layer.prefers_gram() else layer.weight.numel() for layer in some
        )
        unfolded = sum(_unfolded(layer) for layer in some) * width
        each = sum(layer.shape.numel() for layer in some) * width // size
        found = replace(found, trace=unfolded + 2 * one, spectrum=passes * (each + 2 * one) + unfolded)
    if closed_apart and apart:
        own = sum(w.numel() for w in apart) * width  # a gradient of each weight at once
        found = replace(found, passes=found.passes + own, spectrum=found.spectrum + passes * own)
        apart = ()
    if smooth or apart:
        edges: list[Any] = [*(layers[name].edge for name in smooth), *apart]
        slopes: Sequence[torch.Tensor | None] = []
        if captured.logits.requires_grad:
            with kept:
                loss = captured.logits.double().log_softmax(1)[:, 0].sum()
                slopes = torch.autograd.grad(loss, edges, create_graph=True, allow_unused=True)
        spaces = [_spaces(layers[name]) for name in smooth]
        vectors = [vector for vector, _ in spaces] + [w.numel() for w in apart]
        # In weight space each example has its own slope, graph and stacked products.
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


def _unfolded(layer: CapturedLayer) -> int:
    """Return the number of entries of an example's tokens, and of their Gram matrices if they are used."""
    if layer.kind == "conv_transpose":
        return layer.weight.numel()
    if layer.is_depthwise():
        return 2 * layer.input.numel() // layer.examples  # padded
    groups, tokens, inputs, _ = layer.counts()
    gram = groups * tokens**2 if layer.prefers_gram() else 0
    return groups * tokens * inputs * (layer.kind == "conv") + gram


def _spaces(layer: CapturedLayer) -> tuple[int, int]:
    """Return the number of entries of a Lanczos vector of the layer, and the bytes of its eigenproblem."""
    if layer.kind == "conv_transpose" or not span_is_affordable(layer):
        return layer.weight.numel(), 0
    groups, tokens, inputs, outputs = layer.counts()
    rank = min(tokens, inputs)
    numbers = 3 * tokens * inputs + 3 * rank**2 + 2 * inputs * rank + 2 * tokens * rank + 2 * outputs * rank
    return groups * outputs * rank, 8 * groups * numbers


@dataclass(frozen=True)
class MemoryForecast:
    """The largest memory of a measurement beside the network and its reference, in bytes.

    Attributes:
        differences: W_i − W_i⁽ˢ⁾ of the layers, and float32 copies of weights in half precision.
        inputs: The batch that is measured, the next one, and the sample of examples that is measured last.
        example: One example in the passes of the exact path.
        lanczos: One example in Lanczos, its vectors included; 0 without smooth layers.
        vectors: The largest number of vectors that Lanczos keeps.
        at_once: The number of examples that share the passes.
        sharing: The number of examples that share the graph of Lanczos.

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
    sharing: int = SHARED_GRAPH_EXAMPLES

    @property
    def least(self) -> int:
        """The largest memory at a time if each example is measured alone."""
        return self.differences + self.inputs + self._peak_of_one

    @property
    def _peak_of_one(self) -> int:
        return max(self.example, self.lanczos)

    def within(
        self, budget: float | None, free: int | None = None, examples: int | None = None
    ) -> MemoryForecast:
        """Return the forecast with as many examples at a time as fit into a budget.

        Args:
            budget: In bytes, for everything; None: 512 MiB for the examples' part, or more if one example
                needs it.
            free: The device's free memory, which is the limit without a budget; None: unknown.
            examples: The largest number of examples at a time.

        Raises:
            MeasureError: If one example does not fit; the message names a budget that is enough.
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
                f"example {_mib(self._peak_of_one)}), and {given}; {way}, or measure some of the layers "
                "(layers=, --layers), or fewer examples if the inputs take most of it"
            )
        room = (
            max(_EXAMPLES_BYTES, self._peak_of_one)
            if budget is None
            else budget - self.differences - self.inputs
        )
        most = math.inf if examples is None else max(1, examples)
        at_once = int(min(most, max(1, room // max(1, self.example))))
        sharing = int(min(most, self.sharing, max(1, room // max(1, self.lanczos))))
        return replace(self, at_once=at_once, sharing=sharing)

    def sentence(self) -> str:
        """Describe the forecast in one line."""
        passes = max(self.at_once * self.example, self.sharing * self.lanczos)
        text = (
            f"{FORECAST} at most {_mib(self.differences + self.inputs + passes)} MiB beside the network and "
            f"its reference: layers' differences {_mib(self.differences)}, inputs {_mib(self.inputs)}, "
            f"{self.at_once} at a time of {_mib(self.example)} an example"
        )
        if self.lanczos:
            text += f", in Lanczos {self.sharing} of {_mib(self.lanczos)} with {self.vectors} vectors at most"
        return text


def _mib(size: float) -> str:
    """Return MiB, rounded up."""
    return str(math.ceil(size / MIB)) if size >= 10 * MIB else f"{math.ceil(size / MIB * 1000) / 1000:g}"
