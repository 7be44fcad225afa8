"""RegSL: layer-wise balls, examples reweighted by their loss, and confident predictions as labels.

The weight of an example is softmax(−ℓ/γ) over its batch; a label is replaced where max p exceeds a
threshold. Source: Li and Zhang 2021, section 4, and their code: reweighting from epoch 5 and
relabelling from epoch 10 of 30, γ = 2, threshold 0.9.
"""

from __future__ import annotations

import torch

from hesstune.methods._losses import class_weights
from hesstune.methods._setup import Batch, MethodSetup, Option
from hesstune.methods.constraint import RADII, Constraint

SOURCE = "the code of Li and Zhang 2021, its README"


class RegSL(Constraint):
    """Constrained cross-entropy with self-labelling."""

    shards = False
    takes_soft = False
    own_options = {
        **RADII,
        "reweight_after": Option(5 / 30, SOURCE, high=1.0),
        "correct_after": Option(10 / 30, SOURCE, high=1.0, search=(0.1, 0.8)),
        "temperature": Option(2.0, SOURCE, low=1e-6, search=(0.5, 5.0), log=True),
        "threshold": Option(0.9, SOURCE, high=1.0, search=(0.5, 0.99)),
    }

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        self._weights = class_weights(setup)

    def batch_loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss against labels corrected and examples weighted as this epoch has it."""
        logits = batch.logits()
        done = batch.epoch / self.setup.epochs
        targets = batch.targets
        if done >= self.options["correct_after"]:
            confidence, predicted = torch.softmax(logits.detach().float(), dim=1).max(dim=1)
            targets = torch.where(confidence > self.options["threshold"], predicted, targets)
        losses = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
        if self._weights is not None:
            losses = self._weights.to(losses)[targets] * losses
        if done < self.options["reweight_after"]:
            return losses.mean(), logits
        weight = torch.softmax(-losses.detach() / self.options["temperature"], dim=0)
        return (weight * losses).sum(), logits


METHOD = RegSL
