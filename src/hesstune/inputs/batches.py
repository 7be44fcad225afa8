"""Inputs of networks: images, texts or feature vectors by example, in batches, and their logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hesstune.data.augment import Augmentation
from hesstune.data.examples import Examples, Text
from hesstune.errors import DataError, ModelError
from hesstune.forward import Inputs, evaluating, logits_of
from hesstune.models.load import LoadedModel
from hesstune.models.networks import longest_input

EVAL_BATCH = 64
# Batches of texts that are sorted by length together: enough to save padding, few enough to mix.
_SORTED_TOGETHER = 32


def to_channels_last(model: nn.Module, device: torch.device) -> None:
    """Move a network to the device, with 4-d weights channels last: convolutions then run twice as fast."""
    model.to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class ModelInputs(Protocol):
    """Inputs of one part of the data, by example index.

    Attributes:
        lengths: (N,) number of tokens of each text: batches are of similar lengths. None if all inputs have
            one shape.
    """

    lengths: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """The number of examples."""

    def start_epoch(self, epoch: int) -> None:
        """Draw a new augmentation, if there is one."""
        return

    def inputs(self, indices: NDArray[np.int64], augment: bool = False, view: int = 0) -> Inputs:
        """Return a batch of inputs on the device, augmented for training if asked, by the view's draw."""

    def as_variant(self, indices: NDArray[np.int64], variant: int) -> Inputs:
        """Return the inputs as one of their variants; by default there are none."""
        return self.inputs(indices)


class ImageInputs(ModelInputs):
    """Normalised images in the network's order of channels, channels last in memory, on the device."""

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
        # (x / 255 − mean) / std as one multiplication and addition.
        std = torch.tensor(loaded.std, device=device)
        self._scale = (1.0 / (255.0 * std)).reshape(1, 3, 1, 1)
        self._shift = (-torch.tensor(loaded.mean, device=device) / std).reshape(1, 3, 1, 1)
        self._bgr = loaded.bgr
        weights = (p.dtype for p in loaded.model.parameters() if p.is_floating_point())
        self._dtype = next(weights, torch.float32)

    def __len__(self) -> int:
        return len(self.examples)

    def start_epoch(self, epoch: int) -> None:
        """Draw a new augmentation."""
        if self.augmentation is not None:
            self.augmentation.start_epoch(epoch)

    def inputs(self, indices: NDArray[np.int64], augment: bool = False, view: int = 0) -> torch.Tensor:
        """Return normalised images, (B, 3, S, S), in the floating-point type of the network's weights."""
        images = self.examples.images(indices)
        if augment and self.augmentation is not None:
            images = self.augmentation(images, indices, view)
        return self._normalised(images)

    def as_variant(self, indices: NDArray[np.int64], variant: int) -> torch.Tensor:
        """Return normalised images as one of the variants that the augmentation makes of each."""
        images = self.examples.images(indices)
        if self.augmentation is not None:
            images = self.augmentation.as_variant(images, indices, variant)
        return self._normalised(images)

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        images = images.flip(1) if self._bgr else images
        images = images.to(self.device, memory_format=torch.channels_last)
        return torch.addcmul(self._shift, images.float(), self._scale).to(self._dtype)


