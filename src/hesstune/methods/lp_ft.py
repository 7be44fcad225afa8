"""LP-FT: the head alone first (linear probing), then everything that trains.

A head that fits before the features move distorts them less. Source: Kumar et al. 2022, section 3.4;
half of the epochs each. With `--train head` it is plain fine-tuning.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from hesstune.methods._base import Method
from hesstune.methods._setup import MethodSetup, Option


class LPFT(Method):
    """Cross-entropy in two phases; the head's phase has a larger learning rate."""

    toggles_requires_grad = True
    own_options = {
        "probe": Option(0.5, "Kumar et al. 2022: half of the epochs each", high=1.0, search=(0.1, 0.9)),
        "head_lr": Option(100.0, "the ratio of --lr's defaults for a head and for all layers", low=1e-3),
    }

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        self.trained = setup.trained
        self.body = [p for name, p in self.trained.items() if not setup.in_head(name)]
        self.probing = round(self.options["probe"] * setup.epochs)

    def start_epoch(self, epoch: int, predict: Callable[[nn.Module], torch.Tensor]) -> None:
        """Freeze all but the head while probing."""
        for parameter in self.body:
            parameter.requires_grad_(epoch >= self.probing)

    def lr_factor(self, epoch: int) -> float:
        """Return the factor for the head's phase."""
        return self.options["head_lr"] if self.body and epoch < self.probing else 1.0

    def notes(self) -> list[str]:
        """Say where one of the two phases is missing."""
        if not self.body:
            return ["the head is all that trains, so there is one phase: plain fine-tuning of the head"]
        epochs = self.setup.epochs
        if 0 < self.probing < epochs:
            return []
        phase = "probing is left out" if self.probing == 0 else "nothing but the head is trained"
        return [f"of the two phases of {epochs} epoch{'s' * (epochs > 1)} one is empty: {phase}"]

    def finish(self) -> None:
        """Thaw what was frozen."""
        for parameter in self.body:
            parameter.requires_grad_(True)


METHOD = LPFT
