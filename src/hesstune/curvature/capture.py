"""One forward pass that finds every use of the layers' weights, by the call and not by the module.

Intercepting the call (`F.linear`, `F.convNd`, `torch.addmm`) whose weight *is* the parameter also
finds torch's MultiheadAttention, whose weights are used without a submodule call, convolutions that
pad inside their own forward, and transformers' Conv1D.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from hesstune.curvature.layers import CapturedLayer, Layout, as_examples, layout_candidates
from hesstune.errors import MeasureError
from hesstune.forward import Inputs, batch_size, evaluating, logits_of

__all__ = ["Capture", "capture", "changed_example", "differentiable", "find_layouts", "rows_of"]

_LINEAR = ("input", "weight", "bias")
_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_DEFAULTS = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "output_padding": 0}
_CALLS: dict[Any, tuple[str, tuple[str, ...]]] = {
    F.linear: ("linear", _LINEAR),
    torch.addmm: ("addmm", ("input", "mat1", "mat2")),
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), ("conv", _CONV)),
    **dict.fromkeys(
        (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
        ("conv_transpose", _TRANSPOSED),
    ),
}

OnOutput = Callable[[CapturedLayer, torch.Tensor], torch.Tensor]


@dataclass
class Capture:
    """One forward pass of B examples.

    Attributes:
        logits: (B, K), with the graph.
        layers: The layers whose weight was found in exactly one call, in order of use.
        calls: How often each asked layer's weight was found in a call (0: never, or used otherwise).
        overwritten: Layers whose input the network changed in place later on; pass them as `copied`
            to the next capture, which saves this one's second forward pass.
    """

    logits: torch.Tensor
    layers: dict[str, CapturedLayer]
    calls: dict[str, int]
    overwritten: frozenset[str] = frozenset()


def capture(
    model: nn.Module,
    inputs: Inputs,
    names: Sequence[str],
    layouts: Mapping[str, Layout] | None = None,
    on_output: OnOutput | None = None,
    copied: frozenset[str] = frozenset(),
) -> Capture:
    """Run one forward pass and return the named layers as they were used in it.

    Call it inside `differentiable(model, names)`, which sets eval mode, gradient flags and kernels.

    Args:
        model: The network.
        inputs: One batch of B examples.
        names: Layer names, as in `Reference.layers()`.
        layouts: From `find_layouts`, on any batch; where left out, they are found here, which takes
            two more forward passes where the shapes alone do not tell.
        on_output: Called with each captured layer and its output z; what it returns takes z's place.
        copied: Layers whose input is copied, because the network overwrites it.

    Raises:
        ModelError: If the output holds no (B, K) logits.
        MeasureError: If the layouts are to be found here and one example changes another's values.
    """
    examples = batch_size(inputs)
    interceptor = _Interceptor(model, names, examples, layouts or {}, on_output, copied)
    with interceptor:
        logits = logits_of(model, inputs)
    overwritten = interceptor.overwritten()
    if overwritten:
        again = capture(model, inputs, names, layouts, on_output, copied | overwritten)
        return replace(again, overwritten=again.overwritten | overwritten)
    calls = {name: len(found) for name, found in interceptor.found.items()}
    layers = {name: interceptor.found[name][0] for name in interceptor.order if calls[name] == 1}
    if layouts is None:
        _set_layouts(model, inputs, layers, examples)
    return Capture(logits, layers, calls)


def _hardsigmoid(inputs: torch.Tensor) -> torch.Tensor:
    # The same function: torch's own kernel has no second derivative.
    return F.relu6(inputs + 3.0) / 6.0


@contextmanager
def differentiable(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Set eval mode, gradients for the named weights alone, and kernels that differentiate twice.

    Everything is as before afterwards: training flags, requires_grad flags, global switches, the
    random state.
    """
    wanted = set(names)
    hard: list[nn.Module] = []
    flags = [(p, p.requires_grad) for p in model.parameters()]
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in wanted)
        hard = [m for m in model.modules() if isinstance(m, nn.Hardsigmoid) and "forward" not in vars(m)]
        for module in hard:
            module.forward = _hardsigmoid
        with evaluating(model), sdpa_kernel(SDPBackend.MATH), torch.random.fork_rng(), torch.enable_grad():
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


def changed_example(inputs: Inputs, row: int, by: int) -> Inputs:
    """Return the batch with example `row` replaced by a copy of example `by`."""
    size = batch_size(inputs)
    index = torch.arange(size)
    index[row] = by
    return rows_of(inputs, index)


def rows_of(inputs: Inputs, index: torch.Tensor) -> Inputs:
    """Return the batch's examples `index`; entries of a mapping without a batch dimension stay."""
    if isinstance(inputs, torch.Tensor):
        return inputs[index.to(inputs.device)]
    size = batch_size(inputs)
    return {
        key: value[index.to(value.device)]
        if isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == size
        else value
        for key, value in inputs.items()
    }


def find_layouts(model: nn.Module, inputs: Inputs, names: Sequence[str]) -> dict[str, Layout | None]:
    """Find where the examples are in each layer's tensors by changing one example of the batch.

    Returns:
        The layout of every layer found in exactly one call; None where a change of one example
        reaches others in every possible layout, so that the examples influence each other.
    """
    examples = batch_size(inputs)
    before = _inputs_of_layers(model, inputs, names, examples)
    if examples == 1:
        return {name: _likeliest(a.shape, 1) for name, a in before.items()}
    changed = changed_example(inputs, 0, _unlike_first(inputs))
    after = _inputs_of_layers(model, changed, names, examples)
    return {name: _consistent_layout(a, after[name], examples) for name, a in before.items()}


