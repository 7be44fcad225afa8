"""Features of a frozen network: what its head is given for each example."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.data.examples import Examples
from hesstune.errors import ModelError
from hesstune.models.load import LoadedModel
from hesstune.training.feeds import cached_features, make_feed

__all__ = ["frozen_features"]


def frozen_features(
    loaded: LoadedModel, examples: Examples, device: torch.device, max_length: int = 128
) -> NDArray[np.float32]:
    """Return the inputs of the network's head, (N, D) float32, in eval mode.

    Raises:
        ModelError: If the head is not the network's last operation, so that it has no features.
    """
    feed = make_feed(examples, loaded, device, max_length=max_length)
    found = cached_features(loaded.model, loaded.model.get_submodule(loaded.head), feed)
    if found is None:
        raise ModelError(
            "the head is not the network's last operation on its features, so there are no features to work "
            "with; use another model, or give --noise-matrix a rate or a file"
        )
    return found.features.float().cpu().numpy()
