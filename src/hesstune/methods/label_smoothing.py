"""Label smoothing: cross-entropy against (1 − ε)·label + ε/K.

Source: Szegedy et al. 2016, section 7, ε = 0.1; Lukasik et al. 2020 on why it helps under noise.
"""

from __future__ import annotations

import torch

from hesstune.methods._base import Method
from hesstune.methods._losses import averaged
from hesstune.methods._setup import MethodSetup, Option


class LabelSmoothing(Method):
    """torch's cross-entropy with its `label_smoothing`."""

    shards = True
    takes_soft = False
    own_options = {"epsilon": Option(0.1, "Szegedy et al. 2016, section 7", high=1.0, search=(0.0, 0.9))}

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        self._smoothed = averaged(setup, self._losses)

    def _losses(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(
            logits.float(), targets, reduction="none", label_smoothing=self.options["epsilon"]
        )

    def loss(self, logits: torch.Tensor, targets: torch.Tensor, epoch: int) -> torch.Tensor:
        """Return the smoothed cross-entropy of a batch."""
        return self._smoothed(logits, targets)


METHOD = LabelSmoothing
