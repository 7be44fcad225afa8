"""Hessian-vector products of every example and layer of a batch from one retained graph.

The Hessian of Σ_batch ℓ in a layer's output z_i is block diagonal over examples (eval mode), and
H_i = A_iᵀ (∇²_{z_i} ℓ) A_i with A_i: ΔW -> Δz_i. So one double backward gives each example its own
product, it starts and ends at z_i, and weights take no part in it. The first backward pass is
shared by all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import nn

from hesstune.curvature.capture import Capture, rows_of
from hesstune.curvature.layers import CapturedLayer
from hesstune.curvature.objective import Objective
from hesstune.curvature.quadrature import Krylov
from hesstune.forward import Inputs, batch_size, logits_of

__all__ = ["HessianSource", "LayerProducts", "PerExampleLoss", "WeightProducts", "mixture_losses"]

PerExampleLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class HessianSource(Protocol):
    """Anything that starts the Lanczos recurrence of a layer for a batch of examples."""

    losses: torch.Tensor

    def krylov(self, name: str, delta: torch.Tensor) -> Krylov:
        """Start at v = delta: the weight's shape, or one for each example, (B, *weight.shape)."""
        ...


def mixture_losses(logits: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
    """Return −Σ_k c_k log p_k with derivatives that keep their digits on fitted examples.

    With w = Σ_k c_k and t the likeliest class it is w·log(1 + Σ_{k≠t} e^{f_k − f_t}) +
    Σ_k (w[k = t] − c_k) f_k: where p ≈ one-hot, the second derivative of log-softmax cancels (its
    relative error is about ε/(1 − p)), the one of this form does not.

    Args:
        logits: f, (B, K), K at least 2.
        coefficients: c, (B, K); one-hot targets for plain cross-entropy. Constants.

    Returns:
        (B,), in the logits' dtype.

    Example:
        >>> f = torch.tensor([[60.0, 0.0]], dtype=torch.float64, requires_grad=True)
        >>> loss = mixture_losses(f, torch.tensor([[1.0, 0.0]], dtype=torch.float64))
        >>> slope = torch.autograd.grad(loss.sum(), f, create_graph=True)[0]
        >>> curvature = torch.autograd.grad(slope[0, 0], f)[0][0, 0]  # p(1 − p), where p rounds to 1
        >>> print(f"{curvature.item():.6e}")
        8.756511e-27
    """
    order = logits.detach().argsort(dim=1, descending=True, stable=True)
    top = order[:, :1]
    odds = torch.logsumexp(logits.gather(1, order[:, 1:]) - logits.gather(1, top), dim=1)
    total = coefficients.sum(1, keepdim=True)
    linear = (torch.zeros_like(coefficients).scatter(1, top, total) - coefficients).to(logits.dtype)
    # log(1 + e^x), each side of 0 by the form whose derivatives do not cancel there; softplus turns
    # into the identity above its threshold, which e^-x makes far from exact.
    above = odds + nn.functional.softplus(-odds.clamp(min=0))
    below = nn.functional.softplus(odds.clamp(max=0))
    logistic = torch.where(odds > 0, above, below)
    return total.squeeze(1).to(logits.dtype) * logistic + (linear * logits).sum(1)


def _losses(loss: PerExampleLoss, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    if isinstance(loss, Objective) and loss.is_mixture:
        return mixture_losses(logits, loss.coefficients(targets, logits.shape[1]))
    return loss(logits, targets)


class LayerProducts:
    """Products with ∇²_{z_i} ℓ for every captured layer of one forward pass of B examples.

    Args:
        captured: From `capture`, inside `differentiable`.
        targets: Whatever `loss` takes, batch first.
        loss: (logits (B, K), targets) -> (B,), each entry of its own example alone.
        names: The layers whose products will be asked for.
    """

    def __init__(
        self, captured: Capture, targets: torch.Tensor, loss: PerExampleLoss, names: Sequence[str]
    ) -> None:
        self.layers = {name: captured.layers[name] for name in names}
        losses = _losses(loss, captured.logits, targets)
        self.losses = losses.detach()
        edges = [layer.edge for layer in self.layers.values()]
        slopes = (
            torch.autograd.grad(losses.sum(), edges, create_graph=True, allow_unused=True) if edges else ()
        )
        self._slopes = dict(zip(self.layers, slopes, strict=True))

    def product(self, name: str, tangent: torch.Tensor) -> torch.Tensor:
        """Return ∇²_{z_i} ℓ · tangent, both raw outputs of the layer."""
        slope = self._slopes[name]
        if slope is None or not slope.requires_grad:  # the loss is linear in z_i
            return torch.zeros_like(tangent)
        edge = self.layers[name].edge
        found = torch.autograd.grad(slope, [edge], tangent, retain_graph=True, allow_unused=True)[0]
        return torch.zeros_like(tangent) if found is None else found

    def krylov(self, name: str, delta: torch.Tensor) -> Krylov:
        """Start Lanczos at v = delta, in output space where its vectors are shorter."""
        layer = self.layers[name]
        with torch.no_grad():
            return (_output_space if layer.prefers_gram() else _weight_space)(self, layer, delta)


def _weight_space(products: LayerProducts, layer: CapturedLayer, delta: torch.Tensor) -> Krylov:
    shape = (layer.examples, *layer.weight.shape)

    def product(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        tangent = layer.apply_each(x.reshape(shape))
        return layer.pullback(products.product(layer.name, tangent)).flatten(1)

    start = delta.to(layer.weight.dtype).expand(shape).flatten(1)
    return Krylov(product, start)


def _output_space(products: LayerProducts, layer: CapturedLayer, delta: torch.Tensor) -> Krylov:
    """Start Lanczos with q = c·v + A_iᵀ y as (c, y): ⟨q, q'⟩ through A_i v and the Gram matrix A_iA_iᵀ.

    The dual of (c, y) is (⟨q, v⟩, A_i q), and A_i q is what the next product needs.
    """
    each = delta.ndim > layer.weight.ndim
    image = layer.apply_each(delta) if each else layer.apply(delta)
    image_tokens = layer.output_tokens(image)
    flat_image, gram = image_tokens.flatten(1), layer.gram()
    square = delta.double().square().flatten(1 if each else 0).sum(-1).expand(layer.examples)
    square = square.to(flat_image.dtype)

    def dual(x: torch.Tensor) -> torch.Tensor:
        c, y = x[:, 0], x[:, 1:]
        along = c * square + torch.linalg.vecdot(flat_image, y)
        tangent = (gram @ y.view_as(image_tokens)).flatten(1).addcmul_(c.unsqueeze(1), flat_image)
        return torch.cat([along.unsqueeze(1), tangent], 1)

    def product(_: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        tangent = _raw_output(layer, image[:, 1:].reshape(image_tokens.shape))
        found = layer.output_tokens(products.product(layer.name, tangent)).flatten(1)
        return torch.cat([found.new_zeros(found.shape[0], 1), found], 1)

    start = torch.zeros_like(flat_image[:, :1]).add(1.0)
    return Krylov(product, torch.cat([start, torch.zeros_like(flat_image)], 1), dual)


def _raw_output(layer: CapturedLayer, tokens: torch.Tensor) -> torch.Tensor:
    """Invert `layer.output_tokens`: (B, G, T, O/G) -> the raw output's shape."""
    first = layer.examples_first(torch.empty(layer.shape, device="meta"))
    if layer.kind == "linear":
        view = tokens.reshape(first.shape)
    else:
        # Where several rows of the raw tensor are one example, `output_tokens` joined them to T.
        spatial = layer.weight.ndim - 2
        many = first.ndim > spatial + 2
        split = tokens.unflatten(2, (first.shape[1] if many else 1, -1))  # (B, G, M, T, O/G)
        view = split.permute(0, 2, 1, 4, 3).reshape(first.shape)
    if layer.layout == "first":
        return view
    if layer.layout == "second":
        return view.transpose(0, 1)
    return (view if layer.layout == "rows" else view.transpose(0, 1)).reshape(layer.shape)


class WeightProducts:
    """Products with H_i of a layer whose input cannot be captured: tied, shared, or used functionally.

    One double backward to the weight itself for each example, whatever the network does with it.
    Call it inside `differentiable(model, [name])`.
    """

    def __init__(
        self, model: nn.Module, inputs: Inputs, targets: torch.Tensor, loss: PerExampleLoss, name: str
    ) -> None:
        self._weight = dict(model.named_parameters())[name]
        self._slopes: list[torch.Tensor] = []
        losses = []
        for row in range(batch_size(inputs)):
            one = rows_of(inputs, torch.tensor([row]))
            value = _losses(loss, logits_of(model, one), targets[row : row + 1])
            slope = torch.autograd.grad(value.sum(), self._weight, create_graph=True, allow_unused=True)[0]
            losses.append(value.detach())
            self._slopes.append(torch.zeros_like(self._weight) if slope is None else slope)
        self.losses = torch.cat(losses)

    def krylov(self, name: str, delta: torch.Tensor) -> Krylov:
        """Start Lanczos at v = delta in weight space."""
        shape = (len(self._slopes), *self._weight.shape)
        return Krylov(self._product, delta.to(self._weight.dtype).expand(shape).flatten(1))

    def _product(self, x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return torch.stack([self._one(s, v) for s, v in zip(self._slopes, x, strict=True)])

    def _one(self, slope: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        if not slope.requires_grad:
            return torch.zeros_like(vector)
        seed = vector.view_as(self._weight)
        found = torch.autograd.grad(slope, self._weight, seed, retain_graph=True, allow_unused=True)[0]
        return torch.zeros_like(vector) if found is None else found.flatten()
