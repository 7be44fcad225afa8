"""Train a linear head's Gaussian posterior by the gradient of its PAC-Bayes bound."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from hesstune.bounds.kl import complexity
from hesstune.bounds.noisy import CleanLoss

_MOST = 0.999
MOMENTUM = 0.9
STEPS = 400
RATE = 10.0
SCALE_STEP = 0.05
# Initial and largest standard deviation of the logits. Larger noise makes the softmax closer to the 0-1 loss
# and leaves fewer examples with a gradient.
FIRST_NOISE, MOST_NOISE = 4.0, 10.0
SAMPLES = 4


@dataclass(frozen=True)
class BoundGradient:
    """The gradient of the PAC-Bayes-kl bound in empirical loss and KL."""

    n: int  # Number of examples
    delta: float  # Probability of failure
    family: int  # J, the priors and losses that share it

    def kl_weight(self, loss: float, kl: float) -> float:
        """Return λ with ∇bound ∝ ∇loss + λ·∇KL.

        By the implicit function theorem at p = kl⁻¹(q, c), ∂p/∂q : ∂p/∂c = ln[p(1 − q)/(q(1 − p))] : 1,
        and ∂c/∂KL = 1/n.
        """
        q, c = min(max(loss, 1e-4), _MOST), complexity(kl, self.n, self.delta, self.family)
        low, high = q, 1.0
        for _ in range(24):  # six digits are enough for a gradient; a bound needs `kl_inverse`
            p = (low + high) / 2
            above = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p)) > c
            low, high = (low, p) if above else (p, high)
        p = min(max(high, q + 1e-6), 1 - 1e-6)
        return 1.0 / (self.n * math.log(p * (1 - q) / (q * (1 - p))))


def soft_loss(logits: torch.Tensor, targets: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Return the mean of Σ_h L[ỹ, h]·softmax(f)_h, of logits (…, N, K), labels (N,) and L in [0, 1], (K, K).

    If the noise of the logits is large compared with 1, it approximates the mean of L[ỹ, argmax f].
    """
    return (torch.softmax(logits, dim=-1) * matrix.to(logits)[targets]).sum(dim=-1).mean()


def unit_matrix(loss: CleanLoss) -> torch.Tensor:
    """Return a loss matrix scaled to [0, 1] as a tensor."""
    return torch.from_numpy((loss.matrix - loss.low) / (loss.high - loss.low))


@dataclass(frozen=True)
class HeadPosterior:
    """A linear head that minimises its certificate."""

    weight: torch.Tensor  # (K, D) posterior mean minus the prior's
    bias: torch.Tensor  # (K,) posterior mean minus the prior's
    log_scale: float  # ln of the global scale of prior and posterior
    most: float  # The largest it may be, for a useful gradient


def learn_head(
    features: torch.Tensor,
    targets: torch.Tensor,
    matrix: torch.Tensor,
    bound: BoundGradient,
    base: tuple[float, float],
    generator: torch.Generator,
    start: torch.Tensor | None = None,
    steps: int = STEPS,
) -> HeadPosterior:
    """Minimise the certificate of a linear head on features (n, D); prior and posterior share one scale.

    In u = W/s the prior is N(0, I) and KL = ‖u‖²/2, so plain gradient descent with momentum is well
    conditioned. The logits of an example are Gaussian with mean W x + b and variance
    s²·(base_w²·‖x‖² + base_b²), drawn directly. `base` are the prior's natural scales of weight and bias, 0
    for a part that is fixed, and `start` are the (n, K) logits at the prior's centre.
    """
    k, spread = len(matrix), (base[0] ** 2 * features.square().sum(dim=1) + base[1] ** 2).sqrt()
    u = torch.zeros(k, features.shape[1] + 1, device=features.device)
    moving = torch.zeros_like(u)
    log_scale = math.log(FIRST_NOISE / float(spread.mean()))
    most = math.log(MOST_NOISE / float(spread.mean()))
    inputs = torch.cat([base[0] * features, torch.full_like(features[:, :1], base[1])], dim=1)
    for step in range(steps):
        rate = RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
        scale = math.exp(log_scale)
        mean = (inputs @ u.T) * scale + (0.0 if start is None else start)
        noise = torch.randn((SAMPLES, *mean.shape), generator=generator, device=mean.device)
        logits = (mean + scale * spread[:, None] * noise).requires_grad_()
        with torch.enable_grad():
            loss = soft_loss(logits, targets, matrix)
            (slope,) = torch.autograd.grad(loss, logits)
        value = float(loss.detach())
        kl = float(u.square().sum()) / 2
        weight = bound.kl_weight(value, kl)
        # W = s·u is unchanged when s changes, so the step rescales u.
        pull = float((slope * (logits.detach() - mean)).sum()) - 2 * weight * kl
        moving = MOMENTUM * moving + scale * (slope.sum(dim=0).T @ inputs) + weight * u
        u = u - rate * moving
        shift = min(float(np.clip(-rate * pull, -SCALE_STEP, SCALE_STEP)), most - log_scale)
        log_scale, u = log_scale + shift, u * math.exp(-shift)
    scale = math.exp(log_scale)
    return HeadPosterior(scale * base[0] * u[:, :-1], scale * base[1] * u[:, -1], log_scale, most)
