"""Slow twins in float64: the block Hessian itself, one example and one layer at a time.

They are the truth the fast paths are tested against, for networks of a few thousand weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from hesstune.curvature.batches import rows_of
from hesstune.curvature.objective import PerExampleLoss
from hesstune.forward import Inputs, batch_size, clear_caches, evaluating, logits_of


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits, targets, reduction="none")


def block_hessian(
    model: nn.Module,
    inputs: Inputs,
    targets: torch.Tensor,
    name: str,
    loss: PerExampleLoss = _cross_entropy,
) -> torch.Tensor:
    """Return H_i(x, y) of every example, (B, d, d): the Hessian of its loss in vec(W_i) alone.

    `loss` maps logits (1, K) and targets (1, ...) to losses (1,).
    """
    weight = dict(model.named_parameters())[name].detach()

    def one(flat: torch.Tensor, x: Inputs, y: torch.Tensor) -> torch.Tensor:
        return loss(_logits_at(model, name, flat.view_as(weight), x), y).sum()

    hessians = []
    with _quiet(model):
        for row in range(batch_size(inputs)):
            x = rows_of(inputs, torch.tensor([row]))
            # Reverse over reverse: forward mode is missing for some fused kernels.
            hessian = torch.autograd.functional.hessian(
                lambda flat, x=x, r=row: one(flat, x, targets[r : r + 1]), weight.reshape(-1)
            )
            hessians.append((hessian + hessian.T) / 2)
    return torch.stack(hessians)


def block_jacobian(model: nn.Module, inputs: Inputs, name: str) -> torch.Tensor:
    """Return J_i = ∂f/∂vec(W_i) of every example, (B, K, d)."""
    weight = dict(model.named_parameters())[name].detach()
    jacobians = []
    with _quiet(model):
        for row in range(batch_size(inputs)):
            x = rows_of(inputs, torch.tensor([row]))
            jacobians.append(
                torch.autograd.functional.jacobian(
                    lambda flat, x=x: _logits_at(model, name, flat.view_as(weight), x)[0], weight.reshape(-1)
                )
            )
    return torch.stack(jacobians)


def positive_form(hessian: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """Return vᵀ H⁺ v with H⁺ = U max(D, 0) Uᵀ, of (..., d, d) and v of d entries."""
    values, vectors = torch.linalg.eigh(hessian)
    parts = vectors.transpose(-2, -1) @ vector.reshape(-1).to(hessian.dtype)
    form: torch.Tensor = (values.clamp(min=0) * parts.square()).sum(-1)
    return form


def positive_trace(hessian: torch.Tensor) -> torch.Tensor:
    """Return Tr H⁺, the sum of the positive eigenvalues, of (..., d, d)."""
    trace: torch.Tensor = torch.linalg.eigvalsh(hessian).clamp(min=0).sum(-1)
    return trace


def paper_code_quantity(
    model: nn.Module,
    inputs: Inputs,
    targets: torch.Tensor,
    differences: dict[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Return what the paper's own code computes, by layer: v_iᵀ(Hv)_i of the batch's *mean* loss.

    It differs from v_iᵀH_i⁺v_i in three ways: H couples the layers, since all v are moved at once, negative
    curvature is kept, and the mean over a batch stands for the examples.
    """
    parameters = dict(model.named_parameters())
    weights = [parameters[name].detach().clone().requires_grad_() for name in differences]
    with _quiet(model), torch.enable_grad():
        logits = _logits_with(model, dict(zip(differences, weights, strict=True)), inputs)
        gradients = torch.autograd.grad(_cross_entropy(logits, targets).mean(), weights, create_graph=True)
        slope = _dot(gradients, list(differences.values()))
        products = torch.autograd.grad(slope, weights)
    return {
        name: (product * v).sum() for (name, v), product in zip(differences.items(), products, strict=True)
    }


def _dot(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)]).sum()


def _logits_at(model: nn.Module, name: str, weight: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    return _logits_with(model, {name: weight}, inputs)


def _logits_with(model: nn.Module, weights: dict[str, torch.Tensor], inputs: Inputs) -> torch.Tensor:
    return logits_of(_Substituted(model, weights), inputs)


class _Substituted(nn.Module):
    """The model with some weights replaced, so that `logits_of` reads its output as usual."""

    def __init__(self, model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self._parts = (model, weights)  # in a tuple, so that the model does not become a submodule

    def forward(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        model, weights = self._parts
        clear_caches(model)
        output: torch.Tensor = functional_call(model, weights, args, kwargs)
        return output


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """Eval mode, math attention, no fused fast path; all as before afterwards."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with evaluating(model), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
