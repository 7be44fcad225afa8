"""What ranks examples cheaply: their Gauss–Newton values in every layer, and their residuals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from hesstune.curvature.capture import Capture
from hesstune.curvature.exact.backward_mode import exact_forms
from hesstune.curvature.objective import Objective

__all__ = ["Ranking", "rank_examples"]


@dataclass
class Ranking:
    """What predicts v_iᵀ H_i⁺ v_i cheaply, of n examples and L layers.

    Attributes:
        gauss_newton: v_iᵀ J_iᵀ Λ J_i v_i, (n, L) float64; 0 where a layer's input cannot be captured.
        residual: ‖∂ℓ/∂f‖₁, (n,) float64.
        losses: ℓ, (n,) float64.
    """

    gauss_newton: torch.Tensor
    residual: torch.Tensor
    losses: torch.Tensor

    @classmethod
    def joined(cls, parts: Sequence[Ranking]) -> Ranking:
        """Join the rankings of several batches."""
        return cls(*(torch.cat([getattr(p, f) for p in parts]) for f in cls.__dataclass_fields__))


def rank_examples(
    captured: Capture, targets: torch.Tensor, deltas: Mapping[str, torch.Tensor], objective: Objective
) -> Ranking:
    """Compute what `screen_maximum` ranks one batch by: K − 1 backward passes for all layers.

    Args:
        captured: One forward pass, from `capture`, inside `differentiable`.
        targets: Whatever the loss takes, batch first.
        deltas: v_i by layer name; their order is the result's.
        objective: The loss.
    """
    names = list(deltas)
    found = [i for i, name in enumerate(names) if name in captured.layers]
    logits = captured.logits.detach().requires_grad_()
    losses = objective(logits, targets)
    residual = torch.autograd.grad(losses.sum(), logits)[0].abs().sum(1)
    values = torch.zeros(len(logits), len(names), dtype=torch.float64)
    if found:
        forms = exact_forms(captured, [names[i] for i in found], deltas)
        values[:, found] = forms.quadratic.cpu()
    if objective.is_mixture:
        weight = objective.curvature_weight(targets, logits.shape[1])
        values *= weight.cpu().clamp_min(0)[:, None]
    return Ranking(values, residual.double().cpu(), losses.detach().double().cpu())
