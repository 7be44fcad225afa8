"""The exact path's formula against autograd through the weights, on a few examples and random directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from hesstune.curvature.capture import Capture
from hesstune.curvature.exact.backward_mode import exact_forms
from hesstune.curvature.exact.passes import sources
from hesstune.curvature.layers import CapturedLayer

__all__ = ["probe_errors"]

_PROBED_LAYERS = 4
# Weights probed at a time, in bytes: a direction and a gradient of that size are held beside the network.
_GROUP_BYTES = 64 * 2**20


def probe_errors(
    captured: Capture, names: Sequence[str], unsure: frozenset[str], seed: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Compare the formula with autograd through the weights themselves, in a random direction r.

    The first derivative is compared at every layer; the second, rᵀHr against rᵀJᵀΛJr, at the layers
    that no other one feeds and a few more: what comes after the others comes after those too, but for
    writes into slices, so the layers before such writes are all compared. The logits are divided by
    their spread and the target is the least likely class: saturated logits would hide
    Σ_k (p_k − [k = y]) ∇²f_k and break autodiff.

    Directions and gradients, as large as the weights, are there for a few layers at a time.

    Returns:
        Relative errors of the first derivative, of every layer, and of the second, of the probed ones.
    """
    logits = captured.logits
    spread = (logits - logits.mean(1, keepdim=True)).abs().amax().detach().clamp(min=1e-30)
    scaled = replace(captured, logits=logits / spread)
    generator = torch.Generator().manual_seed(seed)
    layers = [captured.layers[name] for name in names]
    step = max(1, len(names) // _PROBED_LAYERS)
    hidden = [i for i, name in enumerate(names) if name in unsure]
    probed = {names[i] for i in (*sources(layers), *range(0, len(names), step), *hidden)}
    slopes: dict[str, float] = {}
    curvatures: dict[str, float] = {}
    for group in _groups(layers):
        first, second = _group_errors(scaled, group, probed, generator)
        slopes |= first
        curvatures |= second
    return slopes, curvatures


def _groups(layers: Sequence[CapturedLayer]) -> list[list[CapturedLayer]]:
    """Cut the list where the weights of a part would be larger than `_GROUP_BYTES`."""
    groups: list[list[CapturedLayer]] = []
    size = 0
    for layer in layers:
        size += layer.weight.nbytes
        if not groups or size > _GROUP_BYTES:
            groups.append([])
            size = layer.weight.nbytes
        groups[-1].append(layer)
    return groups


def _group_errors(
    captured: Capture, layers: Sequence[CapturedLayer], probed: set[str], generator: torch.Generator
) -> tuple[dict[str, float], dict[str, float]]:
    directions = {
        layer.name: torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64).to(layer.weight)
        for layer in layers
    }
    logits = captured.logits
    loss = nn.functional.cross_entropy(logits, logits.argmin(1), reduction="sum")
    found = torch.autograd.grad(loss, [layer.weight for layer in layers], create_graph=True)
    gradients = dict(zip(directions, found, strict=True))
    outputs = torch.autograd.grad(loss, [layer.edge for layer in layers], retain_graph=True)
    slopes: dict[str, float] = {}
    curvatures: dict[str, float] = {}
    for layer, output in zip(layers, outputs, strict=True):
        parts = layer.inner(output, layer.apply(directions[layer.name]).detach())
        slope = (gradients[layer.name] * directions[layer.name]).sum()
        slopes[layer.name] = _relative(slope, parts.sum(), parts.abs().sum())
    some = [layer for layer in layers if layer.name in probed]
    if not some:
        return slopes, curvatures
    forms = exact_forms(captured, [layer.name for layer in some], directions).quadratic.sum(0)
    for layer, form in zip(some, forms, strict=True):
        direction = directions[layer.name]
        slope = (gradients[layer.name] * direction).sum()
        product = torch.autograd.grad(slope, layer.weight, retain_graph=True, materialize_grads=True)[0]
        curvatures[layer.name] = _relative((product * direction).sum(), form, form)
    return slopes, curvatures


def _relative(measured: torch.Tensor, expected: torch.Tensor, scale: torch.Tensor) -> float:
    found, wanted, largest = (float(value.detach()) for value in (measured, expected, scale))
    return abs(found - wanted) / max(largest, abs(found), 1e-300)
