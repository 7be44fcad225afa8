"""Texts as the network's inputs: tokenised once, padded to the longest of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.data.examples import Examples
from hesstune.errors import DataError, ModelError
from hesstune.models.load import LoadedModel
from hesstune.models.text import longest_input

__all__ = ["TextInputs", "length_batches"]

# Batches whose texts are sorted by length together: enough to save padding, few enough to mix.
_BUCKET = 32


class TextInputs:
    """Token ids, attention masks (and segment ids), on the device.

    Args:
        examples: Texts, or pairs of texts.
        loaded: A model with its tokenizer.
        device: Where inputs go.
        max_length: At most so many tokens; longer texts are cut at the end.
        blank: Whether texts may hold nothing.

    Attributes:
        lengths: (N,) how many tokens each example has after cutting.
        truncated: How many examples were cut.

    Raises:
        DataError: If the examples are no texts, or an example is empty.
        ModelError: If the model came without a tokenizer.
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
                f"the text of example '{empty[0]}' is empty ({len(empty)} in all); fill it in, or take "
                "the row out"
            )
        if empty:  # some tokenizers make no token of nothing
            texts = [(text if text.strip() else " ", second) for text, second in texts]
        self._tokenizer, self._device = loaded.tokenizer, device
        limit = min(max_length, longest_input(loaded.model, loaded.tokenizer) or max_length)
        self._rows, self.truncated = _tokenised(loaded.tokenizer, texts, limit)
        self.lengths = np.array([len(row["input_ids"]) for row in self._rows], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def start_epoch(self, epoch: int) -> None:
        """Do nothing: texts are the same in every epoch."""

    def inputs(
        self, indices: NDArray[np.int64], augment: bool = False, view: int = 0
    ) -> dict[str, torch.Tensor]:
        """Return a mapping of (B, T) tensors, T the longest of these examples; every view is the same."""
        batch = self._tokenizer.pad([self._rows[i] for i in indices], return_tensors="pt")
        return {key: value.to(self._device) for key, value in batch.items()}

    def as_variant(self, indices: NDArray[np.int64], variant: int) -> dict[str, torch.Tensor]:
        """Return the same: a text is not varied."""
        return self.inputs(indices)


def _tokenised(
    tokenizer: Any, texts: Sequence[tuple[str, str | None]], limit: int
) -> tuple[list[dict[str, list[int]]], int]:
    if not texts:
        return [], 0
    first = [text for text, _ in texts]
    paired = any(second is not None for _, second in texts)
    second = [other or "" for _, other in texts] if paired else None
    encoded = tokenizer(first, second, truncation=True, max_length=limit)
    rows = [{key: values[i] for key, values in encoded.items()} for i in range(len(first))]
    full = [i for i, row in enumerate(rows) if len(row["input_ids"]) == limit]
    uncut = (
        tokenizer([first[i] for i in full], [second[i] for i in full] if second else None, verbose=False)
        if full
        else {"input_ids": []}
    )
    return rows, sum(len(ids) > limit for ids in uncut["input_ids"])


def length_batches(
    order: NDArray[np.int64], lengths: NDArray[np.int64], size: int, rng: np.random.Generator | None
) -> list[NDArray[np.int64]]:
    """Cut an order of examples into batches of similar lengths.

    Each run of 32 batches is sorted by length; with `rng` the batches are then shuffled, so that
    training sees long and short ones mixed.

    Example:
        >>> lengths = np.array([9, 2, 8, 3])
        >>> [batch.tolist() for batch in length_batches(np.arange(4), lengths, 2, None)]
        [[1, 3], [2, 0]]
    """
    batches = []
    for start in range(0, len(order), size * _BUCKET):
        part = order[start : start + size * _BUCKET]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[i : i + size] for i in range(0, len(part), size)]
    if rng is not None:
        batches = [batches[i] for i in rng.permutation(len(batches))]
    return batches
