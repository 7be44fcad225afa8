"""Label-preserving augmentation on tensors, keyed by seed, epoch and example."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

AUGMENTATIONS = ("auto", "none", "shift", "flip", "shift+flip")
# The largest shift, as a share of the image's side.
SHIFT = 0.0625
# The share of images that are mirrored.
FLIPPED = 0.5


class Augmentation:
    """Random shifts (edges repeated) and mirroring, drawn for each example and epoch.

    The draw depends on (seed, epoch, example) alone, so batches of any size or order, and any
    number of processes, see the same images.

    Args:
        kind: One of AUGMENTATIONS; `auto` shifts, and mirrors where that keeps the label.
        flip: Whether mirroring keeps the label.
        n: Number of training examples.
        seed: Seed of the run.
        views: Draw so many views of each example and take them in turn; None: new ones every epoch.
    """

    def __init__(self, kind: str, *, flip: bool, n: int, seed: int, views: int | None = None) -> None:
        if kind == "auto":
            kind = "shift+flip" if flip else "shift"
        self.kind = kind
        self.views = views
        self._n = n
        self._seed = seed
        self._draws: dict[int, NDArray[np.float64]] = {}
        self._epoch: int | None = None

    def start_epoch(self, epoch: int) -> None:
        """Draw the shifts and flips of every example anew for this epoch, or take a view's in turn."""
        if self.views is not None:
            epoch %= self.views
        if epoch != self._epoch:
            self._draws = {}
            self._epoch = epoch

    @property
    def variants(self) -> int:
        """How many images an example can be known to become, among them the one that it is."""
        if self.kind == "none":
            return 1
        return 2 if self.kind == "flip" else 1 + (self.views or 0)

    def variant(self, indices: NDArray[np.int64], augmented: bool, view: int = 0) -> NDArray[np.int64] | None:
        """Return which of its variants each example is in this epoch, (B,), 0 as it is; None: a new one."""
        if not augmented or self.kind == "none":
            return np.zeros(len(indices), dtype=np.int64)
        if self.kind == "flip":
            return np.asarray(self._of(view)[indices, 2] < FLIPPED, dtype=np.int64)
        if self.views is None or view:
            return None
        return np.full(len(indices), 1 + (self._epoch or 0), dtype=np.int64)

    def as_variant(self, images: torch.Tensor, indices: NDArray[np.int64], variant: int) -> torch.Tensor:
        """Return images, (B, 3, S, S), of the training examples at the indices as one of their variants."""
        if not variant:
            return images
        if self.kind == "flip":
            return images.flip(-1)
        return self._varied(images, self._drawn(variant - 1, 0)[indices])

    def _of(self, view: int) -> NDArray[np.float64]:
        if view not in self._draws:
            self._draws[view] = self._drawn(self._epoch or 0, view)
        return self._draws[view]

    def _drawn(self, epoch: int, view: int) -> NDArray[np.float64]:
        key = [self._seed, epoch, 0xA06, *([view] if view else [])]
        return np.random.default_rng(key).random((self._n, 3))

    def __call__(self, images: torch.Tensor, indices: NDArray[np.int64], view: int = 0) -> torch.Tensor:
        """Augment uint8 images, (B, 3, S, S), of the training examples at the indices.

        Another `view` is another draw for the same examples and epoch.
        """
        return self._varied(images, self._of(view)[indices])

    def _varied(self, images: torch.Tensor, drawn: NDArray[np.float64]) -> torch.Tensor:
        draws = torch.from_numpy(drawn)
        if "flip" in self.kind:
            images = torch.where((draws[:, 2] < FLIPPED)[:, None, None, None], images.flip(-1), images)
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
