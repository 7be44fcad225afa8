"""Plain fine-tuning, and methods that change the optimizer, a penalty or the inputs."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from hesstune.constraints.distance import StartingPointPenalty
from hesstune.methods._base import Batch, Method, MethodSetup, Option, Tier


class Vanilla(Method):
    """Plain fine-tuning: cross-entropy on the labels as they are."""

    tier = "baseline"
    shards = True


class EarlyStopping(Method):
    """Early stopping: cross-entropy, ended when validation no longer improves; the best epoch is kept.

    Validation labels are as noisy as the training labels; where F is told, it is judged how well they are
    predicted under F. Source: Li, Soltanolkotabi, Oymak 2020 for label noise; patience as in Prechelt 1998.
    """

    tier = "baseline"
    shards = True

    @classmethod
    def defaults(cls, head_only: bool) -> dict[str, Any]:
        """Return the patience and the rule for which weights are kept."""
        return {"patience": 3, "select": "best"}


class WeightDecay(Method):
    """Weight decay: cross-entropy by AdamW, whose decay pulls weights to zero, not to the reference.

    Source: Loshchilov and Hutter 2019; 0.01 is the default of torch's AdamW. `--weight-decay` sets it.
    """

    tier = "baseline"
    shards = True

    @classmethod
    def defaults(cls, head_only: bool) -> dict[str, Any]:
        """Return the optimizer and its decay."""
        return {"optimizer": "adamw", "weight_decay": 0.01}


L2_SP_SOURCE = "Li et al. 2018, section 4: alpha within 1e-3 … 1, beta 0.01"


class L2SP(Method):
    """L2-SP: cross-entropy plus α/2 ‖w − w⁽ˢ⁾‖² + β/2 ‖head − its start‖².

    Source: Li, Grandvalet, Davoine 2018, equation 2.
    """

    tier: ClassVar[Tier] = "baseline"
    kind = "l2"
    head_penalty = 0.0
    own_options = {
        "alpha": Option(0.1, L2_SP_SOURCE, search=(1e-3, 1.0), log=True),
        "beta": Option(0.01, L2_SP_SOURCE, search=(1e-4, 0.1), log=True),
    }

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        self._penalty = StartingPointPenalty(
            setup.model, setup.reference, self.kind, head=setup.in_head, **self.options
        )

    def penalty(self) -> torch.Tensor:
        return self._penalty()


class L1SP(L2SP):
    """L1-SP: cross-entropy plus α ‖w − w⁽ˢ⁾‖₁ + β ‖head − its start‖₁.

    Source: Li, Grandvalet, Davoine 2018, equation 4.
    """

    tier: ClassVar[Tier] = "research"
    kind = "l1"
    own_options = {
        "alpha": Option(1e-4, "the order of L1 penalties for networks", search=(1e-6, 1e-2), log=True),
        "beta": Option(1e-4, "as alpha", search=(1e-6, 1e-2), log=True),
    }


def beta_draw(alpha: float) -> float:
    """Draw from Beta(α, α) by torch's global generator; 1 where α is 0."""
    return float(torch.distributions.Beta(alpha, alpha).sample()) if alpha else 1.0


def mixed(inputs: torch.Tensor, order: torch.Tensor, share: float) -> torch.Tensor:
    """Return share·inputs + (1 − share)·inputs[order]."""
    return share * inputs + (1.0 - share) * inputs[order]


class Mixup(Method):
    """Mixup: train on λx + (1 − λ)x′ with loss λ·ℓ(y) + (1 − λ)·ℓ(y′), λ ~ Beta(α, α) for each batch.

    Source: Zhang et al. 2018, equation 1; α = 0.2 is their value for ImageNet.
    """

    tier = "baseline"
    shards = True
    takes_soft = False
    mixes_inputs = True
    own_options = {
        "alpha": Option(0.2, "Zhang et al. 2018, section 3.1 (ImageNet)", search=(0.1, 8.0), log=True)
    }

    def batch_loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        share = beta_draw(self.options["alpha"])
        order = torch.randperm(len(batch.targets)).to(batch.targets.device)
        assert isinstance(batch.inputs, torch.Tensor)
        logits = batch.logits(inputs=mixed(batch.inputs, order, share))
        first = self.loss(logits, batch.targets, batch.epoch)
        second = self.loss(logits, batch.targets[order], batch.epoch)
        return share * first + (1.0 - share) * second, logits


METHODS = {
    "vanilla": Vanilla,
    "early_stopping": EarlyStopping,
    "weight_decay": WeightDecay,
    "l2_sp": L2SP,
    "l1_sp": L1SP,
    "mixup": Mixup,
}
