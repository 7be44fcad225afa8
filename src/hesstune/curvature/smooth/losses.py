"""Losses whose second derivatives keep their digits on fitted examples."""

from __future__ import annotations

import torch
from torch import nn

from hesstune.curvature.objective import Objective, PerExampleLoss

__all__ = ["mixture_losses", "stable_losses"]


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


def stable_losses(loss: PerExampleLoss, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the loss of every example, (B,), in the stable form where it is a mixture of cross-entropies."""
    targets = targets.to(logits.device)
    if isinstance(loss, Objective) and loss.is_mixture:
        return mixture_losses(logits, loss.coefficients(targets, logits.shape[1]))
    return loss(logits, targets)
