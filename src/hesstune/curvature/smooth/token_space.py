"""Lanczos in an orthonormal basis of a layer's inputs: shorter vectors and a narrower bracket."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from hesstune.curvature.layers import CapturedLayer
from hesstune.curvature.smooth.quadrature import Krylov

__all__ = ["span_is_affordable", "token_space"]

# Relative to the largest squared singular value of the tokens: the part of v that is left out
# has an image under A_i below 1e-6 of the largest possible one.
_RANK_TOLERANCE = 1e-12
# Beyond it, the eigenproblem of the tokens' span costs more than it saves.
_LARGEST_SPAN = 1024


def span_is_affordable(layer: CapturedLayer) -> bool:
    """Tell whether the eigenproblem of the tokens' span costs less than it saves."""
    inputs = _matrices(layer, layer.weight).shape[-1]
    outputs = layer.weight.shape[1 if layer.transposed else 0]
    return min(math.prod(layer.shape) // (layer.examples * outputs), inputs) <= _LARGEST_SPAN


def token_space(
    curvature: Callable[[torch.Tensor], torch.Tensor],
    layer: CapturedLayer,
    delta: torch.Tensor,
    live: torch.Tensor,
) -> Krylov:
    """Start Lanczos in an orthonormal basis Q of the live tokens' span, A = R Qᵀ: H = Q (Rᵀ M R) Qᵀ.

    Args:
        curvature: The product with M = ∇²_{z_i} ℓ, raw output to raw output.
        layer: The layer.
        delta: v, the weight's shape, or one for each example, (B, *weight.shape).
        live: The tokens that the loss depends on, (B, G, T) bool.
    """
    places, tokens = _gathered(layer.tokens().double(), live)
    factor, basis = _orthonormal(tokens)
    start = (_matrices(layer, delta.double()) @ basis).mT  # vQ, (B, G, r, O/G)
    rank = basis.shape[-1]
    mapping = torch.zeros(*live.shape, rank, dtype=layer.weight.dtype, device=live.device)
    mapping.scatter_(2, places.expand(-1, -1, -1, rank), factor.to(mapping.dtype))

    def product(x: torch.Tensor) -> torch.Tensor:
        tangent = _raw_output(layer, mapping @ x.view(start.shape))
        return (mapping.mT @ layer.output_tokens(curvature(tangent))).flatten(1)

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
