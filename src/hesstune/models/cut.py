"""Where a network can be cut: all before the first trained module is frozen, and need run only once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hesstune.errors import HesstuneError
from hesstune.forward import Inputs, batch_size, evaluating, logits_of, outputs_of

# Logits of the network behind the cut against those of the whole: equal but for rounding.
CLOSE = 1e-4
# What trained parameters are moved by, while a cut is tried: a standard deviation.
MOVE = 0.02


@dataclass(frozen=True)
class Cut:
    """A place in a network's forward pass before which nothing is trained.

    Attributes:
        at: The module that the activation is the input of.
        key: Which of its arguments that is: a position, or a keyword.
        skipped: Modules whose calls before the cut are left out, with what each call returns instead: zeros
            of a shape, for every example, or (None) what it was given.
        shape: Of one example's activation; of texts (tokens, width), the tokens those of the probe.
        image: The shape of one example's input if it is a tensor, else None.
    """

    at: str
    key: int | str
    skipped: Mapping[str, tuple[tuple[int, ...] | None, ...]]
    shape: tuple[int, ...]
    image: tuple[int, ...] | None


class _Reached(Exception):
    """Ends a forward pass at the cut."""


@dataclass
class _Call:
    """A module's call while a probe runs: its place in the order of events, and its output's shape."""

    name: str
    entered: int
    left: int = -1
    same: bool = False
    output: tuple[int, ...] | None = None


@dataclass
class _Trace:
    """The calls of a forward pass up to the first trained module, and its ancestors then."""

    trained: set[str]
    calls: list[_Call] = field(default_factory=list)
    stack: list[_Call] = field(default_factory=list)
    path: list[_Call] = field(default_factory=list)
    clock: int = 0

    def enter(self, name: str) -> None:
        if self.path:
            return
        self.clock += 1
        self.stack.append(_Call(name, self.clock))
        self.calls.append(self.stack[-1])
        if name in self.trained:
            self.path = list(self.stack)

    def leave(self, args: tuple[Any, ...], output: Any) -> None:
        if self.path:
            return
        self.clock += 1
        call = self.stack.pop()
        call.left = self.clock
        if isinstance(output, torch.Tensor):
            call.output = tuple(output.shape)
            call.same = bool(args) and isinstance(args[0], torch.Tensor) and args[0].shape == output.shape


def find_cut(model: nn.Module, inputs: Inputs) -> Cut | None:
    """Return the latest cut before the first trained module, or None if there is none.

    A cut is taken only if the network behind it, given the activation and nothing else of the inputs that
    the frozen part would have changed, has the logits of the whole network, and if the activation does not
    depend on a trained parameter: a connection around the cut moves it to before the block that it belongs
    to.

    Args:
        model: The network; `requires_grad` marks what is trained. It is left as it is.
        inputs: Two examples or more.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> _ = net[0].requires_grad_(False)
        >>> find_cut(net, torch.rand(2, 3)).at
        '2'
    """
    trace = _traced(model, inputs)
    for call in reversed(trace.path[1:]):  # not before the network itself
        cut = _before(model, call, trace, inputs)
        if cut is not None and _holds(model, cut, inputs):
            return cut
    return None


@torch.no_grad()
def _traced(model: nn.Module, inputs: Inputs) -> _Trace:
    modules = dict(model.named_modules())
    trained = {
        name for name, m in modules.items() if any(p.requires_grad for p in m.parameters(recurse=False))
    }
    trace, handles = _Trace(trained), []

    def watch(name: str, module: nn.Module) -> None:
        handles.append(module.register_forward_pre_hook(lambda _, args: trace.enter(name)))
        handles.append(module.register_forward_hook(lambda _, args, out: trace.leave(args, out)))

    for name, module in modules.items():
        watch(name, module)
    try:
        with evaluating(model):
            logits_of(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return trace


def _before(model: nn.Module, call: _Call, trace: _Trace, inputs: Inputs) -> Cut | None:
    """Return the cut before a call: its maximal finished calls are what is skipped."""
    n = batch_size(inputs)
    skipped: dict[str, tuple[tuple[int, ...] | None, ...]] = {}
    ended = 0
    for done in trace.calls:
        if not ended < done.left < call.entered or done.output is None or done.output[0] != n:
            continue  # not finished, or within one that is skipped as a whole
        if done.same or isinstance(inputs, torch.Tensor):
            skipped[done.name] = (*skipped.get(done.name, ()), None if done.same else done.output[1:])
            ended = done.left
    seen = _argument(model, call.name, inputs)
    if seen is None or not any(True for name in skipped for _ in model.get_submodule(name).parameters()):
        return None  # nothing would be saved
    key, value = seen
    if not value.is_floating_point() or value.ndim < 2 or value.shape[0] != n:
        return None
    image = tuple(inputs.shape[1:]) if isinstance(inputs, torch.Tensor) else None
    return Cut(call.name, key, skipped, tuple(value.shape[1:]), image)


@torch.no_grad()
def _argument(model: nn.Module, name: str, inputs: Inputs) -> tuple[int | str, torch.Tensor] | None:
    """Return the first tensor that a module is given, and which argument it is."""
    seen: list[tuple[int | str, torch.Tensor]] = []

    def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        seen.extend((key, value) for key, value in named[:1] if isinstance(value, torch.Tensor))
        raise _Reached

    handle = model.get_submodule(name).register_forward_pre_hook(look, with_kwargs=True)
    try:
        with evaluating(model):
            outputs_of(model, inputs)
    except _Reached:
        pass
    finally:
        handle.remove()
    return seen[0] if seen else None


def activations_at(model: nn.Module, cut: Cut, inputs: Inputs) -> torch.Tensor:
    """Return what the cut's module is given, (N, …), in eval mode and without a gradient."""
    seen = _argument(model, cut.at, inputs)
    assert seen is not None
    return seen[1]


