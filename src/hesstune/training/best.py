"""Which weights of a run are kept: the last, or the best on validation."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from hesstune.storage.tensors import Tree

__all__ = ["Best", "Judged"]


class Judged(NamedTuple):
    """How a network does on each of the N validation examples.

    Attributes:
        losses: (N,).
        errors: (N,) 1.0 where the largest logit is not the label, else 0.0.
    """

    losses: torch.Tensor
    errors: torch.Tensor


class Best:
    """The best weights so far, by validation loss.

    A start that was solved is simpler than what steps make of it: these have to beat it by more than one
    standard error of the mean difference.

    Args:
        wanted: Whether the best are kept; else nothing is.
        latest: Whether, after a start is beaten, the latest are kept that err on no more validation examples
            than those that err least, beyond one standard error: where labels are right, accuracy goes on
            rising, as steps get smaller, after the likelihood has begun to fall.
    """

    def __init__(self, wanted: bool, latest: bool = False) -> None:
        self.wanted, self.latest = wanted, wanted and latest
        self.weights: dict[str, torch.Tensor] | None = None
        self.epoch: int | None = None  # whose weights are kept
        self.waited = -1  # epochs since the loss was lowest or any were kept
        self._loss = self._least = float("inf")
        # Losses at the solved start, while that is kept; errors of those kept that erred least.
        self._start: torch.Tensor | None = None
        self._errors: torch.Tensor | None = None

    def offer(
        self,
        judged: Judged | None,
        weights: Callable[[], dict[str, torch.Tensor]],
        epoch: int,
    ) -> None:
        """Keep the weights if they are the best on validation.

        Args:
            judged: None where there are no validation examples.
            weights: Copies the weights as they are.
            epoch: Of which epoch they are, from 1; 0: of a solved start.
        """
        self.waited += 1
        if judged is None:
            return
        loss = float(judged.losses.mean())
        if loss < self._least:
            self._least, self.waited = loss, 0
        if not (self.wanted and self._wins(judged, loss)):
            return
        self.weights, self.epoch, self.waited, self._loss = weights(), epoch, 0, loss
        self._start = None if epoch else judged.losses
        fewer = self._errors is None or judged.errors.mean() < self._errors.mean()
        if self.latest and epoch and fewer:
            self._errors = judged.errors

    def _wins(self, judged: Judged, loss: float) -> bool:
        if self._start is not None:
            gain = self._start - judged.losses
            return loss < self._loss and float(gain.mean()) > _error(gain)
        if self._errors is not None:
            behind = judged.errors - self._errors
            return float(behind.mean()) <= _error(behind)
        return loss < self._loss

    def tree(self) -> Tree:
        """Return what a checkpoint holds of it."""
        loss, least = (value if np.isfinite(value) else None for value in (self._loss, self._least))
        return {
            "best": self.weights,
            "best_epoch": self.epoch,
            "best_loss": loss,
            "start_losses": self._start,
            "least_errors": self._errors,
            "least_loss": least,
            "waited": self.waited,
        }

    def take(self, tree: Tree) -> None:
        """Take back what `tree` returned."""
        self.weights, self.epoch, self._start = tree["best"], tree["best_epoch"], tree.get("start_losses")
        self._errors = tree.get("least_errors")
        self._loss = float("inf") if tree["best_loss"] is None else tree["best_loss"]
        least = tree.get("least_loss")
        self._least = self._loss if least is None else least
        self.waited = int(tree.get("waited", 0))


def _error(differences: torch.Tensor) -> float:
    """Return the standard error of the mean of differences; 0 for a single one."""
    return float(differences.std()) / len(differences) ** 0.5 if len(differences) > 1 else 0.0
