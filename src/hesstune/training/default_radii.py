"""Default radii of the balls: from the network's weights and the training examples, not from one task.

A layer's ball is a share of its weight's norm; the head's, which starts from zero, a multiple of the norm of
the head that penalised cross-entropy fits to the labels as given: as far as these features carry it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.constraints.distance import weight_norm
from hesstune.data.examples import Task
from hesstune.errors import ModelError
from hesstune.inputs.feature_store import frozen_features
from hesstune.methods import method_class
from hesstune.methods._solved import takes_solution
from hesstune.models.load import LoadedModel
from hesstune.reference import Reference
from hesstune.runs.config import FinetuneConfig
from hesstune.training.penalty import FOLDS, penalised_head

__all__ = ["default_radii", "has_default_radii"]

# Of the head's radius, where other layers are trained, too: they come to carry what a head on frozen features
# must. From development tasks of all layers.
BESIDE_OTHERS = 0.25
# A layer of zeros has some room, too; a head that is not linear, or has too few examples, has the second.
LEAST, UNFITTED = 1e-6, 2.0


def has_default_radii(config: FinetuneConfig) -> bool:
    """Tell whether a run has balls whose radii nobody gave, and that are not to be chosen by validation."""
    kind = method_class(config.method)
    return kind.constrained and not kind.solves_head and config.radius is None


def default_radii(
    config: FinetuneConfig, task: Task, loaded: LoadedModel, device: torch.device
) -> dict[str, float]:
    """Return {layer: radius} of every layer that is trained, in the run's norm; the last one's is `head`.

    Args:
        config: The resolved configuration; the method's options `share` and `head_share` count.
        task: With the labels to be trained on.
        loaded: The network at its reference, frozen as the run has it; it is left as it is.
        device: Where features are computed.
    """
    options = config.method_options or {}
    reference = Reference.of(loaded.model)
    trained = {name for name, p in loaded.model.named_parameters() if p.requires_grad}
    # Where biases or norms alone are trained no layer moves, and any ball will do.
    trained = trained & set(reference.layers()) or set(reference.layers()) - {loaded.head_layer}
    radii = {
        name: max(options["share"] * weight_norm(reference[name], config.norm), LEAST)
        for name in reference.layers()
        if name in trained and name != loaded.head_layer
    }
    if loaded.head_layer in trained:
        fitted = _fitted(config, task, loaded, device)
        size = None if fitted is None else weight_norm(torch.from_numpy(fitted), config.norm)
        room = UNFITTED if size is None else max(options["head_share"] * size, LEAST)
        radii["head"] = room * BESIDE_OTHERS if radii else room
    return radii or {"head": UNFITTED}


def _fitted(
    config: FinetuneConfig, task: Task, loaded: LoadedModel, device: torch.device
) -> NDArray[np.float64] | None:
    """Return the weight of the penalised head, (K, D), or None where none can be fitted."""
    part = task.train
    try:
        features = frozen_features(loaded, part, device, config.max_length)
    except ModelError:  # the head is not the last operation
        return None
    head = loaded.model.get_submodule(loaded.head)
    if len(part) < FOLDS or not takes_solution(head, task.k, features.shape[1]):
        return None
    assert part.labels is not None
    soft = part.soft if config.soft_labels else None
    targets = np.eye(task.k)[part.labels] if soft is None else soft
    return np.ascontiguousarray(penalised_head(features, targets, config.seed)[1].T)