@torch.no_grad()
def _holds(model: nn.Module, cut: Cut, inputs: Inputs) -> bool:
    """Tell whether the activation determines the logits, and trained parameters do not determine it.

    They are moved a little meanwhile: a head of zeros would hide everything.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    kept = [p.detach().clone() for p in parameters]
    generator = torch.Generator().manual_seed(0)
    before = activations_at(model, cut, inputs)
    try:
        for p in parameters:
            p.add_(MOVE * torch.randn(p.shape, generator=generator).to(p))
        with evaluating(model):
            activation = activations_at(model, cut, inputs)
            whole = logits_of(model, inputs)
            named = inputs if isinstance(inputs, Mapping) else {}
            behind = logits_of(AfterCut(model, cut), {**named, "activation": activation})
    except (HesstuneError, RuntimeError, ValueError, TypeError, IndexError):  # more is needed behind it
        return False
    finally:
        for p, value in zip(parameters, kept, strict=True):
            p.copy_(value)
    if not torch.equal(before, activation) or behind.shape != whole.shape:
        return False
    return torch.allclose(behind, whole, rtol=CLOSE, atol=CLOSE * float(whole.abs().max()))


class AfterCut(nn.Module):
    """The network behind a cut: it takes activations, leaves out what comes before, and shares parameters."""

    def __init__(self, model: nn.Module, cut: Cut) -> None:
        super().__init__()
        self.model, self.cut = model, cut

    def forward(self, activation: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """Return the logits, (N, K), of activations at the cut, (N, …); texts with their masks beside."""
        with _skipping(self.model, self.cut, activation):
            if inputs:
                return logits_of(self.model, inputs)
            assert self.cut.image is not None
            return logits_of(self.model, _nothing(activation, self.cut.image))


def _nothing(like: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return zeros for each example, of one number's memory."""
    return like.new_zeros(()).expand(len(like), *shape)


@contextmanager
def _skipping(model: nn.Module, cut: Cut, activation: torch.Tensor) -> Iterator[None]:
    """Leave out the calls before the cut, and hand the activation in there."""
    undo: dict[nn.Module, Callable[[], None]] = {}

    def skip(module: nn.Module, answers: tuple[tuple[int, ...] | None, ...]) -> None:
        own, left = module.__dict__.get("forward"), list(answers)

        def restore() -> None:
            if own is None:
                del module.forward
            else:
                module.forward = own

        def forward(*args: Any, **kwargs: Any) -> Any:
            shape = left.pop(0)
            if not left:  # a module that serves twice runs again behind the cut
                undo.pop(module)()
            return args[0] if shape is None else _nothing(activation, shape)

        module.forward = forward
        undo[module] = restore

    def hand_in(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        handle.remove()
        if isinstance(cut.key, str):
            return args, {**kwargs, cut.key: activation}
        return (*args[: cut.key], activation, *args[cut.key + 1 :]), kwargs

    for name, answers in cut.skipped.items():
        skip(model.get_submodule(name), answers)
    handle = model.get_submodule(cut.at).register_forward_pre_hook(hand_in, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
        for restore in list(undo.values()):
            restore()
