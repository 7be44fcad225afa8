"""Layer-wise constraint alone: cross-entropy inside a ball around the reference.

Source: the paper, section 4; Gouk et al. 2021 for the MARS norm; `--radius-scale` for radii that
grow with depth, as in the paper's code.
"""

from __future__ import annotations

from collections.abc import Mapping

from hesstune.constraints.distance import (
    DistanceConstraint,
    depth_scaled,
    resolve_radii,
    trained_matrices,
)
from hesstune.errors import listed
from hesstune.methods._base import Method
from hesstune.methods._setup import MethodSetup, Option

TASKS = "development tasks of benchmarks/field/tasks.py"
# Options of the radii that are made where none is given.
RADII = {
    "head_share": Option(
        2.0,
        "of the norm of the head that penalised cross-entropy fits: the radius of a head that is trained "
        f"alone, of which a head beside other layers has a quarter; {TASKS}",
        low=1e-6,
        search=(0.5, 8.0),
        log=True,
    ),
    "layer_share": Option(
        0.003,
        "of a layer's norm: the radius of a layer that is not the head; pictures and sentences, 12 and 40 "
        "epochs",
        low=1e-9,
        search=(0.0005, 0.05),
        log=True,
    ),
}


def unheard(radius: object, head_only: bool) -> tuple[str, ...]:
    """Return the options of RADII that have no effect beside the radii that were asked for."""
    if isinstance(radius, float | Mapping):
        return tuple(RADII)
    return ("layer_share",) if head_only else ()


class Constraint(Method):
    """Cross-entropy; after every optimizer step each layer is projected back into its ball."""

    shards = True
    constrained = True
    head_penalty = 0.0
    own_options = dict(RADII)

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        assert setup.radius is not None
        radius = setup.radius
        if setup.radius_scale != 1.0:
            layers = setup.reference.layers()
            heads = [name for name in layers if setup.in_head(name)]
            radius = depth_scaled(resolve_radii(layers, radius), layers, setup.radius_scale, heads)
        self.constraint = DistanceConstraint(setup.model, setup.reference, radius, setup.norm, include=())

    def after_step(self) -> None:
        """Project every layer outside its ball."""
        self.constraint.project_()

    def notes(self) -> list[str]:
        """Name what trains outside all balls because it is no layer of a known kind."""
        layers = set(self.setup.reference.layers())
        loose = [name for name, _ in trained_matrices(self.setup.model) if name not in layers]
        return (
            [f"trained, but held in no ball, as of no known kind of layer: {listed(loose)}"] if loose else []
        )

    def radii(self) -> dict[str, float]:
        """Return the radius of every layer's ball."""
        return dict(self.constraint.radii)


METHOD = Constraint
