"""What a network is fed, whatever its kind: inputs by example, cut into batches, and the logits they give."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hesstune.data.augment import Augmentation
from hesstune.data.examples import Examples
from hesstune.forward import Inputs, evaluating, logits_of
from hesstune.inputs.image_inputs import ImageInputs
from hesstune.inputs.text_inputs import TextInputs, length_batches
from hesstune.models.load import LoadedModel

__all__ = [
    "EVAL_BATCH",
    "ModelInputs",
    "batches_of",
    "in_order",
    "make_inputs",
    "predict_logits",
    "without_singles",
]

EVAL_BATCH = 64


class ModelInputs(Protocol):
    """Inputs of one part of the data, by example index."""

    def __len__(self) -> int:
        """The number of examples."""

    @property
    def lengths(self) -> NDArray[np.int64] | None:
        """How many tokens each text has, (N,): batches are of similar lengths; None where all are alike."""

    def start_epoch(self, epoch: int) -> None:
        """Let inputs vary anew."""

    def inputs(self, indices: NDArray[np.int64], augment: bool = False, view: int = 0) -> Inputs:
        """Return a batch of inputs on the device, augmented for training if asked, by the view's draw."""


def make_inputs(
    examples: Examples,
    loaded: LoadedModel,
    device: torch.device,
    augmentation: Augmentation | None = None,
    max_length: int = 128,
    blank: bool = False,
) -> ImageInputs | TextInputs:
    """Return the feed that the model's kind of input needs; texts are not augmented, and blank if allowed."""
    if loaded.tokenizer is None:
        return ImageInputs(examples, loaded, device, augmentation)
    return TextInputs(examples, loaded, device, max_length, blank)


def batches_of(
    feed: ModelInputs, order: NDArray[np.int64], size: int, rng: np.random.Generator | None = None
) -> list[NDArray[np.int64]]:
    """Cut an order of examples into batches: as they come, or texts of similar length together.

    With `rng` such batches are shuffled, for training.
    """
    if feed.lengths is not None:
        return length_batches(order, feed.lengths, size, rng)
    return [order[start : start + size] for start in range(0, len(order), size)]


def without_singles(batches: list[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """Let a batch of one example join the one before it, or after it: it has no variance of its own.

    Example:
        >>> [b.tolist() for b in without_singles([np.array([0, 1]), np.array([2])])]
        [[0, 1, 2]]
    """
    found: list[NDArray[np.int64]] = []
    for batch in batches:
        if found and 1 in (len(batch), len(found[-1])):
            found[-1] = np.concatenate([found[-1], batch])
        else:
            found.append(batch)
    return found


@torch.no_grad()
def predict_logits(model: nn.Module, feed: ModelInputs, batch: int = EVAL_BATCH) -> torch.Tensor:
    """Return the logits, (N, K) float32 on the CPU, of every example of a feed, in eval mode."""
    if not len(feed):
        return torch.zeros((0, 0))
    batches = batches_of(feed, np.arange(len(feed)), batch)
    with evaluating(model):
        parts = [logits_of(model, feed.inputs(indices)).float().cpu() for indices in batches]
    return in_order(parts, batches)


def in_order(parts: list[torch.Tensor], batches: list[NDArray[np.int64]]) -> torch.Tensor:
    """Return the batches' rows in the order of the examples."""
    place = torch.from_numpy(np.concatenate(batches)).argsort()
    return torch.cat(parts)[place.to(parts[0].device)]
