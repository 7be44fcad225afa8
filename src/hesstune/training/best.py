"""Which weights of a run are kept: the last, or the best on validation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from hesstune.storage.tensors import Tree

__all__ = ["Best"]


class Best:
    """The best weights so far, by validation loss.

    A start that was solved is simpler than what steps make of it: these have to beat it by more than one
    standard error of the mean difference.

    Args:
        wanted: Whether the best are kept; else nothing is.
    """

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        self.weights: dict[str, torch.Tensor] | None = None
        self._loss = float("inf")
        # Losses of the validation examples at the solved start, while that is the best.
        self._start: torch.Tensor | None = None

    def offer(
        self, losses: torch.Tensor | None, weights: Callable[[], dict[str, torch.Tensor]], start: bool = False
    ) -> None:
        """Keep the weights if their losses, (N,), of the validation examples are the best.

        Args:
            losses: None where there are no validation examples.
            weights: Copies the weights as they are.
            start: Whether they are of a solved start.
        """
        if not self.wanted or losses is None:
            return
        loss = float(losses.mean())
        if loss >= self._loss:
            return
        if self._start is not None:
            gain = self._start - losses
            if float(gain.mean()) <= float(gain.std()) / len(gain) ** 0.5:
                return
        self.weights, self._loss, self._start = weights(), loss, losses if start else None

    def tree(self) -> Tree:
        """Return what a checkpoint holds of it."""
        loss = self._loss if np.isfinite(self._loss) else None
        return {"best": self.weights, "best_loss": loss, "start_losses": self._start}

    def take(self, tree: Tree) -> None:
        """Take back what `tree` returned."""
        self.weights, self._start = tree["best"], tree.get("start_losses")
        self._loss = float("inf") if tree["best_loss"] is None else tree["best_loss"]
