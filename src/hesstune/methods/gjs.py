"""GJS: the Jensen–Shannon divergence of the label and the predictions of two augmented views.

It also rewards views that agree. Source: Englesson and Azizpour 2021, equation 7. On cached features
both views are the same and the loss is their JS.
"""

from __future__ import annotations

import torch

from hesstune.losses.robust import JensenShannonLoss
from hesstune.methods._base import Method
from hesstune.methods._losses import class_weights
from hesstune.methods._setup import Batch, MethodSetup, Option


class GJS(Method):
    """GJS over two draws of the augmentation instead of cross-entropy."""

    shards = True
    takes_soft = False
    own_options = {
        "weight": Option(
            0.5, "the middle of their search, 0.1 … 0.9", low=1e-6, high=1 - 1e-6, search=(0.1, 0.9)
        )
    }

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        self._gjs = JensenShannonLoss(self.options["weight"], reduction="none")
        self._weights = class_weights(setup)

    def batch_loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of the label and two views."""
        logits = batch.logits()
        losses = self._gjs([logits, batch.logits(inputs=batch.again())], batch.targets)
        if self._weights is not None:
            losses = self._weights.to(losses)[batch.targets] * losses
        return losses.mean(), logits


METHOD = GJS
