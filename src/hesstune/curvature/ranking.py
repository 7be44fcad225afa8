"""What ranks examples cheaply: their Gauss–Newton values in every layer, and their residuals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from hesstune.curvature.capture import capture, differentiable
from hesstune.curvature.exact import exact_forms
from hesstune.curvature.layers import Layout
from hesstune.curvature.objective import Objective, PerExampleLoss
from hesstune.forward import Inputs

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
    model: nn.Module,
    inputs: Inputs,
    targets: torch.Tensor,
    deltas: Mapping[str, torch.Tensor],
    *,
    loss: PerExampleLoss | None = None,
    layouts: Mapping[str, Layout] | None = None,
    copied: frozenset[str] = frozenset(),
) -> Ranking:
    """Compute what `screen_maximum` ranks one batch by: K − 1 backward passes for all layers.

    Arguments are those of `lanczos_forms`.
    """
    objective = loss or Objective()
    names = list(deltas)
    with differentiable(model, names):
        captured = capture(model, inputs, names, layouts, copied=copied)
        if layouts is not None:  # ranked as 0 it would never be refined
            captured.require([name for name in names if name in layouts and captured.calls[name]])
        found = [i for i, name in enumerate(names) if name in captured.layers]
        logits = captured.logits.detach().requires_grad_()
        losses = objective(logits, targets)
        residual = torch.autograd.grad(losses.sum(), logits)[0].abs().sum(1)
        values = torch.zeros(len(logits), len(names), dtype=torch.float64)
        if found:
            forms = exact_forms(captured, [names[i] for i in found], deltas)
            values[:, found] = forms.quadratic.cpu()
        if isinstance(objective, Objective) and objective.is_mixture:
            weight = objective.curvature_weight(targets, logits.shape[1])
            values *= weight.cpu().clamp_min(0)[:, None]
    return Ranking(values, residual.double().cpu(), losses.detach().double().cpu())
