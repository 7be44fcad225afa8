"""Layer-wise constraint alone: cross-entropy inside a ball around the reference.

Source: the paper, section 4; Gouk et al. 2021 for the MARS norm.
"""

from __future__ import annotations

from hesstune.constraints.distance import DistanceConstraint
from hesstune.methods._base import Method, MethodSetup


class Constraint(Method):
    """Cross-entropy; after every optimizer step each layer is projected back into its ball."""

    constrained = True

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        assert setup.radius is not None
        self.constraint = DistanceConstraint(setup.model, setup.reference, setup.radius, setup.norm)

    def after_step(self) -> None:
        """Project every layer outside its ball."""
        self.constraint.project_()


METHOD = Constraint
