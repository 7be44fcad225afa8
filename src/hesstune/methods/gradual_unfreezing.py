"""Gradual unfreezing: the head first, then ever more layers from the top.

Source: Howard and Ruder 2018, section 3.3 (one layer group an epoch). Deep networks have more layers
than a short run has epochs, so the layers thaw evenly over a share of the epochs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from hesstune.methods._base import Method
from hesstune.methods._setup import MethodSetup, Option


class GradualUnfreezing(Method):
    """Cross-entropy; parameters thaw from the last to the first."""

    toggles_requires_grad = True
    own_options = {"share": Option(0.5, "half of the epochs: all layers then train as long", high=1.0)}

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        self.body = [p for name, p in setup.trained.items() if not setup.in_head(name)]

    def start_epoch(self, epoch: int, predict: Callable[[nn.Module], torch.Tensor]) -> None:
        """Thaw the share of the parameters, from the top, that this epoch has reached."""
        over = self.options["share"] * self.setup.epochs
        thawed = math.ceil(min(1.0, epoch / over if over else 1.0) * len(self.body))
        for at, parameter in enumerate(reversed(self.body)):
            parameter.requires_grad_(at < thawed)

    def notes(self) -> list[str]:
        """Say where nothing is frozen or nothing thaws."""
        if not self.body:
            return ["the head is all that trains, so nothing thaws: plain fine-tuning of the head"]
        if self.setup.epochs == 1 and self.options["share"]:
            return ["in one epoch no layer below the head thaws; give --epochs 2 or more"]
        return []

    def finish(self) -> None:
        """Thaw the rest."""
        for parameter in self.body:
            parameter.requires_grad_(True)


METHOD = GradualUnfreezing
