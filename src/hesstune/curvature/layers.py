"""One layer in one forward pass: its input, its output's place in the graph, and its linear maps.

For a layer z = W·a + b the measure needs maps that are linear in W: `apply` maps a weight perturbation to the
change of the output, and `pullback` is its adjoint for each example.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch.autograd.graph import GradientEdge, get_gradient_edge

Layout = Literal["first", "second", "rows", "columns"]
"""The place of the examples in a layer's raw tensors: `first` (B, ...); `second` (T, B, ...), as in torch's
MultiheadAttention; `rows` (B·T, ...), example by example; `columns` (T·B, ...), token by token."""


def as_examples(tensor: torch.Tensor, layout: Layout, examples: int) -> torch.Tensor:
    """View a raw tensor of a layer with the examples first: (B, ...)."""
    if layout == "first":
        return tensor
    if layout == "second":
        return tensor.transpose(0, 1)
    shape = (examples, -1) if layout == "rows" else (-1, examples)
    tokens: torch.Tensor = tensor.unflatten(0, shape)
    return tokens if layout == "rows" else tokens.transpose(0, 1)


def layout_candidates(shape: torch.Size, examples: int) -> list[Layout]:
    """List the layouts that a raw tensor's shape allows; a tensor of B rows is `first`."""
    found: list[Layout] = []
    if len(shape) > 1 and shape[0] == examples:
        found.append("first")
    if len(shape) > 2 and shape[1] == examples and examples > 1:
        found.append("second")
    if shape[0] > examples and shape[0] % examples == 0:
        found += ["rows", "columns"] if examples > 1 else ["rows"]
    return found


def layout_alone(shape: torch.Size) -> Layout:
    """Return the layout of a batch of one example."""
    return "first" if shape[0] == 1 and len(shape) > 1 else "rows"


def layout_fits(shape: torch.Size, layout: Layout, examples: int) -> bool:
    """Tell whether a raw tensor of this shape can hold B examples in this layout."""
    if layout == "second":
        return len(shape) > 2 and shape[1] == examples
    return shape[0] == examples if layout == "first" else shape[0] > 0 and shape[0] % examples == 0


