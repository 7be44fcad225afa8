"""Forecast of the memory that a measurement takes beside the network and its reference.

The passes run on one and on two examples of a batch, and the bytes of live tensors are recorded at every new
tensor. Both runs make the same tensors, so each place gives the bytes as a linear function of the number of
examples. The forecast is the largest of these functions.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hesstune.curvature.declared import FORECAST
from hesstune.curvature.lanczos import span_is_affordable
from hesstune.curvature.layers import CapturedLayer
from hesstune.errors import MeasureError
from hesstune.forward import Inputs

MIB = 2**20
# Double backward graphs are several times as large as a forward pass, so fewer examples share one.
SHARED_GRAPH_EXAMPLES = 8
# An allocator rounds sizes up, and keeps some memory that was freed.
_ALLOWANCE = 1.08
# Examples at a time, if nothing else limits them.
_MOST_EXAMPLES = 2**20
# For the examples measured at a time, without a budget.
_EXAMPLES_BYTES = 512 * MIB


class LiveBytes(TorchDispatchMode):
    """Record the bytes of all live tensors that operations have made, at each new one.

    Attributes:
        series: The bytes, in the order of the tensors.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.series: list[int] = []
        self._now = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        given = {_key(x) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor) and _key(tensor) not in given:
                self._add(tensor.untyped_storage())
        return found

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if size and key not in self._alive:
            self._alive[key] = size
            self._now += size
            self.series.append(self._now)
            weakref.finalize(storage, self._forget, key).atexit = False

    def _forget(self, key: int) -> None:
        self._now -= self._alive.pop(key, 0)


