"""Forward correction: the likelihood of the noisy label, −log Σ_i F[i, ỹ] p_i.

Source: Patrini et al. 2017, section 4.2. Bounded below, unlike the consistent loss, and without its
variance; unbiased only at its minimum.
"""

from __future__ import annotations

from hesstune.losses.robust import ForwardLoss
from hesstune.methods._base import RESISTANT
from hesstune.methods._robust_loss import Loss, RobustLoss


class Forward(RobustLoss):
    """The noise matrix behind the softmax, with no constraint."""

    needs_noise_matrix = True
    head_penalty = RESISTANT

    def make(self) -> Loss:
        """Return the loss of each example."""
        return ForwardLoss(self.setup.noise_matrix, reduction="none")


METHOD = Forward
