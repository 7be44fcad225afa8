"""Consistent loss alone ("backward correction"), with no constraint.

Source: the paper, section 4; Patrini et al. 2017. Unbounded below: the weights can run away.
"""

from __future__ import annotations

import torch

from hesstune.methods._base import Method
from hesstune.methods._losses import consistent
from hesstune.methods._setup import MethodSetup


class Consistent(Method):
    """The clean loss in expectation, from noisy labels and their noise matrix."""

    shards = True
    needs_noise_matrix = True

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        self._consistent = consistent(setup)

    def loss(self, logits: torch.Tensor, targets: torch.Tensor, epoch: int) -> torch.Tensor:
        """Return the consistent loss of a batch."""
        loss: torch.Tensor = self._consistent(logits, targets)
        return loss


METHOD = Consistent
