"""The fallback: Lanczos in weight space, one example at a time, for weights used in any way at all.

Slower than the other paths and correct wherever autograd is: it asks nothing of how the forward
pass uses the weight (twice, reshaped, through a function of one's own).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from hesstune.curvature.capture import rows_of
from hesstune.curvature.objective import Objective
from hesstune.curvature.quadrature import Bracket, Krylov, positive_bracket
from hesstune.forward import Inputs, batch_size, logits_of

__all__ = ["weight_space_forms"]

_DEFAULT_TOLERANCE = 0.03
_MOST = 4


def weight_space_forms(
    model: nn.Module,
    inputs: Inputs,
    targets: torch.Tensor,
    name: str,
    delta: torch.Tensor,
    loss: Objective,
    steps: int,
    tol: float | None = None,
) -> Bracket:
    """Bracket v_iᵀ H_i⁺ v_i of every example by Lanczos with double backward through the weight itself.

    Call it inside `differentiable(model, [name])`.

    Args:
        model: The network.
        inputs: One batch of B examples.
        targets: Their targets.
        name: The layer.
        delta: W_i − W_i⁽ˢ⁾.
        loss: The per-example loss.
        steps: Products an example; up to four times as many where the bracket is wider than `tol`.
        tol: The relative error aimed at; 3 % where None.

    Returns:
        (B,) values with bounds, float64, on the CPU.
    """
    weight = dict(model.named_parameters())[name]
    brackets = []
    for row in range(batch_size(inputs)):
        index = torch.tensor([row])
        logits = logits_of(model, rows_of(inputs, index))
        product = _hessian_product(loss(logits, targets[row : row + 1]).sum(), weight)
        brackets.append(_bracket(product, delta.reshape(1, -1).to(weight), steps, tol))
    return Bracket(*(torch.cat([getattr(b, part) for b in brackets]) for part in ("value", "lower", "upper")))


def _hessian_product(
    loss: torch.Tensor, weight: torch.Tensor
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    gradient = torch.autograd.grad(loss, weight, create_graph=True)[0]

    def product(vector: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        slope = (gradient * vector.view_as(weight)).sum()
        if not slope.requires_grad:  # the loss is linear in the weight
            return torch.zeros_like(vector)
        found = torch.autograd.grad(slope, weight, retain_graph=True, materialize_grads=True)[0]
        return found.reshape(1, -1)

    return product


def _bracket(
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    start: torch.Tensor,
    steps: int,
    tol: float | None,
) -> Bracket:
    if not bool(start.any()):
        zero = torch.zeros(1, dtype=torch.float64)
        return Bracket(zero, zero, zero)
    krylov = Krylov(product, start)
    while True:
        krylov.advance()
        done = bool(krylov.exhausted().all()) or krylov.products >= _MOST * steps
        if done or krylov.products >= steps:
            bracket = positive_bracket(krylov.tridiagonal())
            if done or float(bracket.error.max()) <= (_DEFAULT_TOLERANCE if tol is None else tol):
                return bracket
