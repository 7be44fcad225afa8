"""One forward pass that captures the layers' calls, and the state of the network that this needs.

The interceptor finds the calls (`F.linear`, `F.convNd`, `torch.addmm`) with the parameter as their weight. So
it also finds torch's MultiheadAttention, which has no submodule call for its weights, convolutions that pad
inside their own forward, and transformers' Conv1D.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from hesstune.curvature.batches import HALF, logits_of_each
from hesstune.curvature.layers import CapturedLayer, Layout, layout_alone, layout_fits
from hesstune.errors import MeasureError
from hesstune.forward import Inputs, batch_size, evaluating, named_parameters

OnOutput = Callable[[CapturedLayer, torch.Tensor], torch.Tensor]

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


@dataclass
class Capture:
    """One forward pass of B examples.

    Attributes:
        logits: (B, K), with the graph.
        layers: The layers with exactly one call and tensors of the planned layout, in order of use.
        calls: How often the weight of each requested layer was found in a call.
        overwritten: Layers with an input that the network changed in place after the call. Pass them as
            `copied` to the next capture, which then needs one forward pass instead of two.
        otherwise: Layers that this batch uses in another way than planned, and how.
    """

    logits: torch.Tensor
    layers: dict[str, CapturedLayer]
    calls: dict[str, int]
    overwritten: frozenset[str] = frozenset()
    otherwise: dict[str, str] = field(default_factory=dict)

    def left_out(self, names: Sequence[str]) -> dict[str, str]:
        """Return the layers that were not captured, and why."""
        return {
            name: self.otherwise.get(
                name, f"{self.calls.get(name, 0)} calls, or tensors of another kind of shape"
            )
            for name in names
            if name not in self.layers
        }

    def require(self, names: Sequence[str]) -> None:
        """Raise MeasureError with the name of the first layer that was not captured."""
        for name, how in self.left_out(names).items():
            raise MeasureError(
                f"this batch uses '{name}' in another way ({how}) than the first examples, so the rows of "
                "the examples in it are unknown; leave it out with layers=, or give batches of one shape"
            )


def capture(
    model: nn.Module,
    inputs: Inputs,
    names: Sequence[str],
    layouts: Mapping[str, Layout],
    on_output: OnOutput | None = None,
    copied: frozenset[str] = frozenset(),
) -> Capture:
    """Run one forward pass, inside `differentiable(model, names)`, and return the named layers.

    Args:
        model: The network.
        inputs: One batch of B examples.
        names: Layer names, as in `Reference.layers()`.
        layouts: The place of the examples in each layer's tensors; layers without one are not captured.
        on_output: Called with each captured layer and its output z; its result replaces z.
        copied: Layers with an input that is copied because the network overwrites it.

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
    calls = {name: len(interceptor.found.get(name, [])) for name in names}
    layers = {
        name: found[0]
        for name, found in interceptor.found.items()
        if len(found) == 1
        and name in layouts
        and layout_fits(found[0].input.shape, found[0].layout, found[0].examples)
    }
    return Capture(logits, layers, calls)


