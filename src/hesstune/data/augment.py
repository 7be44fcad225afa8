"""Label-preserving augmentation on tensors, determined by seed, epoch and example."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

# The largest shift, as a share of the image's side, and the share of mirrored images.
SHIFT, FLIPPED = 0.0625, 0.5


class Augmentation:
    """Random shifts (edges repeated) and mirroring, drawn for each example and epoch.

    A draw depends on (seed, epoch, example) alone: batches of any size or order, and any number of processes,
    see the same images.

    Args:
        kind: `auto`, `none`, `shift`, `flip` or `shift+flip`; `auto` shifts, and mirrors if that keeps the
            label.
        flip: Whether mirroring keeps the label.
        n: Number of training examples.
        seed: Seed of the run.
        views: Draw so many views of each example and take them in turn; None: new ones every epoch.
    """

    def __init__(self, kind: str, *, flip: bool, n: int, seed: int, views: int | None = None) -> None:
        self.kind = kind if kind != "auto" else "shift+flip" if flip else "shift"
        self.views = views
        self._n, self._seed, self._epoch = n, seed, 0
        self._draws: dict[int, NDArray[np.float64]] = {}

    def start_epoch(self, epoch: int) -> None:
        """Draw new shifts and flips of every example for this epoch, or take the next view."""
        if self.views is not None:
            epoch %= self.views
        if epoch != self._epoch:
            self._draws = {}
            self._epoch = epoch

    @property
    def variants(self) -> int:
        """The number of images that an example can become, itself included; 1 if it is not known."""
        if self.kind == "none":
            return 1
        return 2 if self.kind == "flip" else 1 + (self.views or 0)

    def variant(self, indices: NDArray[np.int64], augmented: bool, view: int = 0) -> NDArray[np.int64] | None:
        """Return the variant of each example in this epoch, (B,), 0 for itself; None for a new one."""
        if not augmented or self.kind == "none":
            return np.zeros(len(indices), dtype=np.int64)
        if self.kind == "flip":
            return np.asarray(self._of_view(view)[indices, 2] < FLIPPED, dtype=np.int64)
        return None if self.views is None or view else np.full(len(indices), 1 + self._epoch, dtype=np.int64)

    def as_variant(self, images: torch.Tensor, indices: NDArray[np.int64], variant: int) -> torch.Tensor:
        """Return images, (B, 3, S, S), of the training examples at the indices as one of their variants."""
        if not variant:
            return images
        if self.kind == "flip":
            return images.flip(-1)
        return self._augmented(images, self._draw(variant - 1, 0)[indices])

    def __call__(self, images: torch.Tensor, indices: NDArray[np.int64], view: int = 0) -> torch.Tensor:
        """Augment uint8 images, (B, 3, S, S), of the training examples at the indices.

        Another `view` is another draw for the same examples and epoch.
        """
        return self._augmented(images, self._of_view(view)[indices])

    def _of_view(self, view: int) -> NDArray[np.float64]:
        if view not in self._draws:
            self._draws[view] = self._draw(self._epoch, view)
        return self._draws[view]

    def _draw(self, epoch: int, view: int) -> NDArray[np.float64]:
        key = [self._seed, epoch, 0xA06, *([view] if view else [])]
        return np.random.default_rng(key).random((self._n, 3))

    def _augmented(self, images: torch.Tensor, drawn: NDArray[np.float64]) -> torch.Tensor:
        draws = torch.from_numpy(drawn)
        if "flip" in self.kind:
            images = torch.where((draws[:, 2] < FLIPPED)[:, None, None, None], images.flip(-1), images)
        return _shifted(images, draws[:, :2]) if "shift" in self.kind else images


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
