"""Default radii of the balls: of a head alone by the training examples, else constants.

A head that is trained alone starts from zero, and its ball has a multiple of the norm of the head that
penalised cross-entropy fits to the labels as given: as far as these features carry it. Where other layers
are trained, too, shares of their norms were tried instead: on development tasks now better, now far worse
than the constants, which come from one demo.
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
from hesstune.methods.constraint import WHOLE
from hesstune.models.load import LoadedModel
from hesstune.runs.config import FinetuneConfig
from hesstune.training.penalty import FOLDS, penalised_head

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
    fitted = _fitted(config, task, loaded, device)
    if fitted is None:
        return {"head": UNFITTED}
    share = (config.method_options or {})["head_share"]
    return {"head": max(share * weight_norm(torch.from_numpy(fitted), config.norm), LEAST)}


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
