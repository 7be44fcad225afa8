"""Hessian-vector products in weight space, example by example: layers whose input cannot be captured."""

from __future__ import annotations

import torch
from torch import nn

from hesstune.curvature.batches import each_alone
from hesstune.curvature.interception import Interceptor
from hesstune.curvature.objective import PerExampleLoss
from hesstune.curvature.smooth.losses import stable_losses
from hesstune.curvature.smooth.quadrature import Krylov
from hesstune.forward import Inputs, logits_of, named_parameters

__all__ = ["WeightProducts"]


class WeightProducts:
    """Products with H_i of a layer whose input cannot be captured: tied, shared, or used functionally.

    One double backward to the weight itself for each example, whatever the network does with it.
    Call it inside `differentiable(model, [name])`.
    """

    def __init__(
        self, model: nn.Module, inputs: Inputs, targets: torch.Tensor, loss: PerExampleLoss, name: str
    ) -> None:
        self._weight = named_parameters(model)[name]
        self._slopes: list[torch.Tensor] = []
        for row, one in each_alone(inputs):
            with Interceptor(model):
                logits = logits_of(model, one)
            value = stable_losses(loss, logits, targets[row : row + 1])
            slope = None
            if value.requires_grad:
                total = value.sum()
                slope = torch.autograd.grad(total, self._weight, create_graph=True, allow_unused=True)[0]
            self._slopes.append(torch.zeros_like(self._weight) if slope is None else slope)

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
