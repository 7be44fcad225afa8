"""What a linear head is fitted to, where a network has one: the features before it, and targets."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.data.examples import Examples
from hesstune.errors import ModelError
from hesstune.inputs.feature_store import frozen_features
from hesstune.methods._heads import takes_solution
from hesstune.models.load import LoadedModel

__all__ = ["given_targets", "head_features"]


def head_features(
    loaded: LoadedModel, part: Examples, k: int, device: torch.device, max_length: int
) -> NDArray[np.float32] | None:
    """Return the inputs of the head, (N, D); None where it is no linear layer at the network's end.

    Args:
        loaded: The network; it is left as it is.
        part: The examples.
        k: Number of classes.
        device: Where features are computed.
        max_length: Tokens of a text at most.
    """
    try:
        features = frozen_features(loaded, part, device, max_length)
    except ModelError:  # the head is not the last operation
        return None
    head = loaded.model.get_submodule(loaded.head)
    if loaded.other_heads:
        return None
    return features if takes_solution(head, k, features.shape[1]) else None


def given_targets(part: Examples, k: int, soft: bool) -> NDArray[np.float64]:
    """Return what a head is fitted to, (N, K): soft labels where they are wanted and there, else one-hot."""
    if soft and part.soft is not None:
        return part.soft
    assert part.labels is not None
    return np.eye(k)[part.labels]
