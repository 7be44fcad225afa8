"""ELR: cross-entropy + λ·log(1 − ⟨p, t⟩), t a running average of each example's own predictions.

Networks learn right labels before wrong ones; the penalty keeps them there. Source: Liu et al. 2020,
equations 6 and 9; λ = 3, β = 0.7 for CIFAR-10.
"""

from __future__ import annotations

import torch

from hesstune.losses.robust import early_learning_penalty
from hesstune.methods._base import RESISTANT, Method
from hesstune.methods._setup import Batch, MethodSetup, Option
from hesstune.storage.tensors import Tree

SOURCE = "Liu et al. 2020, appendix (CIFAR-10)"


class EarlyLearning(Method):
    """A method's own loss, and a memory of each example's early predictions that holds them."""

    head_penalty = RESISTANT
    own_options = {
        "lambda": Option(3.0, SOURCE, search=(0.3, 10.0), log=True),
        "beta": Option(0.7, SOURCE, high=1.0, search=(0.5, 0.99)),
    }

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        self.memory = torch.zeros(int(setup.counts.sum()), len(setup.counts))

    def remember(self, p: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """Set t ← β·t + (1 − β)·p for the examples of a batch, and return it."""
        p = p.detach().clamp(1e-4, 1.0 - 1e-4)
        p = p / p.sum(dim=1, keepdim=True)
        self.memory = self.memory.to(p)
        beta = self.options["beta"]
        self.memory[indices] = beta * self.memory[indices] + (1.0 - beta) * p
        return self.memory[indices]

    def batch_loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the method's loss and the regulariser."""
        logits = batch.logits()
        p = torch.softmax(logits.float(), dim=1)
        penalty = early_learning_penalty(p, self.remember(p, batch.indices)).mean()
        return self._labels_loss(logits, batch) + self.options["lambda"] * penalty, logits

    def state(self) -> Tree:
        """Return the memory."""
        return {"memory": self.memory}

    def load_state(self, state: Tree) -> None:
        """Take it back."""
        self.memory = state["memory"]


class ELR(EarlyLearning):
    """Cross-entropy with the memory."""


METHOD = ELR
