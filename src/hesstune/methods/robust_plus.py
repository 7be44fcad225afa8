"""robust+: the consistent loss inside layer-wise balls, with a memory of each example's early predictions.

The consistent loss is right in expectation but not example by example; early-learning regularisation
holds every prediction near the running average of its own past, which the noise has moved less. The
constraint keeps both from running away, its radii chosen on noisy validation (`--radius auto`).
Source: Ju, Li, Zhang 2022, Algorithm 1, for loss and constraint; Liu et al. 2020, equation 6, for the
memory, with λ = 1 in place of their 3 for plain cross-entropy, chosen on development splits of four
tasks with weak labels; β = 0.7 as there.
"""

from __future__ import annotations

from typing import Any

from hesstune.methods._setup import Option
from hesstune.methods.constraint import RADII
from hesstune.methods.elr import EarlyLearning
from hesstune.methods.robust import Robust


class RobustPlus(EarlyLearning, Robust):
    """Warm-up by cross-entropy, then the consistent loss; the memory's penalty and the balls all along."""

    shards = False
    head_penalty = 0.0
    own_options = {
        **RADII,
        **EarlyLearning.own_options,
        "lambda": Option(1.0, "development splits of weakly labelled tasks", search=(0.1, 10.0), log=True),
    }

    @classmethod
    def defaults(cls, head_only: bool) -> dict[str, Any]:
        """Return the choice of radii: from noisy validation, where the user gives none."""
        return {"radius": "auto"}


METHOD = RobustPlus