def _key(tensor: torch.Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key


@dataclass(frozen=True)
class PeakBytes:
    """The peak of a computation's memory as a function of its number of examples n: max of a + n·b.

    Attributes:
        lines: a and b, in bytes.

    Example:
        >>> peak = PeakBytes.of([10, 30, 5], [20, 31, 10])
        >>> peak.of_examples(1), peak.of_examples(3), peak.examples_in(55)
        (30, 32, 5)
    """

    lines: tuple[tuple[int, int], ...] = ((0, 0),)

    @classmethod
    def of(cls, one: Sequence[int], two: Sequence[int] | None = None) -> PeakBytes:
        """Compute it from the bytes of one example's run, and of that of two, in the order of the tensors.

        If the numbers of tensors differ, only the two peaks are used; without the second run, each example
        takes as much as the first.
        """
        if two is None:
            return cls(((0, max(one, default=0)),))
        if len(one) != len(two):
            one, two = [max(one, default=0)], [max(two, default=0)]
        lines: list[tuple[int, int]] = []
        pairs = ((max(0, after - before), before) for before, after in zip(one, two, strict=True))
        for each, fixed in sorted({(each, before - each) for each, before in pairs}, reverse=True):
            if not lines or fixed > lines[-1][0]:  # otherwise another line is above it for all n
                lines.append((fixed, each))
        return cls(tuple(lines) or ((0, 0),))

    def of_examples(self, examples: int) -> int:
        """Return the bytes of so many examples at once."""
        return max(fixed + examples * each for fixed, each in self.lines)

    def examples_in(self, room: float) -> float:
        """Return the number of examples that fit into so many bytes, at least 1; math.inf if all do."""
        fits = (math.floor((room - fixed) / each) if each else math.inf for fixed, each in self.lines)
        return max(1, min(fits))

    def plus(self, each: int) -> PeakBytes:
        """Return the peak with so many further bytes of each example."""
        return PeakBytes(tuple((a, b + each) for a, b in self.lines))


def bytes_of(inputs: Inputs) -> int:
    """Return the bytes of a batch's tensors."""
    values = [inputs] if isinstance(inputs, torch.Tensor) else inputs.values()
    return sum(v.nbytes for v in values if isinstance(v, torch.Tensor))


def vector_and_span(layer: CapturedLayer) -> tuple[int, int]:
    """Return the bytes of an example's Lanczos vector of the layer, and about those of its eigenproblem."""
    width = layer.weight.element_size()
    if layer.kind == "conv_transpose" or not span_is_affordable(layer):
        return width * layer.weight.numel(), 0
    groups, tokens, inputs, outputs = layer.counts()
    rank = min(tokens, inputs)
    return width * groups * outputs * rank, 8 * groups * (3 * tokens * inputs + 3 * rank**2)


@dataclass(frozen=True)
class MemoryForecast:
    """The largest memory of a measurement beside the network and its reference.

    Attributes:
        differences: W_i − W_i⁽ˢ⁾ of the layers, and float32 copies of weights in half precision, in bytes.
        inputs: The batch that is measured, the next one, and the sample of examples that is measured last.
        passes: The peak of the passes of the exact path.
        lanczos: The peak of Lanczos, its vectors included; 0 without smooth layers.
        vectors: The largest number of vectors that Lanczos keeps.
        at_once: The number of examples that share the passes.
        sharing: The number of examples that share the graph of Lanczos.

    Example:
        >>> forecast = MemoryForecast(2**20, 2**19, PeakBytes(((0, 2**20),)))
        >>> forecast.within(4 * 2**20).at_once, round(forecast.least / 2**20, 3)
        (2, 2.7)
        >>> forecast.within(2**20)
        Traceback (most recent call last):
        hesstune.errors.MeasureError: measuring one example at a time takes 2.701 MiB beside the network ...
    """

    differences: int
    inputs: int
    passes: PeakBytes
    lanczos: PeakBytes = PeakBytes()
    vectors: int = 0
    at_once: int = 1
    sharing: int = SHARED_GRAPH_EXAMPLES

    @property
    def least(self) -> int:
        """The largest memory at a time if each example is measured alone."""
        return self._total(self._peak_of_one)

    @property
    def _peak_of_one(self) -> int:
        return max(self.passes.of_examples(1), self.lanczos.of_examples(1))

    def _total(self, peak: int) -> int:
        return math.ceil(_ALLOWANCE * (self.differences + self.inputs + peak))

    def within(
        self,
        budget: float | None,
        free: int | None = None,
        examples: int | None = None,
        most: int | None = None,
    ) -> MemoryForecast:
        """Return the forecast with as many examples at a time as fit into a budget.

        Args:
            budget: In bytes, for everything; None: 512 MiB for the examples' part, or more if one example
                needs it.
            free: The device's free memory, which is the limit without a budget; None: unknown.
            examples: The examples of the batch, which is split evenly.
            most: The largest number of examples at a time.

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
            else budget / _ALLOWANCE - self.differences - self.inputs
        )
        limits = [limit for limit in (examples, most) if limit is not None]
        at_once = int(min(self.passes.examples_in(room), *limits, _MOST_EXAMPLES))
        if examples is not None:
            at_once = math.ceil(examples / math.ceil(examples / at_once))
        sharing = int(min(at_once, self.lanczos.examples_in(room), self.sharing))
        return replace(self, at_once=at_once, sharing=sharing)

    def sentence(self) -> str:
        """Describe the forecast in one line."""
        passes, lanczos = self.passes.of_examples(self.at_once), self.lanczos.of_examples(self.sharing)
        most = self._total(max(passes, lanczos))
        text = (
            f"{FORECAST} at most {_mib(most)} MiB beside the network and its reference: layers' differences "
            f"{_mib(self.differences)}, inputs {_mib(self.inputs)}, passes of {self.at_once} at a time "
            f"{_mib(passes)}"
        )
        if lanczos:
            text += f", Lanczos on {self.sharing} {_mib(lanczos)} with {self.vectors} vectors at most"
        return text


def _mib(size: float) -> str:
    """Return MiB, rounded up."""
    return str(math.ceil(size / MIB)) if size >= 10 * MIB else f"{math.ceil(size / MIB * 1000) / 1000:g}"
