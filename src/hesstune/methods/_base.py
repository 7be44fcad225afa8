"""What every fine-tuning method offers to the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from hesstune.noise.matrix import NoiseMatrix
    from hesstune.reference import Reference

__all__ = ["Method", "MethodSetup"]


@dataclass(frozen=True)
class MethodSetup:
    """What a method is built from.

    Attributes:
        model: The whole network.
        reference: Its weights at the start.
        noise: The noise matrix believed, or None.
        counts: (K,) how many training examples carry each (noisy) label.
        radius: The constraint's radii, by layer pattern or one for all; None where unconstrained.
        norm: The constraint's norm.
        warmup_epochs: Epochs of plain cross-entropy first, for methods that have a warm-up.
        balance: `none`, `weights` or `sampler`: how the risk is made class-balanced.
    """

    model: nn.Module
    reference: Reference
    noise: NoiseMatrix | None
    counts: NDArray[np.int64]
    radius: float | Mapping[str, float] | None
    norm: str
    warmup_epochs: int
    balance: str = "none"


class Method:
    """Plain cross-entropy; other methods override what they change."""

    needs_noise_matrix: ClassVar[bool] = False
    constrained: ClassVar[bool] = False

    def __init__(self, setup: MethodSetup) -> None:
        from hesstune.methods._losses import cross_entropy

        self.setup = setup
        self._cross_entropy = cross_entropy(setup)

    @classmethod
    def default_radius(cls, train: str) -> dict[str, float] | None:
        """Return the radii used where the user gives none; keys are patterns, `head` the last layer."""
        if not cls.constrained:
            return None
        # From the digits demo: the head moves most and starts from zero. With frozen features the
        # head alone must carry the task, so its ball is larger.
        return {"head": 2.0} if train == "head" else {"head": 0.25, "*": 0.05}

    def loss(self, logits: torch.Tensor, targets: torch.Tensor, epoch: int) -> torch.Tensor:
        """Return the mean training loss of a batch: (N, K) logits, (N,) noisy targets."""
        return self._cross_entropy(logits, targets)

    def after_step(self) -> None:
        """Act after a real optimizer step."""