class Interceptor(TorchFunctionMode):
    """Record the calls that have one of the named parameters as their weight.

    Every output of a linear layer is returned as an alias that is not a view. The network may then write into
    it in place, whichever weights require gradients.
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
        self.found: dict[str, list[CapturedLayer]] = {}  # in order of use

    def __torch_function__(
        self, func: Any, types_: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        known = _CALLS.get(func) if isinstance(func, types.BuiltinFunctionType) else None
        if known is None:
            if func is F.multi_head_attention_forward:
                with self:
                    return _without_override_check(func)(*args, **kwargs)
            return _batch_norm(*args, **kwargs) if func is F.batch_norm else func(*args, **kwargs)
        kind, parameters = known
        given = dict(zip(parameters, args, strict=False)) | dict(kwargs)
        if kind == "addmm":
            given = {"bias": given["input"], "input": given["mat1"], "weight": given["mat2"], **kwargs}
        name = self._names.get(id(given["weight"]))
        # A convolution without a batch dimension is not captured: its first dimension is the channels.
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
        if output.grad_fn is None:  # no derivative: gradients are off here
            return output
        options = {} if kind in ("linear", "addmm") else {k: given.get(k, v) for k, v in _DEFAULTS.items()}
        if kind != "conv_transpose":
            options.pop("output_padding", None)
        scale = given.get("alpha", 1)

        def call(a: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = torch.mm(a, w) * scale if kind == "addmm" else func(a, w, None, **options)
            return output

        inputs = given["input"].detach()
        # The whole tensor belongs to a single example, whatever its layout.
        alone = self._examples == 1
        layer = CapturedLayer(
            name=name,
            kind="linear" if kind == "addmm" else kind,  # type: ignore[arg-type]
            weight=given["weight"],
            input=inputs,
            shape=output.shape,
            edge=get_gradient_edge(output),
            layout=layout_alone(inputs.shape) if alone else self._layouts.get(name, "first"),
            examples=self._examples,
            call=call,
            transposed=kind == "addmm",
            options=options,
        )
        self.found.setdefault(name, []).append(layer)
        self._versions.append((name, inputs, inputs._version))
        return output if self._on_output is None else self._on_output(layer, output)

    def overwritten(self) -> frozenset[str]:
        """Return the layers with an input that was changed in place after the call."""
        return frozenset(name for name, a, version in self._versions if a._version != version)


def _not_a_view(output: torch.Tensor) -> torch.Tensor:
    # `linear` of three dimensions returns a view. A write in place moves a view to another place in the
    # graph, so an edge taken before no longer leads to it. The alias shares the memory and is not a view.
    alias: torch.Tensor = torch.ops.aten._unsafe_view(output, output.shape) if output._is_view() else output
    return alias


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
    """Batch norm in eval mode as an affine map: backward takes half the time and keeps nothing."""
    if training or running_mean is None or running_var is None:
        return F.batch_norm(inputs, running_mean, running_var, weight, bias, training, momentum, eps)
    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    shape = (-1, *[1] * (inputs.ndim - 2))
    return torch.addcmul(shift.view(shape), inputs, scale.view(shape))


def _without_override_check(func: Any) -> Any:
    # torch passes its composite attention to the mode as one call. Without that check its own calls of
    # `linear` reach the mode.
    scope = {**func.__globals__, "has_torch_function": lambda _: False}
    opened = types.FunctionType(func.__code__, scope, func.__name__, func.__defaults__, func.__closure__)
    opened.__kwdefaults__ = func.__kwdefaults__
    return opened


@contextmanager
def differentiable(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Set eval mode, gradients for the named weights only, float32, and twice differentiable kernels.

    Training flags, requires_grad flags, global switches and the random state are restored afterwards.
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
            f"the network calls {lacks[1]}, which torch cannot differentiate twice; replace it by operations "
            "that torch can (hardsigmoid: relu6(x + 3) / 6, or the module nn.Hardsigmoid)"
        ) from error
    finally:
        for module in hard:
            del module.forward
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _hardsigmoid(inputs: torch.Tensor) -> torch.Tensor:
    # torch's own kernel has no second derivative.
    return F.relu6(inputs + 3.0) / 6.0


@contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Restore every buffer afterwards: the same tensor with the same values.

    Some networks write buffers in every forward pass, also in eval mode.
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


def bytes_in_full_precision(model: nn.Module) -> int:
    """Return the bytes of the float32 copies that `full_precision` makes."""
    return sum(4 * tensor.numel() for tensor in _stored_in_half(model))


def _stored_in_half(model: nn.Module) -> list[torch.Tensor]:
    return [t for t in (*model.parameters(), *model.buffers()) if t.dtype in HALF]


@contextmanager
def full_precision(model: nn.Module) -> Iterator[None]:
    """Replace parameters and buffers in half precision by float32 copies; restore them afterwards.

    Activations, gradients and products are then not rounded to 8 or 11 bits. Parameters stay the same
    objects.
    """
    stored = [(tensor, tensor.data) for tensor in _stored_in_half(model)]
    try:
        for tensor, data in stored:
            tensor.data = data.float()
        yield
    finally:
        for tensor, data in stored:
            tensor.data = data
