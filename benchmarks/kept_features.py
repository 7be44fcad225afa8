"""Features of images in front of the head of a pretrained network, kept on disk."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray

from hesstune.data.examples import Examples
from hesstune.data.images import decode_all
from hesstune.errors import DataError, RunError
from hesstune.inputs.features import frozen_features
from hesstune.inputs.image_inputs import to_channels_last
from hesstune.models.load import LoadedModel, load_model
from hesstune.runtime.device import pick_device

__all__ = ["cache_folder", "image_features"]

# Raised whenever what is stored, or how it is computed, changes.
FORMAT = 1


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

    Features are read from `cache` where the same weights have seen the same files (by name, size and
    time of change) at the same size before.

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
    loaded = load_model(model, 2)
    folder = cache_folder(cache) / "features"
    file = folder / f"{_key(paths, loaded, image_size)}.npy"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # One at a time: another process that wants the same features waits for them.
        with FileLock(folder / ".lock"):
            if (kept := _read(file, len(paths))) is not None:
                return kept
            found = _computed(paths, loaded, image_size, device)
            with tempfile.NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as part:
                np.save(part, found)
            Path(part.name).replace(file)
    except OSError as error:
        raise RunError(f"cannot keep features in {folder}: {error.strerror or error}") from error
    return found


def _key(paths: Sequence[Path], loaded: LoadedModel, image_size: int) -> str:
    state = loaded.model.state_dict()
    digest = hashlib.sha256(f"{FORMAT} {image_size} {loaded.mean} {loaded.std}".encode())
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    for path in paths:
        found = path.stat()
        digest.update(f"\n{path.resolve()} {found.st_size} {found.st_mtime_ns}".encode())
    return digest.hexdigest()[:32]


def _read(file: Path, count: int) -> NDArray[np.float32] | None:
    """Return kept features; None where there are none, or a damaged file is to be replaced."""
    try:
        kept = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return kept if kept.ndim == 2 and len(kept) == count and kept.dtype == np.float32 else None


def _computed(
    paths: Sequence[Path], loaded: LoadedModel, image_size: int, device: str
) -> NDArray[np.float32]:
    source, bad = decode_all(paths, image_size, cache_mib=1024)
    if bad:
        raise DataError(next(iter(bad.values())))
    target = pick_device(device)
    to_channels_last(loaded.model, target)
    examples = Examples(source, np.arange(len(paths)), [str(p) for p in paths], None)
    return frozen_features(loaded, examples, target)
