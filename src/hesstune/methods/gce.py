"""Generalised cross-entropy: (1 − p_y^q)/q, between cross-entropy (q → 0) and mean absolute error.

Source: Zhang and Sabuncu 2018, equation 6, q = 0.7.
"""

from __future__ import annotations

from hesstune.losses.robust import GeneralizedCrossEntropy
from hesstune.methods._base import RESISTANT
from hesstune.methods._robust_loss import Loss, RobustLoss
from hesstune.methods._setup import Option


class GCE(RobustLoss):
    """GCE instead of cross-entropy."""

    head_penalty = RESISTANT
    own_options = {
        "q": Option(0.7, "Zhang and Sabuncu 2018, section 4", low=1e-6, high=1.0, search=(0.1, 1.0))
    }

    def make(self) -> Loss:
        """Return the loss of each example."""
        return GeneralizedCrossEntropy(self.options["q"], reduction="none")


METHOD = GCE
