"""Features of images in front of the head of a pretrained network, kept on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hesstune.data.examples import Examples
from hesstune.data.images import FileImages
from hesstune.inputs.feature_store import FeatureStore, frozen_features, sharing
from hesstune.inputs.image_inputs import to_channels_last
from hesstune.models.load import load_model
from hesstune.runtime.device import pick_device

__all__ = ["cache_folder", "image_features"]


def cache_folder(cache: str | Path | None = None) -> Path:
    """Return the folder for things that can be computed again: $XDG_CACHE_HOME/hesstune by default."""
    if cache is not None:
        return Path(cache)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hesstune"


def image_features(
    paths: Sequence[Path],
    *,
    model: str = "efficientnet_lite0",
    image_size: int = 96,
    cache: str | Path | None = None,
    device: str = "cpu",
) -> NDArray[np.float32]:
    """Return what the head of a pretrained network is given for each image, (N, D) float32.

    Features are read from `cache` where the same weights have seen files of the same contents, in this
    order, at the same size before; else images are decoded a batch at a time.

    Args:
        paths: Image files.
        model: See `hesstune.models.load.load_model`.
        image_size: Side in pixels that images are brought to.
        cache: Folder; None takes `cache_folder()`.
        device: Where to compute.

    Raises:
        DataError: If an image cannot be decoded.
        ModelError: If the head is not the network's last operation.
        RunError: If the cache cannot be written.
    """
    loaded, target = load_model(model, 2), pick_device(device)
    to_channels_last(loaded.model, target)
    source = FileImages(paths, image_size)
    examples = Examples(source, np.arange(len(paths)), [str(p) for p in paths], None)
    with sharing(FeatureStore(cache_folder(cache) / "features")):
        return frozen_features(loaded, examples, target)
