"""Co-teaching: two networks; each learns from the examples with the other's smallest losses.

The share kept falls from 1 to 1 − τ, τ the noise rate. Source: Han et al. 2018, algorithm 1,
R(T) = 1 − min(τ·T/T_k, τ).
"""

from __future__ import annotations

import math

import torch

from hesstune.methods._setup import Batch, Option
from hesstune.methods._two_networks import TwoNetworks


class CoTeaching(TwoNetworks):
    """Cross-entropy on the examples that the other network finds easy; the first network is kept."""

    needs_noise_matrix = True
    own_options = {"ramp": Option(0.3, "T_k as a share of the epochs; Han et al. 2018: 10 epochs", high=1.0)}

    def kept(self, epoch: int) -> float:
        """Return R(T), the share of a batch that is kept in an epoch."""
        assert self.setup.noise_matrix is not None
        rate, over = self.setup.noise_matrix.rate, self.options["ramp"] * self.setup.epochs
        return 1.0 - rate * (min(1.0, (epoch + 1) / over) if over else 1.0)

    def batch_loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the two networks' losses on the examples chosen for them, summed."""
        logits = [batch.logits(), batch.logits(self.twin)]
        losses = [
            torch.nn.functional.cross_entropy(x.float(), batch.targets, reduction="none") for x in logits
        ]
        count = max(1, math.ceil(self.kept(batch.epoch) * len(batch.targets)))
        easy = [values.detach().argsort(stable=True)[:count] for values in losses]
        return losses[0][easy[1]].mean() + losses[1][easy[0]].mean(), logits[0]


METHOD = CoTeaching
