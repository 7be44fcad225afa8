"""Hessian-vector products of every example and layer of a batch from one retained graph.

The Hessian of Σ_batch ℓ in a layer's output z_i is block diagonal over examples (eval mode), and
H_i = A_iᵀ (∇²_{z_i} ℓ) A_i with A_i: ΔW -> Δz_i. So one double backward gives each example its own
product, it starts and ends at z_i, and weights take no part in it. The first backward pass is
shared by all layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import nn
from torch.autograd.graph import GradientEdge

from hesstune.curvature.batches import rows_of
from hesstune.curvature.capture import Capture
from hesstune.curvature.layers import CapturedLayer
from hesstune.curvature.objective import Objective, PerExampleLoss
from hesstune.curvature.quadrature import Krylov
from hesstune.forward import Inputs, batch_size, logits_of

__all__ = ["HessianSource", "LayerProducts", "WeightProducts", "mixture_losses"]


# Relative to the largest squared singular value of the tokens: the part of v that is left out
# has an image under A_i below 1e-6 of the largest possible one.
_RANK_TOLERANCE = 1e-12
# Beyond it, the eigenproblem of the tokens' span costs more than it saves.
_LARGEST_SPAN = 1024


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
        self._edges = {name: layer.edge for name, layer in self.layers.items()}
        slopes = _gradients([losses.sum()], list(self._edges.values()), create_graph=True)
        self._slopes = dict(zip(self.layers, slopes, strict=True))
        self._live: dict[str, torch.Tensor] | None = None

    def product(self, name: str, tangent: torch.Tensor) -> torch.Tensor:
        """Return ∇²_{z_i} ℓ · tangent, both raw outputs of the layer."""
        slope = self._slopes[name]
        if slope is None or not slope.requires_grad:  # the loss is linear in z_i
            return torch.zeros_like(tangent)
        # Convolutions differentiate wrongly twice where the seed of a single example has odd strides.
        seed = torch.empty_like(slope).copy_(tangent)
        found = _gradients([slope], [self._edges[name]], [seed])[0]
        return torch.zeros_like(tangent) if found is None else found

    def krylov(self, name: str, delta: torch.Tensor) -> Krylov:
        """Start Lanczos at v = delta, in an orthonormal basis of the layer's inputs.

        H_i = A_iᵀ M A_i with M = ∇²_{z_i} ℓ, so H_i⁺ sees only v's part in the span of the layer's
        inputs a_t, the tokens that M knows of. Leaving the rest out changes no value, makes the
        vectors shorter, and narrows the bracket: the rest is weight at λ = 0 that the moments
        alone cannot place.
        """
        layer = self.layers[name]
        with torch.no_grad():
            if layer.kind != "conv_transpose" and _span_is_affordable(layer):
                return _token_space(self, layer, delta, self._live_tokens(layer))
            return _weight_space(self, layer, delta)

    def _live_tokens(self, layer: CapturedLayer) -> torch.Tensor:
        """Tell which tokens the loss depends on at all, (B, G, T): padding behind a mask is not live.

        One product with a random tangent at every layer at once: a token whose rows of the whole
        Hessian are not zero gets an exact zero there with probability 0.
        """
        if self._live is None:
            generator = torch.Generator().manual_seed(0)
            slopes = {n: s for n, s in self._slopes.items() if s is not None and s.requires_grad}
            probes = [
                torch.empty_like(s).copy_(torch.randn(s.shape, generator=generator)) for s in slopes.values()
            ]
            found = _gradients(list(slopes.values()), [self._edges[n] for n in slopes], probes)
            self._live = {
                n: self.layers[n].output_tokens(g).ne(0).any(-1)
                for n, g in zip(slopes, found, strict=True)
                if g is not None
            }
        live = self._live.get(layer.name)
        return torch.zeros(layer.tokens().shape[:3], dtype=torch.bool) if live is None else live


def _gradients(
    outputs: Sequence[torch.Tensor],
    edges: Sequence[GradientEdge],
    seeds: Sequence[torch.Tensor] | None = None,
    create_graph: bool = False,
) -> Sequence[torch.Tensor | None]:
    if not edges:
        return ()
    return torch.autograd.grad(
        outputs, edges, seeds, retain_graph=True, create_graph=create_graph, allow_unused=True
    )


def _weight_space(products: LayerProducts, layer: CapturedLayer, delta: torch.Tensor) -> Krylov:
    shape = (layer.examples, *layer.weight.shape)

    def product(x: torch.Tensor) -> torch.Tensor:
        tangent = layer.apply_each(x.reshape(shape))
        return layer.pullback(products.product(layer.name, tangent)).flatten(1)

    start = delta.to(layer.weight.dtype).expand(shape).flatten(1)
    return Krylov(product, start)


def _span_is_affordable(layer: CapturedLayer) -> bool:
    inputs = _matrices(layer, layer.weight).shape[-1]
    outputs = layer.weight.shape[1 if layer.transposed else 0]
    return min(math.prod(layer.shape) // (layer.examples * outputs), inputs) <= _LARGEST_SPAN


def _token_space(
    products: LayerProducts, layer: CapturedLayer, delta: torch.Tensor, live: torch.Tensor
) -> Krylov:
    """Start Lanczos in an orthonormal basis Q of the live tokens' span, A = R Qᵀ: H = Q (Rᵀ M R) Qᵀ."""
    places, tokens = _gathered(layer.tokens().double(), live)
    factor, basis = _orthonormal(tokens)
    start = (_matrices(layer, delta.double()) @ basis).mT  # vQ, (B, G, r, O/G)
    rank = basis.shape[-1]
    mapping = torch.zeros(*live.shape, rank, dtype=layer.weight.dtype, device=live.device)
    mapping.scatter_(2, places.expand(-1, -1, -1, rank), factor.to(mapping.dtype))

    def product(x: torch.Tensor) -> torch.Tensor:
        tangent = _raw_output(layer, mapping @ x.view(start.shape))
        return (mapping.mT @ layer.output_tokens(products.product(layer.name, tangent))).flatten(1)

    return Krylov(product, start.flatten(1).to(layer.weight.dtype))


