"""Outputs of frozen layers, computed once for each variant of an example and stored on disk."""

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
from hesstune.inputs.batches import EVAL_BATCH, ExampleInputs, ImageInputs, ModelInputs, TextInputs
from hesstune.models.cut import Cut, activations_at

# The largest share of the free disk space that activations may take.
SHARE = 0.5


class ActivationFile:
    """Rows of float32 numbers in a file that is deleted when it is closed or the process ends.

    Row r holds the numbers offsets[r] to offsets[r + 1]. Raises OSError if there is no room for the file.
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
        """Tell which rows are stored."""
        return np.asarray(self._there[rows])

    def put(self, rows: NDArray[np.int64], values: torch.Tensor) -> None:
        """Store (B, …) values of some rows, each cut to its row's length."""
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


def needed_bytes(feeds: list[ExampleInputs], cut: Cut) -> int:
    """Return the size on disk of all activations of several feeds."""
    return sum(4 * int(_offsets(feed, cut)[-1]) for feed in feeds)


def _variants(feed: ExampleInputs) -> int:
    """Return the number of inputs that an example can become."""
    augmentation = feed.augmentation if isinstance(feed, ImageInputs) else None
    return 1 if augmentation is None else augmentation.variants


def _offsets(feed: ExampleInputs, cut: Cut) -> NDArray[np.int64]:
    if isinstance(feed, TextInputs) and len(cut.shape) > 1:  # one row per token
        sizes = feed.lengths * int(np.prod(cut.shape[1:]))
    else:
        sizes = np.full(len(feed) * _variants(feed), int(np.prod(cut.shape)), dtype=np.int64)
    return np.concatenate([[0], np.cumsum(sizes)])


class ActivationInputs(ModelInputs):
    """Inputs of the part of a network behind a cut: activations; for texts also the masks.

    The part before the cut is frozen; `feed` holds the whole network's inputs. Activations are stored in the
    folder until the run ends, or computed each time without one; `computed` counts them. OSError is raised if
    it has no room.
    """

    def __init__(self, feed: ExampleInputs, model: nn.Module, cut: Cut, folder: Path | None) -> None:
        self.feed, self.model, self.cut, self.computed = feed, model, cut, 0
        self.lengths = feed.lengths
        self._file = ActivationFile(folder, _offsets(feed, cut)) if folder is not None and len(feed) else None
        # Rows are computed in blocks that never change: the last digits of a row depend on its neighbours.
        every = np.arange(len(feed))
        self._order = every if feed.lengths is None else np.argsort(feed.lengths, kind="stable")
        self._block = np.empty(len(feed), dtype=np.int64)
        self._block[self._order] = every // EVAL_BATCH

    def __len__(self) -> int:
        return len(self.feed)

    def start_epoch(self, epoch: int) -> None:
        """Draw a new augmentation."""
        self.feed.start_epoch(epoch)

    def inputs(self, indices: NDArray[np.int64], augment: bool = False, view: int = 0) -> Inputs:
        """Return activations, (B, …), on the device; for texts a mapping with the masks."""
        variant: NDArray[np.int64] | None = np.zeros(len(indices), dtype=np.int64)
        if isinstance(self.feed, ImageInputs) and self.feed.augmentation is not None:
            variant = self.feed.augmentation.variant(indices, augment, view)
        beside: Inputs = {}
        if self._file is None or variant is None:
            beside = self.feed.inputs(indices, augment, view)
            values = self._compute(beside)
        else:
            self._fill(self._file, indices, variant)
            ragged = isinstance(self.feed, TextInputs) and len(self.cut.shape) > 1
            tail = (-1, *self.cut.shape[1:]) if ragged else self.cut.shape
            device = next(self.model.parameters()).device
            values = self._file.take(indices * _variants(self.feed) + variant, tail).to(device)
        if values.ndim == 4:
            values = values.contiguous(memory_format=torch.channels_last)
        if not isinstance(self.feed, TextInputs):
            return values
        beside = beside or self.feed.inputs(indices)
        assert not isinstance(beside, torch.Tensor)
        return {**beside, "activation": values}

    def _fill(self, file: ActivationFile, indices: NDArray[np.int64], variants: NDArray[np.int64]) -> None:
        """Compute the blocks of missing activations."""
        count = _variants(self.feed)
        missing = ~file.holds(indices * count + variants)
        for block, variant in sorted(set(zip(self._block[indices[missing]], variants[missing], strict=True))):
            members = self._order[block * EVAL_BATCH : (block + 1) * EVAL_BATCH]
            file.put(members * count + variant, self._compute(self.feed.as_variant(members, variant)))

    def _compute(self, inputs: Inputs) -> torch.Tensor:
        values = activations_at(self.model, self.cut, inputs)
        self.computed += len(values)
        return values