class TextInputs(ModelInputs):
    """Token ids, attention masks (and segment ids) of texts or pairs of texts, on the device.

    Texts longer than `max_length` tokens are cut at the end; `truncated` counts them. DataError is raised if
    a text is blank and may not be.
    """

    def __init__(
        self,
        examples: Examples,
        loaded: LoadedModel,
        device: torch.device,
        max_length: int,
        blank: bool = False,
    ) -> None:
        texts = examples.texts
        if texts is None:
            raise DataError("a text model needs texts; the data holds images")
        if loaded.tokenizer is None:
            raise ModelError("the model has no tokenizer, so it cannot read texts; use minilm or hf:NAME")
        empty = [examples.ids[i] for i, (text, _) in enumerate(texts) if not text.strip()]
        if empty and not blank:
            raise DataError(
                f"the text of example '{empty[0]}' is empty ({len(empty)} in all); fill it in, or take it out"
            )
        if empty:  # some tokenizers make no token of nothing
            texts = [(text if text.strip() else " ", second) for text, second in texts]
        self._tokenizer, self._device = loaded.tokenizer, device
        limit = min(max_length, longest_input(loaded.model, loaded.tokenizer) or max_length)
        self._rows, self.truncated = _tokenize(loaded.tokenizer, texts, limit)
        self.lengths: NDArray[np.int64] = np.array([len(row["input_ids"]) for row in self._rows], np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def inputs(
        self, indices: NDArray[np.int64], augment: bool = False, view: int = 0
    ) -> dict[str, torch.Tensor]:
        """Return a mapping of (B, T) tensors, T the longest of these examples; texts are not augmented."""
        batch = self._tokenizer.pad([self._rows[i] for i in indices], return_tensors="pt")
        return {key: value.to(self._device) for key, value in batch.items()}


class VectorInputs(ModelInputs):
    """Feature vectors, on the device; they are read from their file by batch."""

    def __init__(self, examples: Examples, loaded: LoadedModel, device: torch.device) -> None:
        vectors = examples.vectors
        if vectors is None:
            kind = "texts" if examples.kind == "text" else "images"
            raise DataError(
                f"the network is a linear head on feature vectors, and the data holds {kind}; give "
                "features:FILE or an array (N, D)"
            )
        if vectors.width != loaded.width:
            raise DataError(
                f"the feature vectors have {vectors.width} numbers, and the network takes {loaded.width}"
            )
        self._vectors, self._device = vectors, device
        self._dtype = next(loaded.model.parameters()).dtype

    def __len__(self) -> int:
        return len(self._vectors)

    def inputs(self, indices: NDArray[np.int64], augment: bool = False, view: int = 0) -> torch.Tensor:
        """Return vectors, (B, D), in the floating-point type of the weights; they are not augmented."""
        return self._vectors.batch(indices).to(self._device, self._dtype)


ExampleInputs = ImageInputs | TextInputs | VectorInputs
"""What `make_inputs` returns."""


def _tokenize(tokenizer: Any, texts: Sequence[Text], limit: int) -> tuple[list[dict[str, list[int]]], int]:
    """Return the tokens of each text, and the number of texts that were cut."""
    if not texts:
        return [], 0
    first = [text for text, _ in texts]
    second = [other or "" for _, other in texts] if any(other is not None for _, other in texts) else None
    encoded = tokenizer(first, second, truncation=True, max_length=limit)
    rows = [{key: values[i] for key, values in encoded.items()} for i in range(len(first))]
    full = [i for i, row in enumerate(rows) if len(row["input_ids"]) == limit]
    if not full:
        return rows, 0
    uncut = tokenizer([first[i] for i in full], second and [second[i] for i in full], verbose=False)
    return rows, sum(len(ids) > limit for ids in uncut["input_ids"])


def make_inputs(
    examples: Examples,
    loaded: LoadedModel,
    device: torch.device,
    augmentation: Augmentation | None = None,
    max_length: int = 128,
    blank: bool = False,
) -> ExampleInputs:
    """Return the inputs that the network needs; see `ImageInputs`, `TextInputs` and `VectorInputs`."""
    if loaded.width is not None:
        return VectorInputs(examples, loaded, device)
    if examples.kind == "features":
        needed = "images" if loaded.tokenizer is None else "texts"
        raise DataError(f"the network reads {needed}, and the data holds feature vectors; give it {needed}")
    if loaded.tokenizer is None:
        return ImageInputs(examples, loaded, device, augmentation)
    return TextInputs(examples, loaded, device, max_length, blank)


def batches_of(
    feed: ModelInputs, order: NDArray[np.int64], size: int, rng: np.random.Generator | None = None
) -> list[NDArray[np.int64]]:
    """Cut an order of examples into batches; texts of similar length together.

    Each run of 32 batches of texts is sorted by length. With `rng` the batches of texts are then shuffled, so
    that training sees long and short ones mixed.
    """
    if feed.lengths is None:
        return [order[start : start + size] for start in range(0, len(order), size)]
    batches = []
    for start in range(0, len(order), size * _SORTED_TOGETHER):
        part = order[start : start + size * _SORTED_TOGETHER]
        part = part[np.argsort(feed.lengths[part], kind="stable")]
        batches += [part[i : i + size] for i in range(0, len(part), size)]
    return batches if rng is None else [batches[i] for i in rng.permutation(len(batches))]


def without_singles(batches: list[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """Merge a batch of one example with the batch before or after it: one example has no variance."""
    found: list[NDArray[np.int64]] = []
    for batch in batches:
        if found and 1 in (len(batch), len(found[-1])):
            found[-1] = np.concatenate([found[-1], batch])
        else:
            found.append(batch)
    return found


@torch.no_grad()
def predict_logits(model: nn.Module, feed: ModelInputs, batch: int = EVAL_BATCH) -> torch.Tensor:
    """Return the logits of all examples in eval mode, (N, K) float32 on the CPU."""
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