def _orthonormal(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Factor A, (B, G, T, I), into R (B, G, T, r) and Q (B, G, I, r), A = R Qᵀ; spare columns of Q are 0.

    Through the smaller one of A Aᵀ = V Σ Vᵀ (R = V √Σ, Q = Aᵀ V / √Σ) and AᵀA = Q Σ Qᵀ (R = A Q).
    """
    fewer_tokens = tokens.shape[2] <= tokens.shape[3]
    values, vectors = torch.linalg.eigh(tokens @ tokens.mT if fewer_tokens else tokens.mT @ tokens)
    kept = values > _RANK_TOLERANCE * values[..., -1:]
    rank = max(1, int(kept.sum(-1).max()))
    values, kept = values[..., -rank:].unsqueeze(-2), kept[..., -rank:].unsqueeze(-2)
    vectors = vectors[..., -rank:] * kept
    if not fewer_tokens:
        return tokens @ vectors, vectors
    roots = values.clamp_min(0).sqrt()
    return vectors * roots, tokens.mT @ (vectors * torch.where(kept, 1 / roots, 0.0))


def _gathered(tokens: torch.Tensor, live: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where the live tokens are, (B, G, T', 1), and those tokens; the rest of T' is set to 0."""
    count = max(1, int(live.sum(-1).max()))
    order = torch.argsort(live.to(torch.int8), dim=2, descending=True, stable=True)
    places = order[..., :count].unsqueeze(-1)
    found = tokens.gather(2, places.expand(-1, -1, -1, tokens.shape[3]))
    return places, found * live.unsqueeze(-1).gather(2, places)


def _matrices(layer: CapturedLayer, delta: torch.Tensor) -> torch.Tensor:
    """View weights as (B or 1, G, O/G, I): what `layer.tokens()` are multiplied by."""
    each = delta if delta.ndim > layer.weight.ndim else delta.unsqueeze(0)
    if layer.transposed:
        each = each.mT
    groups = layer.options.get("groups", 1) if layer.kind == "conv" else 1
    return each.reshape(each.shape[0], groups, each.shape[1] // groups, -1)


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

    def hutchinson(self, probes: int, generator: torch.Generator) -> torch.Tensor:
        """Return Σ_examples zᵀ H_i z for Gaussian z, (probes,) float64: Σ Tr H_i on average."""
        found = []
        for _ in range(probes):
            probe = torch.randn(self._weight.shape, generator=generator, dtype=torch.float64)
            each = probe.to(self._weight).flatten().expand(len(self._slopes), -1)
            found.append((each * self._product(each)).double().sum().cpu())
        return torch.stack(found)

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([self._one(s, v) for s, v in zip(self._slopes, x, strict=True)])

    def _one(self, slope: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        if not slope.requires_grad:
            return torch.zeros_like(vector)
        seed = vector.view_as(self._weight)
        found = torch.autograd.grad(slope, self._weight, seed, retain_graph=True, allow_unused=True)[0]
        return torch.zeros_like(vector) if found is None else found.flatten()
