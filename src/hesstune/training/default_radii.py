"""Default radii of the balls: of a head alone by the training examples, else constants.

A head that is trained alone starts from zero, and its ball has a multiple of the norm of the head that
penalised cross-entropy fits to the labels as given: as far as these features carry it. Where other layers
are trained, too, shares of their norms were tried instead: on development tasks now better, now far worse
than the constants, which come from one demo.
"""

from __future__ import annotations

import torch

from hesstune.constraints.distance import weight_norm
from hesstune.data.examples import Task
from hesstune.methods import method_class
from hesstune.methods.constraint import WHOLE
from hesstune.models.load import LoadedModel
from hesstune.runs.config import FinetuneConfig
from hesstune.training.penalty import penalised_head_of

__all__ = ["default_radii", "has_default_radii"]

# A head of zeros has some room, too; one that is not linear, or has too few examples, has the second.
LEAST, UNFITTED = 1e-6, 2.0


def has_default_radii(config: FinetuneConfig) -> bool:
    """Tell whether a run has balls whose radii nobody gave, and that are not to be chosen by validation."""
    kind = method_class(config.method)
    return kind.constrained and not kind.solves_head and config.radius is None


def default_radii(
    config: FinetuneConfig, task: Task, loaded: LoadedModel, device: torch.device
) -> dict[str, float]:
    """Return {pattern: radius}, the last layer as `head`, in the run's norm.

    Args:
        config: The resolved configuration; the method's option `head_share` counts.
        task: With the labels to be trained on.
        loaded: The network at its reference; it is left as it is.
        device: Where features are computed.
    """
    if config.train != "head":
        return dict(WHOLE)
    fitted = penalised_head_of(config, task, loaded, device)
    if fitted is None:
        return {"head": UNFITTED}
    share, weight = (config.method_options or {})["head_share"], torch.from_numpy(fitted[1]).T
    return {"head": max(share * weight_norm(weight, config.norm), LEAST)}
