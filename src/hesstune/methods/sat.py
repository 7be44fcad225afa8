"""Self-adaptive training: targets drift from the labels to the network's own running predictions.

After a first phase t ← α·t + (1 − α)·p; the loss is the cross-entropy against t, each example weighted
by max t. Source: Huang, Zhang, Zhang 2020, algorithm 1; α = 0.9, the first 60 of 200 epochs plain.
"""

from __future__ import annotations

import torch

from hesstune.methods._base import Method
from hesstune.methods._losses import class_weights
from hesstune.methods._setup import Batch, MethodSetup, Option
from hesstune.storage.tensors import Tree


class SAT(Method):
    """Cross-entropy against targets that the network corrects itself."""

    takes_soft = False
    own_options = {
        "alpha": Option(0.9, "Huang et al. 2020, section 3.1", high=1.0, search=(0.5, 0.99)),
        "after": Option(0.3, "60 of 200 epochs, Huang et al. 2020", high=1.0, search=(0.05, 0.7)),
    }

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        n, k = int(setup.counts.sum()), len(setup.counts)
        self.soft = torch.zeros(n, k)
        self.seen = torch.zeros(n, dtype=torch.bool)
        self._weights = class_weights(setup)

    def adapt(self, p: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Move the targets of a batch towards its predictions, once the first phase is over."""
        self.soft, self.seen = self.soft.to(p), self.seen.to(p.device)
        rows = batch.indices
        labels = torch.nn.functional.one_hot(batch.targets, p.shape[1]).to(p)
        soft = torch.where(self.seen[rows, None], self.soft[rows], labels)
        if batch.epoch >= self.options["after"] * self.setup.epochs:
            soft = self.options["alpha"] * soft + (1.0 - self.options["alpha"]) * p.detach()
        self.soft[rows], self.seen[rows] = soft, True
        return soft

    def batch_loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weighted cross-entropy against the adapted targets."""
        logits = batch.logits()
        log_p = torch.log_softmax(logits.float(), dim=1)
        soft = self.adapt(log_p.exp(), batch)
        weight = soft.max(dim=1).values
        if self._weights is not None:
            weight = weight * self._weights.to(weight)[batch.targets]
        losses = -(soft * log_p).sum(dim=1)
        return (weight * losses).sum() / weight.sum(), logits

    def state(self) -> Tree:
        """Return the targets."""
        return {"soft": self.soft, "seen": self.seen}

    def load_state(self, state: Tree) -> None:
        """Take them back."""
        self.soft, self.seen = state["soft"], state["seen"]


METHOD = SAT
