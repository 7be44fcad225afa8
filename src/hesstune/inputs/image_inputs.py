"""Images as the network's inputs: normalised, channels last, augmented for training."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hesstune.data.augment import Augmentation
from hesstune.data.examples import Examples
from hesstune.models.load import LoadedModel

__all__ = ["ImageInputs", "to_channels_last"]


def to_channels_last(model: nn.Module, device: torch.device) -> None:
    """Move a network to the device, its 4-d weights channels last: convolutions then run twice as fast."""
    model.to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class ImageInputs:
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
        weights = (p.dtype for p in loaded.model.parameters() if p.is_floating_point())
        self._dtype = next(weights, torch.float32)

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def lengths(self) -> None:
        """None: all are alike."""

    def start_epoch(self, epoch: int) -> None:
        """Let the augmentation draw anew."""
        if self.augmentation is not None:
            self.augmentation.start_epoch(epoch)

    def inputs(self, indices: NDArray[np.int64], augment: bool = False, view: int = 0) -> torch.Tensor:
        """Return normalised images, (B, 3, S, S), in the floating-point type of the network's weights."""
        images = self.examples.images(indices)
        if augment and self.augmentation is not None:
            images = self.augmentation(images, indices, view)
        return self._normalised(images)

    def as_variant(self, indices: NDArray[np.int64], variant: int) -> torch.Tensor:
        """Return the same images as one of those that the augmentation can make of each."""
        images = self.examples.images(indices)
        if self.augmentation is not None:
            images = self.augmentation.as_variant(images, indices, variant)
        return self._normalised(images)

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        images = images.to(self.device, memory_format=torch.channels_last)
        return torch.addcmul(self._shift, images.float(), self._scale).to(self._dtype)
