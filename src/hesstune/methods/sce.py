"""Symmetric cross-entropy: α·CE + β·RCE, cross-entropy of label and prediction with roles exchanged.

Source: Wang et al. 2019, section 3.2; α = 0.1, β = 1 for ten classes.
"""

from __future__ import annotations

from hesstune.losses.robust import SymmetricCrossEntropy
from hesstune.methods._robust_loss import Loss, RobustLoss
from hesstune.methods._setup import Option

SOURCE = "Wang et al. 2019, section 4.3 (CIFAR-10)"


class SCE(RobustLoss):
    """SCE instead of cross-entropy."""

    own_options = {
        "alpha": Option(0.1, SOURCE, search=(0.01, 6.0), log=True),
        "beta": Option(1.0, SOURCE, search=(0.1, 1.0), log=True),
    }

    def make(self) -> Loss:
        """Return the loss of each example."""
        return SymmetricCrossEntropy(self.options["alpha"], self.options["beta"], reduction="none")


METHOD = SCE
