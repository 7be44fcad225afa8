"""Interception of the calls whose weight is a layer's: by the call and not by the module.

Intercepting the call (`F.linear`, `F.convNd`, `torch.addmm`) whose weight *is* the parameter also
finds torch's MultiheadAttention, whose weights are used without a submodule call, convolutions that
pad inside their own forward, and transformers' Conv1D.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode

from hesstune.curvature.layers import CapturedLayer, Layout, layout_alone
from hesstune.forward import named_parameters

__all__ = ["Interceptor", "OnOutput"]

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


class Interceptor(TorchFunctionMode):
    """Records the calls whose weight is one of the named parameters.

    Every output of a linear layer, recorded or not, is returned as an alias that is not a view, so that the
    network may write into it in place whichever weights require gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str] = (),
        examples: int = 1,
        layouts: Mapping[str, Layout] | None = None,
        on_output: OnOutput | None = None,
        copied: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        wanted = set(names)
        self._names = {id(p): name for name, p in named_parameters(model).items() if name in wanted}
        self._examples, self._layouts = examples, layouts or {}
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
        # A convolution without a batch dimension has channels first: it is not one of the plain calls.
        if name is None or (kind.startswith("conv") and given["input"].ndim != given["weight"].ndim):
            return _not_a_view(func(*args, **kwargs))
        if name in self._copied:
            clone = given["input"].clone()
            args = [clone if a is given["input"] else a for a in args]
            kwargs = {k: clone if a is given["input"] else a for k, a in kwargs.items()}
            given["input"] = clone
        return self._record(name, kind, func, given, _not_a_view(func(*args, **kwargs)))

    def _record(
        self, name: str, kind: str, func: Any, given: dict[str, Any], output: torch.Tensor
    ) -> torch.Tensor:
        self.order.setdefault(name)
        if output.grad_fn is None:  # used where gradients are off: no derivative, so not captured
            return output
        layer = _captured(name, kind, func, given, output, self._examples)
        # A batch of one has the whole tensor, however it is laid out.
        layer.layout = (
            layout_alone(layer.input.shape) if self._examples == 1 else self._layouts.get(name, "first")
        )
        self.found[name].append(layer)
        self._versions.append((name, layer.input, layer.input._version))
        return output if self._on_output is None else self._on_output(layer, output)

    def overwritten(self) -> frozenset[str]:
        """Return the layers whose input was changed in place after the call."""
        return frozenset(name for name, a, version in self._versions if a._version != version)


def _not_a_view(output: torch.Tensor) -> torch.Tensor:
    # `linear` of three dimensions returns a view. A write in place gives a view another place in the graph,
    # so that an edge taken before no longer leads to it. The alias shares the memory and is not a view.
    alias: torch.Tensor = torch.ops.aten._unsafe_view(output, output.shape) if output._is_view() else output
    return alias


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