@dataclass
class CapturedLayer:
    """One layer as it was used in one forward pass of B examples.

    "Raw" tensors have the shape that the network uses; `examples_first` views them as (B, ...). Outputs of
    `apply` and gradients of `edge` are raw. Weight tensors of each example are (B, *weight.shape).

    Attributes:
        name: The weight's name in `model.named_parameters()`.
        kind: `linear` (also transformers' Conv1D), `conv` or `conv_transpose`.
        weight: The parameter itself, W.
        input: a, the raw input, detached.
        shape: The shape of the raw output z.
        edge: z's place in the autograd graph, for `torch.autograd.grad(outputs, [layer.edge], ...)`. It stays
            valid if the network overwrites z in place.
        layout: The place of the examples in raw tensors.
        examples: B.
        call: (a, weight) -> z without bias, with the options of the captured call.
        transposed: Whether the weight is stored (in, out), as in transformers' Conv1D.
        options: stride, padding, dilation and groups of a convolution.
        keeps_tokens: Whether `tokens`, `gram` and the like are computed once and kept, which takes memory.
    """

    name: str
    kind: Literal["linear", "conv", "conv_transpose"]
    weight: torch.Tensor
    input: torch.Tensor
    shape: torch.Size
    edge: GradientEdge
    layout: Layout
    examples: int
    call: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    transposed: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    keeps_tokens: bool = False
    _kept: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)

    def counts(self) -> tuple[int, int, int, int]:
        """Return an example's groups, its tokens a group, and a group's inputs and outputs a token."""
        groups = self.options["groups"] if self.kind == "conv" else 1
        rows = self.weight.shape[1 if self.transposed else 0]
        tokens = math.prod(self.shape) // (rows * self.examples)
        return groups, tokens, self.weight.numel() // rows, rows // groups

    def examples_first(self, raw: torch.Tensor) -> torch.Tensor:
        """View a raw input or output (or gradient of one) as (B, ...)."""
        return as_examples(raw, self.layout, self.examples)

    def _in_raw_layout(self, first: torch.Tensor) -> torch.Tensor:
        """Undo `examples_first`."""
        if self.layout == "second":
            return first.transpose(0, 1)
        if self.layout == "rows":
            return first.flatten(0, 1)
        if self.layout == "columns":
            return first.transpose(0, 1).flatten(0, 1)
        return first

    def apply(self, delta: torch.Tensor) -> torch.Tensor:
        """Return D = delta·a, the raw output's change when W moves by `delta` (weight's shape)."""
        return self.call(self.input, delta.to(self.input.dtype))

    def apply_each(self, delta: torch.Tensor) -> torch.Tensor:
        """Return the raw output's change when each example has its own `delta`, (B, *weight.shape)."""
        if self.kind == "linear":
            tokens = self.tokens()[:, 0]
            weight = delta.to(tokens.dtype)
            out = torch.bmm(tokens, weight if self.transposed else weight.transpose(1, 2))
            first = self.examples_first(self.input)
            return self._in_raw_layout(out.reshape(*first.shape[:-1], out.shape[-1]))

        def one(a: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
            return self.call(a.unsqueeze(0), d).squeeze(0) if self.layout == "first" else self.call(a, d)

        return self._in_raw_layout(
            torch.func.vmap(one)(self.examples_first(self.input), delta.to(self.input.dtype))
        )

    def is_depthwise(self) -> bool:
        """Tell whether it is a convolution with one input and one output channel a group, batch first."""
        groups, _, _, outputs = self.counts()
        one = self.weight.shape[1] == outputs == 1
        return self.kind == "conv" and groups > 1 and one and self.layout == "first"

    def _depthwise_pullback(self, gradient: torch.Tensor) -> torch.Tensor:
        """Convolve each channel with its gradient: without patches, which take most of the time."""
        spatial = self.weight.ndim - 2
        kernel, options = self.weight.shape[2:], self.options
        dilation = _for_each_axis(options["dilation"], spatial)
        channels = self.examples * self.weight.shape[0]

        def inputs() -> torch.Tensor:
            padded = F.pad(self.input, _pads(options["padding"], kernel, dilation))
            return padded.reshape(1, channels, *padded.shape[2:])

        found = (torch.conv1d, torch.conv2d, torch.conv3d)[spatial - 1](
            self._computed_once("padded", inputs),
            gradient.reshape(channels, 1, *gradient.shape[2:]),
            stride=dilation,
            dilation=_for_each_axis(options["stride"], spatial),
            groups=channels,
        )
        # With a stride, rows and columns that no patch reached may be left over.
        for axis, size in enumerate(kernel):
            found = found.narrow(2 + axis, 0, size)
        return found.reshape(self.examples, *self.weight.shape)

    def pullback(self, gradient: torch.Tensor) -> torch.Tensor:
        """Map a raw output gradient g to each example's weight gradient Σ_t g_t a_tᵀ, (B, *weight.shape)."""
        if self.is_depthwise():
            return self._depthwise_pullback(gradient)
        if self.kind == "conv_transpose":
            with torch.enable_grad():
                zero = self.weight.new_zeros((self.examples, *self.weight.shape), requires_grad=True)
                out = self.apply_each(zero)
            return torch.autograd.grad(out, zero, gradient)[0]
        product = self.output_tokens(gradient).transpose(2, 3) @ self.tokens()  # (B, G, O/G, I)
        if self.transposed:
            product = product.transpose(2, 3)
        return product.reshape(self.examples, *self.weight.shape)

    def inner(self, gradient: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """Return ⟨gradient, change⟩ of two raw outputs per example, (B,)."""
        g, d = self.examples_first(gradient), self.examples_first(change)
        if g.stride() == d.stride() and _is_channels_last(g):
            # Flattening in the order of the memory costs no copy.
            g, d = g.movedim(1, -1), d.movedim(1, -1)
        products: torch.Tensor = torch.linalg.vecdot(g.flatten(1), d.flatten(1))
        return products

    def tokens(self) -> torch.Tensor:
        """Return what the weight multiplies (patches of a convolution), (B, G, T, I), I inputs a group."""
        return self._computed_once("tokens", self._input_tokens)

    def gram(self) -> torch.Tensor:
        """Return the tokens' Gram matrices A Aᵀ, (B, G, T, T)."""
        return self._computed_once("gram", lambda: self.tokens() @ self.tokens().transpose(2, 3))

    def _computed_once(self, key: str, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        found = self._kept[key] if key in self._kept else compute()
        if self.keeps_tokens:
            self._kept[key] = found
        return found

    def _input_tokens(self) -> torch.Tensor:
        if self.kind == "linear":
            first = self.examples_first(self.input)
            return first.reshape(self.examples, 1, -1, first.shape[-1])
        if self.kind == "conv_transpose":
            raise NotImplementedError("a transposed convolution has no patches: use apply and pullback")
        patches = _patches(self.input, self.weight.shape[2:], self.options)  # raw dim 0, G, T, I
        if self.layout == "first":
            return patches
        return self.examples_first(patches).transpose(1, 2).flatten(2, 3)  # from (B, M, G, T, I)

    def output_tokens(self, raw: torch.Tensor) -> torch.Tensor:
        """Return a raw output (or gradient of one) as (B, G, T, O/G), matching `tokens`."""
        first = self.examples_first(raw)
        if self.kind == "linear":
            return first.reshape(self.examples, 1, -1, first.shape[-1])
        groups = self.options["groups"]
        flat = first.flatten(2 - self.weight.ndim)  # (B, [M,] O, T)
        if flat.ndim == 3:
            flat = flat.unsqueeze(1)
        split = flat.unflatten(2, (groups, -1))  # (B, M, G, O/G, T)
        tokens: torch.Tensor = split.permute(0, 2, 1, 4, 3).flatten(2, 3)
        return tokens

    def from_output_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Invert `output_tokens`: (B, G, T, O/G) -> the raw output's shape."""
        first = self.examples_first(torch.empty(self.shape, device="meta"))
        if self.kind == "linear":
            return self._in_raw_layout(tokens.reshape(first.shape))
        # If several rows of the raw tensor are one example, `output_tokens` joined them to T.
        many = first.ndim > self.weight.ndim
        split = tokens.unflatten(2, (first.shape[1] if many else 1, -1))  # (B, G, M, T, O/G)
        return self._in_raw_layout(split.permute(0, 2, 1, 4, 3).reshape(first.shape))

    def prefers_gram(self) -> bool:
        """Tell whether ‖Σ_t g_t a_tᵀ‖² is cheaper through the token Gram than by forming the gradient."""
        if self.kind == "conv_transpose" or self.is_depthwise():
            return False
        _, tokens, inputs, outputs = self.counts()
        return tokens * (outputs + inputs) < outputs * inputs


class WholeWeight(CapturedLayer):
    """A weight in the forward pass of one example, in whatever way it is used: it is its own output.

    The change of the output is that of W, and the gradient of the output is the weight gradient.
    """

    @classmethod
    def of(cls, name: str, weight: torch.Tensor) -> WholeWeight:
        """Return the weight, which must require gradients."""
        edge = get_gradient_edge(weight)
        return cls(name, "linear", weight, weight, weight.shape, edge, "rows", 1, lambda _, change: change)

    def pullback(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the weight gradient, (1, *weight.shape)."""
        return gradient.unsqueeze(0)

    def prefers_gram(self) -> bool:
        """Return False: there are no tokens."""
        return False


def _is_channels_last(tensor: torch.Tensor) -> bool:
    return tensor.ndim in (4, 5) and not tensor.is_contiguous() and tensor.movedim(1, -1).is_contiguous()


def _patches(inputs: torch.Tensor, kernel: torch.Size, options: dict[str, Any]) -> torch.Tensor:
    """Unfold a convolution's input (N, C, *spatial) into (N, G, T, C/G·Πkernel), in the weight's order."""
    spatial = len(kernel)
    stride, dilation = (
        _for_each_axis(options["stride"], spatial),
        _for_each_axis(options["dilation"], spatial),
    )
    padded = F.pad(inputs, _pads(options["padding"], kernel, dilation))
    for axis in range(spatial):
        reach = (kernel[axis] - 1) * dilation[axis] + 1
        padded = padded.unfold(2 + axis, reach, stride[axis])[..., :: dilation[axis]]
    # Now (N, C, *positions, *kernel): positions become tokens, channels of a group join the kernel.
    split = padded.unflatten(1, (options["groups"], -1))
    order = [0, 1, *range(3, 3 + spatial), 2, *range(3 + spatial, 3 + 2 * spatial)]
    columns = split.permute(order)
    patches: torch.Tensor = columns.reshape(*columns.shape[:2], math.prod(columns.shape[2 : 2 + spatial]), -1)
    return patches


def _for_each_axis(value: Any, size: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * size if len(values) == 1 else values


def _pads(padding: Any, kernel: torch.Size, dilation: tuple[int, ...]) -> list[int]:
    # F.pad lists the last dimension first; 'same' adds the odd element at the end, as torch does.
    if padding == "valid":
        padding = 0
    pads: list[int] = []
    for axis in reversed(range(len(kernel))):
        if padding == "same":
            total = dilation[axis] * (kernel[axis] - 1)
            pads += [total // 2, total - total // 2]
        else:
            pads += [_for_each_axis(padding, len(kernel))[axis]] * 2
    return pads
