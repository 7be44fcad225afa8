"""Features of frozen backbones, computed once for all runs that share them, and decoded images likewise."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray

from hesstune.data.examples import Examples, Texts
from hesstune.data.images import DecodedImages
from hesstune.data.load import reusing_decoded
from hesstune.forward import Inputs
from hesstune.inputs.batches import ModelInputs
from hesstune.inputs.features import FeatureInputs, cached_features
from hesstune.models.load import LoadedModel
from hesstune.storage.tensors import load_tree, save_tree

__all__ = ["FeatureStore", "features_of", "sharing"]

_ACTIVE: ContextVar[FeatureStore | None] = ContextVar("feature_store", default=None)


class FeatureStore:
    """Features by content: of one backbone (its weights, but for the head) on one set of inputs.

    Rows are computed when a run first needs them and kept in `folder`, under a lock, so that runs in
    several processes share them. The key is a digest of the backbone's tensors, the normalisation and
    the inputs themselves: a changed image or weight is never served from the store.

    Args:
        folder: Where the features are kept; made when needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._memory: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._digests: dict[int, tuple[object, str]] = {}
        self.computed = 0

    def feed(
        self, loaded: LoadedModel, part: Examples, feed: ModelInputs, max_length: int
    ) -> FeatureInputs | None:
        """Return the features of one part, computing the rows that are missing.

        Returns None where the features alone do not determine the logits (see `cached_features`), or
        where the inputs are not held in memory and so have no digest.
        """
        inputs = self._digest_of(part, max_length)
        if inputs is None:
            return cached_features(loaded.model, loaded.model.get_submodule(loaded.head), feed)
        if not len(part):
            return FeatureInputs(torch.zeros((0, 1)))
        key = _sha(_backbone_digest(loaded), inputs)
        held = self._memory.get(key)
        if held is None or not bool(held[0][part.rows].all()):
            held = self._complete(key, loaded, part, feed)
            if held is None:
                return None
            self._memory[key] = held
        device = next(loaded.model.parameters()).device
        return FeatureInputs(held[1][torch.from_numpy(part.rows)].to(device))

    def _complete(
        self, key: str, loaded: LoadedModel, part: Examples, feed: ModelInputs
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Read what other processes have computed, compute the rest of this part, and write it back."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{key[:32]}.safetensors"
        with FileLock(self.folder / f"{key[:32]}.lock"):
            if path.is_file():
                tree = load_tree(path)
                have, features = tree["have"], tree["features"]
            else:
                have, features = torch.zeros(_size(part), dtype=torch.bool), torch.zeros(0, 0)
            missing = np.flatnonzero(~have[torch.from_numpy(part.rows)].numpy())
            if len(missing):
                head = loaded.model.get_submodule(loaded.head)
                found = cached_features(loaded.model, head, _Some(feed, missing))
                if found is None:
                    return None
                self.computed += len(missing)
                if not features.numel():
                    features = torch.zeros(len(have), found.features.shape[1])
                rows = torch.from_numpy(part.rows[missing])
                features[rows], have[rows] = found.features.cpu(), True
                save_tree(path, {"have": have, "features": features})
        return have, features

    def _digest_of(self, part: Examples, max_length: int) -> str | None:
        source = part.source
        # The source is kept beside its digest: an id may come again once its object is gone.
        if id(source) not in self._digests:
            if isinstance(source, DecodedImages):
                found = _sha(source.array.numpy())
            elif isinstance(source, Texts):
                found = _sha(*(repr((row, max_length)) for row in source.rows))
            else:
                return None
            self._digests[id(source)] = (source, found)
        return self._digests[id(source)][1]


class _Some:
    """Some rows of another feed."""

    def __init__(self, feed: ModelInputs, rows: NDArray[np.int64]) -> None:
        self._feed, self._rows = feed, rows

    def __len__(self) -> int:
        return len(self._rows)

    def inputs(self, indices: NDArray[np.int64], augment: bool = False, view: int = 0) -> Inputs:
        """Return the inputs of these rows."""
        return self._feed.inputs(self._rows[indices])


def _size(part: Examples) -> int:
    source = part.source
    return len(source.array) if isinstance(source, DecodedImages) else len(source.rows)  # type: ignore[union-attr]


def _backbone_digest(loaded: LoadedModel) -> str:
    head = f"{loaded.head}." if loaded.head else ""
    tensors = {**dict(loaded.model.named_parameters()), **dict(loaded.model.named_buffers())}
    parts: list[str | NDArray[np.generic]] = [repr((loaded.mean, loaded.std))]
    for name, tensor in sorted(tensors.items()):
        if not head or not name.startswith(head):
            parts += [name, tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy()]
    return _sha(*parts)


def _sha(*parts: str | NDArray[np.generic]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode())
        else:
            digest.update(repr((part.shape, str(part.dtype))).encode())
            digest.update(np.ascontiguousarray(part).data)
        digest.update(b"\0")
    return digest.hexdigest()


@contextlib.contextmanager
def sharing(store: FeatureStore) -> Iterator[FeatureStore]:
    """Let every run of this thread take features from a store, and decode each data set once."""
    token = _ACTIVE.set(store)
    try:
        with reusing_decoded():
            yield store
    finally:
        _ACTIVE.reset(token)


def features_of(
    loaded: LoadedModel, parts: dict[str, Examples], feeds: dict[str, ModelInputs], max_length: int
) -> dict[str, ModelInputs] | None:
    """Return the inputs of the head for every part, from the shared store where there is one.

    Returns None where the features alone do not determine the logits.
    """
    store, head = _ACTIVE.get(), loaded.model.get_submodule(loaded.head)
    found: dict[str, ModelInputs] = {}
    for name, feed in feeds.items():
        made = (
            cached_features(loaded.model, head, feed)
            if store is None
            else store.feed(loaded, parts[name], feed, max_length)
        )
        if made is None:
            return None
        found[name] = made
    return found
