"""Activations of frozen layers: computed once for each example, or once a view of it, and kept on disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hesstune.forward import Inputs
from hesstune.inputs.batches import EVAL_BATCH, ImageInputs, TextInputs
from hesstune.models.cut import Cut, activations_at

# Of the free disk space, what activations may take at most.
SHARE = 0.5


class ActivationFile:
    """Rows of float32 numbers in a file that is gone when it is closed, or when the process ends.

    Args:
        folder: Where the file is.
        offsets: (R + 1,) where each row begins, in numbers.

    Raises:
        OSError: If the file cannot be made, or there is no room for it.
    """

    def __init__(self, folder: Path, offsets: NDArray[np.int64]) -> None:
        self.offsets = offsets
        size = 4 * int(offsets[-1])
        if size > SHARE * shutil.disk_usage(folder).free:
            raise OSError(f"activations take {size / 2**20:.0f} MiB, and half of the disk's room is less")
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed with this object
        # Room is taken now: a mapped file that finds none later ends the process.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._file.fileno(), 0, size)
        else:
            self._file.truncate(size)
        self._values = np.memmap(self._file, dtype=np.float32, mode="r+", shape=(int(offsets[-1]),))
        self._there = np.zeros(len(offsets) - 1, dtype=bool)

    def holds(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which rows are there."""
        return np.asarray(self._there[rows])

    def put(self, rows: NDArray[np.int64], values: torch.Tensor) -> None:
        """Keep (B, …) values of some rows, each cut to its row's numbers."""
        flat = values.detach().float().cpu().contiguous().flatten(1).numpy()
        for row, value in zip(rows, flat, strict=True):
            start, end = self.offsets[row], self.offsets[row + 1]
            self._values[start:end] = value[: end - start]
        self._there[rows] = True

    def take(self, rows: NDArray[np.int64], tail: tuple[int, ...]) -> torch.Tensor:
        """Return some rows, (B, …, *tail), shorter ones filled with zeros."""
        sizes = self.offsets[rows + 1] - self.offsets[rows]
        found = np.zeros((len(rows), int(sizes.max())), dtype=np.float32)
        for place, row, size in zip(found, rows, sizes, strict=True):
            place[:size] = self._values[self.offsets[row] : self.offsets[row] + size]
        return torch.from_numpy(found).reshape(len(rows), *tail)


def needed_bytes(feeds: list[ImageInputs | TextInputs], cut: Cut) -> int:
    """Return the size on disk of all activations that several feeds can keep."""
    return sum(4 * int(_offsets(feed, cut)[-1]) for feed in feeds)


def _variants(feed: ImageInputs | TextInputs) -> int:
    """Return how many inputs an example can be known to become."""
    if isinstance(feed, TextInputs) or feed.augmentation is None:
        return 1
    return feed.augmentation.variants


def _ragged(feed: ImageInputs | TextInputs, cut: Cut) -> bool:
    return isinstance(feed, TextInputs) and len(cut.shape) > 1


def _offsets(feed: ImageInputs | TextInputs, cut: Cut) -> NDArray[np.int64]:
    if isinstance(feed, TextInputs) and _ragged(feed, cut):
        sizes = feed.lengths * int(np.prod(cut.shape[1:]))
    else:
        sizes = np.full(len(feed) * _variants(feed), int(np.prod(cut.shape)), dtype=np.int64)
    return np.concatenate([[0], np.cumsum(sizes)])


class ActivationInputs:
    """What the network behind a cut is given: activations, of texts beside the masks.

    Args:
        feed: The whole network's inputs.
        model: The whole network, whose part before the cut stays as it is.
        cut: Where it is cut.
        folder: Where activations are kept until the run ends; None computes them anew every time.

    Attributes:
        computed: How many activations were computed.

    Raises:
        OSError: If the folder has no room for them.
    """

    def __init__(
        self, feed: ImageInputs | TextInputs, model: nn.Module, cut: Cut, folder: Path | None
    ) -> None:
        self.feed, self.model, self.cut, self.computed = feed, model, cut, 0
        self._file = None
        if folder is not None and len(feed):
            self._file = ActivationFile(folder, _offsets(feed, cut))
        # Rows are computed in blocks that never change: the last digits of a row depend on its neighbours.
        self._order = (
            np.arange(len(feed)) if feed.lengths is None else np.argsort(feed.lengths, kind="stable")
        )
        self._block = np.empty(len(feed), dtype=np.int64)
        self._block[self._order] = np.arange(len(feed)) // EVAL_BATCH

    def __len__(self) -> int:
        return len(self.feed)

    @property
    def lengths(self) -> NDArray[np.int64] | None:
        """How many tokens each text has; None of images."""
        return self.feed.lengths

    def start_epoch(self, epoch: int) -> None:
        """Let the inputs vary anew."""
        self.feed.start_epoch(epoch)

    def inputs(self, indices: NDArray[np.int64], augment: bool = False, view: int = 0) -> Inputs:
        """Return activations, (B, …), on the device; of texts a mapping with the masks."""
        which = self._variant(indices, augment, view)
        beside: Inputs = {}
        if self._file is None or which is None:
            beside = self.feed.inputs(indices, augment, view)
            values = self._computed(beside)
        else:
            self._fill(self._file, indices, which)
            values = self._file.take(indices * _variants(self.feed) + which, self._tail()).to(self._device())
        if values.ndim == 4:
            values = values.contiguous(memory_format=torch.channels_last)
        if not isinstance(self.feed, TextInputs):
            return values
        beside = beside or self.feed.inputs(indices)
        assert not isinstance(beside, torch.Tensor)
        return {**beside, "activation": values}

    def _variant(self, indices: NDArray[np.int64], augment: bool, view: int) -> NDArray[np.int64] | None:
        """Return which variant of each example is asked for; None where it is a new one."""
        if not isinstance(self.feed, ImageInputs) or self.feed.augmentation is None:
            return np.zeros(len(indices), dtype=np.int64)
        return self.feed.augmentation.variant(indices, augment, view)

    def _fill(self, file: ActivationFile, indices: NDArray[np.int64], which: NDArray[np.int64]) -> None:
        """Compute the blocks of what is missing."""
        variants = _variants(self.feed)
        missing = ~file.holds(indices * variants + which)
        for block, variant in sorted(set(zip(self._block[indices[missing]], which[missing], strict=True))):
            members = self._order[block * EVAL_BATCH : (block + 1) * EVAL_BATCH]
            found = self._computed(self.feed.as_variant(members, variant))
            file.put(members * variants + variant, found)

    def _computed(self, inputs: Inputs) -> torch.Tensor:
        values = activations_at(self.model, self.cut, inputs)
        self.computed += len(values)
        return values

    def _tail(self) -> tuple[int, ...]:
        return (-1, *self.cut.shape[1:]) if _ragged(self.feed, self.cut) else self.cut.shape

    def _device(self) -> torch.device:
        return next(self.model.parameters()).device
