"""What the network is fed: normalised images, or features computed once before a trained head."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hesstune.data.augment import Augmentation
from hesstune.data.examples import Examples
from hesstune.forward import evaluating, logits_of
from hesstune.models.load import LoadedModel

__all__ = ["FeatureFeed", "Feed", "ImageFeed", "cached_features", "predict_logits", "to_channels_last"]

EVAL_BATCH = 64


def to_channels_last(model: nn.Module, device: torch.device) -> None:
    """Move a network to the device, its 4-d weights channels last: convolutions then run twice as fast."""
    model.to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class Feed(Protocol):
    """Inputs of one part of the data, by example index."""

    def __len__(self) -> int:
        """The number of examples."""

    def inputs(self, indices: NDArray[np.int64], augment: bool = False, view: int = 0) -> torch.Tensor:
        """Return a batch of inputs on the device, augmented for training if asked, by the view's draw."""


class ImageFeed:
    """Normalised images, channels last, on the device."""

    def __init__(
        self,
        examples: Examples,
        loaded: LoadedModel,
        device: torch.device,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.examples = examples
        self.augmentation = augmentation
        self.device = device
        # (x / 255 − mean) / std as one multiply and add.
        std = torch.tensor(loaded.std, device=device)
        self._scale = (1.0 / (255.0 * std)).reshape(1, 3, 1, 1)
        self._shift = (-torch.tensor(loaded.mean, device=device) / std).reshape(1, 3, 1, 1)

    def __len__(self) -> int:
        return len(self.examples)

    def inputs(self, indices: NDArray[np.int64], augment: bool = False, view: int = 0) -> torch.Tensor:
        """Return normalised images, (B, 3, S, S) float32."""
        images = self.examples.images(indices)
        if augment and self.augmentation is not None:
            images = self.augmentation(images, indices, view)
        images = images.to(self.device, memory_format=torch.channels_last)
        return torch.addcmul(self._shift, images.float(), self._scale)


class FeatureFeed:
    """Features in front of the head, computed once."""

    def __init__(self, features: torch.Tensor) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def inputs(self, indices: NDArray[np.int64], augment: bool = False, view: int = 0) -> torch.Tensor:
        """Return features, (B, D); they are the same in every view."""
        return self.features[torch.from_numpy(indices).to(self.features.device)]


@torch.no_grad()
def predict_logits(model: nn.Module, feed: Feed, batch: int = EVAL_BATCH) -> torch.Tensor:
    """Return the logits, (N, K) float32 on the CPU, of every example of a feed, in eval mode."""
    if not len(feed):
        return torch.zeros((0, 0))
    with evaluating(model):
        parts = [
            logits_of(model, feed.inputs(np.arange(start, min(start + batch, len(feed))))).float().cpu()
            for start in range(0, len(feed), batch)
        ]
    return torch.cat(parts)


@torch.no_grad()
def cached_features(model: nn.Module, head: nn.Module, feed: Feed) -> FeatureFeed | None:
    """Compute the inputs of the head for every example, in eval mode.

    Returns:
        The features, or None where the head is not the network's last operation on them, so that
        features alone do not determine the logits.
    """
    seen: list[torch.Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    parts = []
    try:
        with evaluating(model):
            for start in range(0, len(feed), EVAL_BATCH):
                indices = np.arange(start, min(start + EVAL_BATCH, len(feed)))
                seen.clear()
                logits = logits_of(model, feed.inputs(indices))
                if len(seen) != 1 or seen[0].ndim != 2 or len(seen[0]) != len(indices):
                    return None
                if start == 0 and not torch.equal(_apply(head, seen[0]), logits):
                    return None
                parts.append(seen[0])
    finally:
        handle.remove()
    return FeatureFeed(torch.cat(parts)) if parts else FeatureFeed(torch.zeros((0, 1)))


def _apply(head: nn.Module, features: torch.Tensor) -> torch.Tensor:
    # Without the hook's recording: the module's own forward.
    result: torch.Tensor = type(head).forward(head, features)
    return result
