"""WiSE-FT: after training, W ← (1 − α)·W⁽ᵖ⁾ + α·W, between the probed and the fine-tuned weights.

Source: Wortsman et al. 2022, equation 1, α = 0.5. A classifier without a text tower has no zero-shot
head, so W⁽ᵖ⁾ are the weights after a phase of linear probing, as for LP-FT.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from hesstune.methods._setup import MethodSetup, Option
from hesstune.methods.lp_ft import LPFT
from hesstune.storage.tensors import Tree


class WiSEFT(LPFT):
    """LP-FT whose end is averaged with the end of its first phase."""

    own_options = {
        **LPFT.own_options,
        "alpha": Option(0.5, "Wortsman et al. 2022, section 4", high=1.0, search=(0.1, 0.9)),
    }

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        self.probed: dict[str, torch.Tensor] = {}

    def start_epoch(self, epoch: int, predict: Callable[[nn.Module], torch.Tensor]) -> None:
        """Keep the weights where probing ends."""
        super().start_epoch(epoch, predict)
        if epoch <= self.probing:
            self.probed = {name: p.detach().clone() for name, p in self.trained.items()}

    @torch.no_grad()
    def finish(self) -> None:
        """Average."""
        super().finish()
        for name, parameter in self.trained.items():
            parameter.lerp_(self.probed[name].to(parameter), 1.0 - self.options["alpha"])

    def state(self) -> Tree:
        """Return the weights at the end of probing."""
        return {"probed": self.probed}

    def load_state(self, state: Tree) -> None:
        """Take them back."""
        self.probed = state["probed"]


METHOD = WiSEFT
