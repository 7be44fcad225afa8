"""Robust fine-tuning: the paper's algorithm.

Consistent loss and layer-wise constraint, after a warm-up of plain cross-entropy (inside the same
balls). Source: Ju, Li, Zhang 2022, Algorithm 1.
"""

from __future__ import annotations

import torch

from hesstune.methods._losses import consistent
from hesstune.methods._setup import MethodSetup
from hesstune.methods.constraint import Constraint


class Robust(Constraint):
    """Cross-entropy for `warmup_epochs`, then the consistent loss; projection all along."""

    shards = True
    needs_noise_matrix = True
    warms_up = True

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        self._consistent = consistent(setup)

    def loss(self, logits: torch.Tensor, targets: torch.Tensor, epoch: int) -> torch.Tensor:
        """Return the batch's loss: cross-entropy while warming up, then the consistent loss."""
        if epoch < self.setup.warmup_epochs:
            return super().loss(logits, targets, epoch)
        loss: torch.Tensor = self._consistent(logits, targets)
        return loss


METHOD = Robust
