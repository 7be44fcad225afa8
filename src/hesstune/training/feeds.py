"""What the network is fed: normalised images, or features computed once before a trained head."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hesstune.data.augment import Augmentation
from hesstune.data.examples import Examples
from hesstune.forward import Inputs, evaluating, logits_of
from hesstune.models.load import LoadedModel
from hesstune.training.texts import TextFeed, length_batches

__all__ = [
    "FeatureFeed",
    "Feed",
    "ImageFeed",
    "batches_of",
    "cached_features",
    "make_feed",
    "predict_logits",
    "to_channels_last",
]

EVAL_BATCH = 64


def to_channels_last(model: nn.Module, device: torch.device) -> None:
    """Move a network to the device, its 4-d weights channels last: convolutions then run twice as fast."""
    model.to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class Feed(Protocol):
    """Inputs of one part of the data, by example index."""

    def __len__(self) -> int:
        """The number of examples."""

    def inputs(self, indices: NDArray[np.int64], augment: bool = False, view: int = 0) -> Inputs:
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


def make_feed(
    examples: Examples,
    loaded: LoadedModel,
    device: torch.device,
    augmentation: Augmentation | None = None,
    max_length: int = 128,
) -> ImageFeed | TextFeed:
    """Return the feed that the model's kind of input needs; texts are not augmented."""
    if loaded.tokenizer is None:
        return ImageFeed(examples, loaded, device, augmentation)
    return TextFeed(examples, loaded, device, max_length)


def batches_of(
    feed: Feed, order: NDArray[np.int64], size: int, rng: np.random.Generator | None = None
) -> list[NDArray[np.int64]]:
    """Cut an order of examples into batches: as they come, or texts of similar length together.

    With `rng` such batches are shuffled, for training.
    """
    if isinstance(feed, TextFeed):
        return length_batches(order, feed.lengths, size, rng)
    return [order[start : start + size] for start in range(0, len(order), size)]


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
    batches = batches_of(feed, np.arange(len(feed)), batch)
    with evaluating(model):
        parts = [logits_of(model, feed.inputs(indices)).float().cpu() for indices in batches]
    return _in_order(parts, batches)


def _in_order(parts: list[torch.Tensor], batches: list[NDArray[np.int64]]) -> torch.Tensor:
    place = torch.from_numpy(np.concatenate(batches)).argsort()
    return torch.cat(parts)[place.to(parts[0].device)]


@torch.no_grad()
def cached_features(model: nn.Module, head: nn.Module, feed: Feed) -> FeatureFeed | None:
    """Compute the inputs of the head for every example, in eval mode.

    Returns:
        The features, or None where the head is not the network's last operation on them, so that
        features alone do not determine the logits.
    """
    seen: list[torch.Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    parts: list[torch.Tensor] = []
    batches = batches_of(feed, np.arange(len(feed)), EVAL_BATCH)
    try:
        with evaluating(model):
            for indices in batches:
                seen.clear()
                logits = logits_of(model, feed.inputs(indices))
                if len(seen) != 1 or seen[0].ndim != 2 or len(seen[0]) != len(indices):
                    return None
                if not parts and not torch.equal(_apply(head, seen[0]), logits):
                    return None
                parts.append(seen[0])
    finally:
        handle.remove()
    return FeatureFeed(_in_order(parts, batches) if parts else torch.zeros((0, 1)))


def _apply(head: nn.Module, features: torch.Tensor) -> torch.Tensor:
    # Without the hook's recording: the module's own forward.
    result: torch.Tensor = type(head).forward(head, features)
    return result
