"""L2-SP: cross-entropy plus α/2 ‖w − w⁽ˢ⁾‖² + β/2 ‖head − its start‖².

Source: Li, Grandvalet, Davoine 2018, equation 2.
"""

from __future__ import annotations

import torch

from hesstune.constraints.penalty import StartingPointPenalty
from hesstune.methods._base import Method
from hesstune.methods._setup import MethodSetup, Option

SOURCE = "Li et al. 2018, section 4: alpha within 1e-3 … 1, beta 0.01"


class L2SP(Method):
    """Cross-entropy with a quadratic pull towards the starting point."""

    kind = "l2"
    head_penalty = 0.0
    own_options = {
        "alpha": Option(0.1, SOURCE, search=(1e-3, 1.0), log=True),
        "beta": Option(0.01, SOURCE, search=(1e-4, 0.1), log=True),
    }

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        self._penalty = StartingPointPenalty(
            setup.model, setup.reference, self.kind, head=setup.in_head, **self.options
        )

    def penalty(self) -> torch.Tensor:
        """Return the pull towards the reference."""
        return self._penalty()


METHOD = L2SP
