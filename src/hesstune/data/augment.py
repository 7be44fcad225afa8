"""Label-preserving augmentation on tensors, keyed by seed, epoch and example."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["AUGMENTATIONS", "Augmentation"]

AUGMENTATIONS = ("auto", "none", "shift", "flip", "shift+flip")
# The largest shift, as a share of the image's side.
SHIFT = 0.0625


class Augmentation:
    """Random shifts (edges repeated) and mirroring, drawn for each example and epoch.

    The draw depends on (seed, epoch, example) alone, so batches of any size or order, and any
    number of processes, see the same images.

    Args:
        kind: One of AUGMENTATIONS; `auto` shifts, and mirrors where that keeps the label.
        flip: Whether mirroring keeps the label.
        n: Number of training examples.
        seed: Seed of the run.
    """

    def __init__(self, kind: str, *, flip: bool, n: int, seed: int) -> None:
        if kind == "auto":
            kind = "shift+flip" if flip else "shift"
        self.kind = kind
        self._n = n
        self._seed = seed
        self._draws: dict[int, NDArray[np.float64]] = {}
        self._epoch: int | None = None

    def start_epoch(self, epoch: int) -> None:
        """Draw the shifts and flips of every example anew for this epoch."""
        if epoch != self._epoch:
            self._draws = {}
            self._epoch = epoch

    def _of(self, view: int) -> NDArray[np.float64]:
        if view not in self._draws:
            key = [self._seed, self._epoch or 0, 0xA06, *([view] if view else [])]
            self._draws[view] = np.random.default_rng(key).random((self._n, 3))
        return self._draws[view]

    def __call__(self, images: torch.Tensor, indices: NDArray[np.int64], view: int = 0) -> torch.Tensor:
        """Augment uint8 images, (B, 3, S, S), of the training examples at the indices.

        Another `view` is another draw for the same examples and epoch.
        """
        draws = torch.from_numpy(self._of(view)[indices])
        if "flip" in self.kind:
            images = torch.where((draws[:, 2] < 0.5)[:, None, None, None], images.flip(-1), images)
        if "shift" in self.kind:
            images = _shifted(images, draws[:, :2])
        return images


def _shifted(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    side = images.shape[-1]
    reach = max(1, round(SHIFT * side))
    offset = (draws * (2 * reach + 1)).floor().long() - reach
    grid = torch.arange(side)
    rows = (grid + offset[:, :1]).clamp(0, side - 1)
    columns = (grid + offset[:, 1:]).clamp(0, side - 1)
    batch = torch.arange(len(images))[:, None, None]
    # Channels last in the gather: one contiguous pixel of three values per index.
    picked = images.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)
