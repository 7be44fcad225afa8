"""A certificate's examples: read once, hashed, cut into blocks, and shared by several processes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from hesstune.checks import integer_labels
from hesstune.errors import DataError, listed
from hesstune.forward import Inputs


def _same(values: torch.Tensor) -> torch.Tensor:
    return values


def _alone(rows: torch.Tensor) -> list[torch.Tensor]:
    return [rows]


@dataclass(frozen=True)
class Share:
    """One process's share of a certificate's blocks: every world-th, from its rank.

    Attributes:
        rank: This process's number, from 0.
        world: The number of processes.
        all_reduce_sum: Adds a tensor up over the processes.
        all_gather: Returns the rows of every process, by rank.

    Example:
        >>> Share(1, 2).blocks(5)
        [1, 3]
    """

    rank: int = 0
    world: int = 1
    all_reduce_sum: Callable[[torch.Tensor], torch.Tensor] = _same
    all_gather: Callable[[torch.Tensor], list[torch.Tensor]] = _alone

    def blocks(self, count: int) -> list[int]:
        """List this process's blocks among `count`."""
        return list(range(self.rank, count, self.world))

    def together(self, rows: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        """Return the rows of all blocks, in the blocks' order, from each process's own.

        Args:
            rows: (n_own, …), of this process's blocks one after the other.
            sizes: The sizes of all blocks.
        """
        if self.world == 1:
            return rows
        parts: dict[int, torch.Tensor] = {}
        for rank, gathered in enumerate(self.all_gather(rows)):
            own = list(range(rank, len(sizes), self.world))
            parts |= dict(zip(own, gathered.split([sizes[b] for b in own]), strict=True))
        return torch.cat([parts[b] for b in range(len(sizes))])


CACHE_BYTES = 2**30
_REREAD = 16


class BoundData:
    """Map-style examples, in a random order fixed by the seed, in blocks whose sizes differ by at most 1.

    Batches are kept in memory up to 1 GiB; beyond that they are read again in every pass. A data set
    with a method `batch` gives (inputs, targets) of a list of indices by it, with any padding: padding
    marked by `attention_mask` is ignored when inputs are compared.

    Args:
        dataset: Has a length and gives (input, target) by index; an input is a tensor or a mapping of
            tensors, a target a class index.
        block: The largest size of a block.
        seed: Fixes the order, without looking at the examples.
        what: Name of the examples in errors.
        share: The blocks that this process iterates over; all are read once.

    Raises:
        DataError: If the data set is not map-style, empty, or its items are no (input, target) pairs.
    """

    def __init__(
        self, dataset: Any, block: int, seed: int, what: str = "dataset", share: Share | None = None
    ) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise DataError(
                f"{what} must be map-style (a length, and items by index); got {type(dataset).__name__}. "
                "A DataLoader has one as its .dataset"
            )
        self.n = len(dataset)
        if not self.n:
            raise DataError(f"{what} holds no examples")
        self._dataset, self._what = dataset, what
        order = np.random.default_rng(seed).permutation(self.n)
        self._parts = [part.tolist() for part in np.array_split(order, -(-self.n // block))]
        self.sizes = [len(part) for part in self._parts]
        self._own = (share or Share()).blocks(len(self._parts))
        self._kept: dict[int, tuple[Inputs, torch.Tensor]] = {}
        self.digests: list[str] = []
        self.labels = np.empty(0, np.int64)
        self._scan()

    def _read(self, part: list[int]) -> tuple[Inputs, torch.Tensor]:
        if hasattr(self._dataset, "batch"):
            inputs, targets = self._dataset.batch(part)
            return inputs, torch.as_tensor(targets, dtype=torch.int64)
        items = [self._dataset[i] for i in part]
        for item in items:
            if not isinstance(item, tuple | list) or len(item) != 2:
                raise DataError(f"items of {self._what} must be (input, target); got {type(item).__name__}")
        inputs = default_collate([x for x, _ in items])
        return inputs, torch.as_tensor(np.array([int(y) for _, y in items], np.int64))

    def _scan(self) -> None:
        room, labels, own = CACHE_BYTES, [], set(self._own)
        for index, part in enumerate(self._parts):
            batch = self._read(part)
            self.digests += _digests(batch[0], len(part))
            labels.append(batch[1].numpy())
            if index not in own:
                continue
            room -= sum(t.nbytes for t in _tensors(batch[0]))
            if room >= 0:
                self._kept[index] = batch
        self.labels = np.concatenate(labels)

    def __iter__(self) -> Iterator[tuple[Inputs, torch.Tensor]]:
        """Yield (inputs, targets) of each of this process's blocks, always in the same order."""
        for index in self._own:
            yield self._kept.get(index) or self._read(self._parts[index])

    def first(self) -> Inputs:
        """Return the inputs of the first block of all."""
        return (self._kept.get(0) or self._read(self._parts[0]))[0]

    def check_labels(self, k: int) -> None:
        """Raise DataError unless every label lies in [0, k)."""
        integer_labels(self.labels, k, f"targets of {self._what}")

    def check_steady(self) -> None:
        """Raise DataError if reading an example again gives another input (random augmentation)."""
        part = self._parts[0][:_REREAD]
        again = _digests(self._read(part)[0], len(part))
        if again != self.digests[: len(part)]:
            raise DataError(
                f"reading an example of {self._what} twice gave different inputs: it is augmented at random; "
                "certify on the plain examples (augmentation in training is fine)"
            )

    def check_repeats(self) -> None:
        """Raise DataError if two inputs are equal."""
        repeats = self.n - len(set(self.digests))
        if repeats:
            first: dict[str, int] = {}
            order = [i for part in self._parts for i in part]
            pairs = []
            for index, digest in zip(order, self.digests, strict=True):
                if digest in first:
                    pairs.append(f"{first[digest]} and {index}")
                first.setdefault(digest, index)
            raise DataError(
                f"{repeats} inputs of {self._what} are repeated (such as indices {listed(pairs, 3)}), "
                "so they are not an independent sample; remove repeats before splitting, or give "
                "repeats='allow' if the examples were drawn independently from a distribution that "
                "has such repeats"
            )


def _tensors(inputs: Inputs) -> list[torch.Tensor]:
    values = [inputs] if isinstance(inputs, torch.Tensor) else [inputs[key] for key in sorted(inputs)]
    return [v for v in values if isinstance(v, torch.Tensor)]


def _digests(inputs: Inputs, count: int) -> list[str]:
    """Hash each example's tensors, with their dtypes and shapes."""
    if not isinstance(inputs, torch.Tensor | Mapping):
        raise DataError(f"an input must be a tensor or a mapping of tensors; got {type(inputs).__name__}")
    arrays = [t.detach().cpu().contiguous() for t in _tensors(inputs)]
    arrays = [t.view(torch.uint8) if t.dtype is torch.bfloat16 else t for t in arrays]
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    result = []
    for row in range(count):
        digest = hashlib.blake2b(digest_size=16)
        for array in arrays:
            value = array[row].numpy()
            if mask is not None and array.shape == mask.shape:
                value = value[mask[row].cpu().numpy() != 0]
            digest.update(f"{value.dtype}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        result.append(digest.hexdigest())
    return result
