"""Active-passive loss: α·NCE + β·RCE, both constant when summed over all labels.

Source: Ma et al. 2020, section 4; α = β = 1 for ten classes.
"""

from __future__ import annotations

from hesstune.losses.robust import ActivePassiveLoss
from hesstune.methods._robust_loss import Loss, RobustLoss
from hesstune.methods._setup import Option

SOURCE = "Ma et al. 2020, section 4.1 (CIFAR-10)"


class APL(RobustLoss):
    """NCE + RCE instead of cross-entropy."""

    own_options = {
        "alpha": Option(1.0, SOURCE, search=(0.1, 10.0), log=True),
        "beta": Option(1.0, SOURCE, search=(0.1, 10.0), log=True),
    }

    def make(self) -> Loss:
        """Return the loss of each example."""
        return ActivePassiveLoss(self.options["alpha"], self.options["beta"], reduction="none")


METHOD = APL
