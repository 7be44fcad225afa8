"""Default radii of the balls: shares of what the data and the network say, layer by layer.

A head starts from zero, and its ball has a share of the norm of the head that penalised cross-entropy fits to
the labels as given: as far as these features carry it. Any other layer's ball has a share of the layer's own
norm, a small one: the backward-corrected loss is unbounded below, and what balls leave room for, it takes in
long training.
"""

from __future__ import annotations

import torch

from hesstune.constraints.distance import weight_norm
from hesstune.data.examples import Task
from hesstune.methods import method_class
from hesstune.methods.constrained import RADII
from hesstune.models.load import LoadedModel
from hesstune.reference import Reference
from hesstune.runs.config import FinetuneConfig
from hesstune.training.penalty import penalised_head_of

__all__ = ["default_radii", "has_default_radii"]

# A layer of zeros has some room, too; a head that is not linear, or has too few examples, has the second.
LEAST, UNFITTED = 1e-6, 2.0
# What a head has beside other layers, which carry it, too: this part of what it has alone.
BESIDE = 0.25


def has_default_radii(config: FinetuneConfig) -> bool:
    """Tell whether a run has balls whose radii nobody gave, and that are not to be chosen by validation."""
    kind = method_class(config.method)
    return kind.constrained and not kind.solves_head and config.radius is None


def default_radii(
    config: FinetuneConfig, task: Task, loaded: LoadedModel, device: torch.device
) -> dict[str, float]:
    """Return {layer: radius}, the last layer as `head`, in the run's norm.

    Args:
        config: The resolved configuration; the method's options `head_share` and `layer_share` count.
        task: With the labels to be trained on.
        loaded: The network at its reference, frozen but for what trains; it is left as it is.
        device: Where features are computed.
    """
    shares = {name: option.default for name, option in RADII.items()} | (config.method_options or {})
    start = Reference.of(loaded.model)
    trained = {name for name, parameter in loaded.model.named_parameters() if parameter.requires_grad}
    heads = set(loaded.head_layers)
    others = [name for name in start.layers() if name in trained and name not in heads]
    found = {
        name: max(shares["layer_share"] * weight_norm(start[name], config.norm), LEAST) for name in others
    }
    if others and not heads & trained:
        return found
    fitted, radius = penalised_head_of(config, task, loaded, device), UNFITTED
    if fitted is not None:
        weight = torch.from_numpy(fitted[1]).T
        radius = max(shares["head_share"] * weight_norm(weight, config.norm), LEAST)
    return {**found, "head": BESIDE * radius if others else radius}