def _unlike_first(inputs: Inputs) -> int:
    rows = [inputs] if isinstance(inputs, torch.Tensor) else list(inputs.values())
    size = batch_size(inputs)
    for row in range(size - 1, 0, -1):
        for value in rows:
            is_batched = isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == size
            if is_batched and not torch.equal(value[0], value[row]):
                return row
    return size - 1


def _likeliest(shape: torch.Size, examples: int) -> Layout | None:
    return next(iter(layout_candidates(shape, examples)), None)


def _consistent_layout(before: torch.Tensor, after: torch.Tensor, examples: int) -> Layout | None:
    tolerance = 1e-4 * float(before.abs().max())
    changed = (before - after).abs() > tolerance
    for layout in layout_candidates(before.shape, examples):
        if not as_examples(changed, layout, examples)[1:].any():
            return layout
    return None


def _inputs_of_layers(
    model: nn.Module, inputs: Inputs, names: Sequence[str], examples: int
) -> dict[str, torch.Tensor]:
    interceptor = _Interceptor(model, names, examples, {}, None, frozenset(names))
    with interceptor:
        logits_of(model, inputs)
    return {name: found[0].input for name, found in interceptor.found.items() if len(found) == 1}


def _set_layouts(
    model: nn.Module, inputs: Inputs, layers: Mapping[str, CapturedLayer], examples: int
) -> None:
    known: Mapping[str, Layout | None] = {
        name: _likeliest(layer.input.shape, examples)
        for name, layer in layers.items()
        if len(layout_candidates(layer.input.shape, examples)) == 1
    }
    if len(known) < len(layers):
        known = find_layouts(model, inputs, list(layers))
    for name, layer in layers.items():
        layout = known[name]
        if layout is None:
            raise MeasureError(
                f"the examples of a batch influence each other at '{name}' (changing one changed another); "
                "a per-example Hessian needs a network that treats examples apart in eval mode"
            )
        layer.layout = layout


class _Interceptor(TorchFunctionMode):
    """Records the calls whose weight is one of the named parameters."""

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        examples: int,
        layouts: Mapping[str, Layout],
        on_output: OnOutput | None,
        copied: frozenset[str],
    ) -> None:
        super().__init__()
        wanted = set(names)
        self._names = {id(p): name for name, p in model.named_parameters() if name in wanted}
        self._examples, self._layouts = examples, layouts
        self._on_output, self._copied = on_output, copied
        self._versions: list[tuple[str, torch.Tensor, int]] = []
        self.found: dict[str, list[CapturedLayer]] = {name: [] for name in names}
        self.order: dict[str, None] = {}

    def __torch_function__(
        self, func: Any, types_: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        known = _CALLS.get(func) if isinstance(func, types.BuiltinFunctionType) else None
        if known is None:
            if func is F.multi_head_attention_forward:
                with self:
                    return _open(func)(*args, **kwargs)
            return _batch_norm(*args, **kwargs) if func is F.batch_norm else func(*args, **kwargs)
        kind, parameters = known
        given = dict(zip(parameters, args, strict=False)) | dict(kwargs)
        if kind == "addmm":
            given = {"bias": given["input"], "input": given["mat1"], "weight": given["mat2"], **kwargs}
        name = self._names.get(id(given["weight"]))
        if name is None:
            return func(*args, **kwargs)
        if name in self._copied:
            clone = given["input"].clone()
            args = [clone if a is given["input"] else a for a in args]
            given["input"] = clone
        return self._record(name, kind, func, given, func(*args, **kwargs))

    def _record(
        self, name: str, kind: str, func: Any, given: dict[str, Any], output: torch.Tensor
    ) -> torch.Tensor:
        self.order.setdefault(name)
        if output.grad_fn is None:  # used where gradients are off: no derivative, so not captured
            return output
        layer = _captured(name, kind, func, given, output, self._examples)
        layer.layout = self._layouts.get(name, "first")
        self.found[name].append(layer)
        self._versions.append((name, layer.input, layer.input._version))
        return output if self._on_output is None else self._on_output(layer, output)

    def overwritten(self) -> frozenset[str]:
        return frozenset(name for name, a, version in self._versions if a._version != version)


def _captured(
    name: str, kind: str, func: Any, given: dict[str, Any], output: torch.Tensor, examples: int
) -> CapturedLayer:
    options = {} if kind in ("linear", "addmm") else {k: given.get(k, v) for k, v in _DEFAULTS.items()}
    if kind != "conv_transpose":
        options.pop("output_padding", None)
    scale = given.get("alpha", 1)

    def call(a: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = torch.mm(a, w) * scale if kind == "addmm" else func(a, w, None, **options)
        return output

    return CapturedLayer(
        name=name,
        kind="linear" if kind == "addmm" else kind,  # type: ignore[arg-type]
        weight=given["weight"],
        input=given["input"].detach(),
        shape=output.shape,
        edge=get_gradient_edge(output),
        layout="first",
        examples=examples,
        call=call,
        transposed=kind == "addmm",
        options=options,
    )


def _batch_norm(
    inputs: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Batch norm in eval mode as the affine map it is: half the time of backward, and nothing kept for it."""
    if training or running_mean is None or running_var is None:
        return F.batch_norm(inputs, running_mean, running_var, weight, bias, training, momentum, eps)
    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    shape = (-1, *[1] * (inputs.ndim - 2))
    return torch.addcmul(shift.view(shape), inputs, scale.view(shape))


def _open(func: Any) -> Any:
    # torch's composite attention hands itself to the mode as a whole; without that check its own
    # calls of `linear` reach the mode one by one.
    scope = {**func.__globals__, "has_torch_function": lambda _: False}
    opened = types.FunctionType(func.__code__, scope, func.__name__, func.__defaults__, func.__closure__)
    opened.__kwdefaults__ = func.__kwdefaults__
    return opened
