"""Mixup: train on λx + (1 − λ)x′ with loss λ·ℓ(y) + (1 − λ)·ℓ(y′), λ ~ Beta(α, α) for each batch.

Source: Zhang et al. 2018, equation 1; α = 0.2 is their value for ImageNet.
"""

from __future__ import annotations

import torch

from hesstune.methods._base import Method
from hesstune.methods._setup import Batch, Option


def beta_draw(alpha: float) -> float:
    """Draw from Beta(α, α) by torch's global generator; 1 where α is 0."""
    return float(torch.distributions.Beta(alpha, alpha).sample()) if alpha else 1.0


def mixed(inputs: torch.Tensor, order: torch.Tensor, share: float) -> torch.Tensor:
    """Return share·inputs + (1 − share)·inputs[order]."""
    return share * inputs + (1.0 - share) * inputs[order]


class Mixup(Method):
    """Cross-entropy on convex combinations of examples and labels."""

    shards = True
    takes_soft = False
    mixes_inputs = True
    own_options = {
        "alpha": Option(0.2, "Zhang et al. 2018, section 3.1 (ImageNet)", search=(0.1, 8.0), log=True)
    }

    def batch_loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of a batch mixed with a permutation of itself."""
        share = beta_draw(self.options["alpha"])
        order = torch.randperm(len(batch.targets)).to(batch.targets.device)
        assert isinstance(batch.inputs, torch.Tensor)
        logits = batch.logits(inputs=mixed(batch.inputs, order, share))
        first = self.loss(logits, batch.targets, batch.epoch)
        second = self.loss(logits, batch.targets[order], batch.epoch)
        return share * first + (1.0 - share) * second, logits


METHOD = Mixup
