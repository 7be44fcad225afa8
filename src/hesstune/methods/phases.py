"""Methods that train some parameters before others."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import nn

from hesstune.methods._base import Method, MethodSetup, Option, Tier
from hesstune.storage.tensors import Tree


class LPFT(Method):
    """LP-FT: the head alone first (linear probing), then everything that trains.

    A head that fits before the features move distorts them less. Source: Kumar et al. 2022, section 3.4;
    half of the epochs each. With `--train head` it is plain fine-tuning.
    """

    tier: ClassVar[Tier] = "baseline"
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


class WiSEFT(LPFT):
    """WiSE-FT: after training, W ← (1 − α)·W⁽ᵖ⁾ + α·W, between the probed and the fine-tuned weights.

    Source: Wortsman et al. 2022, equation 1, α = 0.5. A classifier without a text tower has no zero-shot
    head, so W⁽ᵖ⁾ are the weights after a phase of linear probing, as for LP-FT.
    """

    tier: ClassVar[Tier] = "research"
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
        return {"probed": self.probed}

    def load_state(self, state: Tree) -> None:
        self.probed = state["probed"]


class GradualUnfreezing(Method):
    """Gradual unfreezing: the head first, then ever more layers from the top.

    Source: Howard and Ruder 2018, section 3.3 (one layer group an epoch). Deep networks have more layers
    than a short run has epochs, so the layers thaw evenly over a share of the epochs.
    """

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


METHODS = {"lp_ft": LPFT, "wise_ft": WiSEFT, "gradual_unfreezing": GradualUnfreezing}
