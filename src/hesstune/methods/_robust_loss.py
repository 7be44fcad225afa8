"""What the methods share that only replace cross-entropy by another loss."""

from __future__ import annotations

import torch

from hesstune.methods._base import Method
from hesstune.methods._losses import Loss, averaged
from hesstune.methods._setup import MethodSetup

__all__ = ["Loss", "RobustLoss"]


class RobustLoss(Method):
    """A loss of logits and targets instead of cross-entropy; classes are weighted as there."""

    shards = True
    takes_soft = False

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        self._robust = averaged(setup, self.make())

    def make(self) -> Loss:
        """Return the loss of each example, (N, K) logits and (N,) targets to (N,)."""
        raise NotImplementedError

    def loss(self, logits: torch.Tensor, targets: torch.Tensor, epoch: int) -> torch.Tensor:
        """Return the mean of the method's loss."""
        return self._robust(logits, targets)
