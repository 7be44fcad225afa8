"""Find copies of images: mirrored, rotated, cropped, greyed, blurred, re-lit, resized or re-encoded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from hesstune.data.examples import Examples

__all__ = ["group_image_copies"]

BATCH = 256
SIDE = 32
GREY = (0.299, 0.587, 0.114)
# Grey levels of deviation below which an image has no structure to compare; then only equal pixels count.
FLAT = 3.0
# Cosines a side of a descriptor, and the correlation of two descriptors from which a pair is aligned.
WAVES, CANDIDATE_CORRELATION, SIMPLE_CANDIDATE = 8, 0.75, 0.9
# Candidates of one image under one transform that are aligned; further ones only if one of them is a copy.
NEAREST = 2
# The correlation of aligned gradients from which a pair is a copy. Simple images (few degrees of freedom)
# must also differ by less than this share of their mean gradient. Chosen on PACS art paintings, cartoons,
# 5,000 images of CIFAR-10 and digits; benchmarks/results/near_duplicates.json holds recall on others.
COPY_CORRELATION = 0.94
SIMPLE_FREEDOM, SIMPLE_DIFFERENCE = 45.0, 0.2
STEPS = 4
# The correlation of gradients after two steps below which an alignment is given up.
HOPELESS = 0.6
# Pixels of a thumbnail by which both images are blurred before they are aligned.
BLUR = 0.7

_CENTRES = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
_DOWN, _ACROSS = torch.meshgrid(_CENTRES, _CENTRES, indexing="ij")
_PLACES = torch.stack([_ACROSS, _DOWN, torch.ones_like(_DOWN)], dim=-1)
_RADIUS = (_ACROSS**2 + _DOWN**2).sqrt()
# The corners, which a rotation fills with another colour, are not compared.
_DISK = (_RADIUS < 0.95).float()


def group_image_copies(parts: Sequence[Examples]) -> NDArray[np.int64]:
    """Number all images of some parts, copies alike.

    Candidates are pairs whose descriptors correlate: low frequencies of a grey thumbnail inside a disk. One
    image of each pair goes through a grid of transforms (mirrored or not, quarter turns, ±8°, crops to 84 %
    at several places). A candidate is verified by Gauss-Newton alignment of an affine map (Lucas and Kanade
    1981), which starts from the transform that found it, and by the correlation of the aligned gradients.

    Args:
        parts: Examples whose images have one size.

    Returns:
        (N,) int64 group numbers.
    """
    if not sum(map(len, parts)):
        return np.zeros(0, np.int64)
    digests: dict[bytes, int] = {}
    same: list[int] = []
    small = []
    for batch in _batches(parts):
        keys = [hashlib.blake2b(one.tobytes(), digest_size=16).digest() for one in batch.contiguous().numpy()]
        same += [digests.setdefault(key, len(digests)) for key in keys]
        thumbs = functional.adaptive_avg_pool2d(batch.float(), SIDE)
        small.append((thumbs * torch.tensor(GREY)[:, None, None]).sum(dim=1))
    thumbs = torch.cat(small)
    _, first = np.unique(same, return_index=True)
    alone = first[(thumbs[first].std(dim=(1, 2)) >= FLAT).numpy()]
    groups = np.arange(len(first))
    groups_alone = _Groups(thumbs[alone]).found() if len(alone) > 1 else np.arange(len(alone))
    of_alone = np.asarray(same)[alone]
    groups[of_alone] = of_alone[groups_alone]
    _, first_of, numbered = np.unique(groups[same], return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first_of))[numbered].astype(np.int64)


def _batches(parts: Sequence[Examples]) -> Iterator[torch.Tensor]:
    for part in parts:
        for at in range(0, len(part), BATCH):
            yield part.images(np.arange(at, min(at + BATCH, len(part))))


class _Groups:
    """Groups of copies among N thumbnails, (N, S, S), joined one transform at a time."""

    def __init__(self, thumbs: torch.Tensor) -> None:
        self.thumbs = _blurred(thumbs[:, None])
        self.groups = np.arange(len(thumbs))
        self.flat = thumbs.reshape(len(thumbs), -1)
        self.basis = _basis()
        self.descriptors = _normalised(self.flat @ self.basis)
        self.simple = _freedom(self.thumbs) < SIMPLE_FREEDOM

    def found(self) -> NDArray[np.int64]:
        """Return for each image the index of one image of its group, the same for all of a group."""
        for affine in _transforms():
            moved = _normalised(self.flat @ (_resampling(affine) @ self.basis))
            for at in range(0, len(moved), BATCH):
                near = (moved[at : at + BATCH] @ self.descriptors.T).numpy()
                self._join(np.arange(at, at + len(near)), near, affine)
        return self.groups

    def _join(self, rows: NDArray[np.int64], near: NDArray[np.float32], affine: torch.Tensor) -> None:
        """Align the candidates of some rows, the nearest first, until no row finds another copy."""
        least = np.where(self.simple.numpy(), np.float32(SIMPLE_CANDIDATE), np.float32(CANDIDATE_CORRELATION))
        own, other = np.nonzero(near >= least)
        while len(own):
            apart = self.groups[rows[own]] != self.groups[other]
            own, other = own[apart], other[apart]
            order = np.lexsort((-near[own, other], own))
            own, other = own[order], other[order]
            rank = np.arange(len(own)) - np.searchsorted(own, own)
            now = rank < NEAREST
            joined = set()
            for at in range(0, int(now.sum()), BATCH):
                a, b = own[now][at : at + BATCH], other[now][at : at + BATCH]
                copies = self._are_copies(rows[a], b, affine)
                for one, two in zip(a[copies].tolist(), b[copies].tolist(), strict=True):
                    joined.add(one)
                    ends = self.groups[rows[one]], self.groups[two]
                    self.groups[self.groups == max(ends)] = min(ends)
            left = ~now & np.isin(own, list(joined))
            own, other = own[left], other[left]

    def _are_copies(
        self, a: NDArray[np.int64], b: NDArray[np.int64], affine: torch.Tensor
    ) -> NDArray[np.bool_]:
        maps = affine.expand(len(a), 2, 3)
        close, found = np.arange(len(a)), np.zeros(len(a), bool)
        for steps, least in ((2, HOPELESS), (STEPS, COPY_CORRELATION)):
            moved, target, weight, maps = _align(self.thumbs[a[close]], self.thumbs[b[close]], maps, steps)
            correlation, difference = _compare(moved, target, weight)
            kept = correlation >= least
            close, maps, difference = close[kept.numpy()], maps[kept], difference[kept]
            if not len(close):
                return found
        sure = ~(self.simple[a[close]] | self.simple[b[close]]) | (difference <= SIMPLE_DIFFERENCE)
        found[close] = sure.numpy()
        return found


def _compare(
    moved: torch.Tensor, target: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the correlation of the gradients, and the difference over the smoother one's mean gradient."""
    ours, others = (torch.stack(_slopes(t), dim=1) * weight[:, None] for t in (moved, target))
    over = (1, 2, 3, 4)
    size = (ours.square().sum(over) * others.square().sum(over)).sqrt().clamp(min=1e-6)
    rough = torch.minimum(ours.abs().sum(over), others.abs().sum(over)).clamp(min=1e-6)
    difference = ((moved - target).abs() * weight).sum((1, 2, 3)) / rough
    return (ours * others).sum(over) / size, difference


def _transforms() -> Iterator[torch.Tensor]:
    """Yield affine maps (2, 3) of places in an image, -1 to 1: the identity first."""
    shifts = (-0.13, 0.0, 0.13)
    for mirrored in (1.0, -1.0):
        for angle in (0, -8, 8, 90, 180, 270):
            yield _affine(mirrored, angle, 1.0, (0.0, 0.0))
            if angle == 0:
                places = [(x, y) for x in shifts for y in shifts]
            else:
                places = [(0.0, 0.0)]
                places += [(x, y) for x in (-0.1, 0.1) for y in (-0.1, 0.1) if abs(angle) == 8]
            for place in places:
                yield _affine(mirrored, angle, 0.84, place)


def _affine(mirrored: float, angle: float, scale: float, shift: tuple[float, float]) -> torch.Tensor:
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    turned = np.diag([mirrored, 1.0]) @ np.array([[cos, -sin], [sin, cos]])
    return torch.from_numpy(np.c_[turned * scale, turned @ shift]).float()


def _resampling(affine: torch.Tensor) -> torch.Tensor:
    """Return the matrix (S², S²) that, multiplied from the right, resamples flattened thumbnails."""
    grid = torch.einsum("ij,yxj->yxi", affine, _PLACES).expand(SIDE**2, -1, -1, -1)
    every = torch.eye(SIDE**2).view(SIDE**2, 1, SIDE, SIDE)
    return _sampled(every, grid).view(SIDE**2, SIDE**2)


def _sampled(images: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _basis() -> torch.Tensor:
    """Return cosines (S², D) inside a soft disk, weighted by frequency and orthogonal to brightness."""
    window = torch.sigmoid((0.9 - _RADIUS) / 0.0375).reshape(-1, 1)
    waves = torch.arange(WAVES)
    cosines = torch.cos(torch.pi * (torch.arange(SIDE)[:, None] + 0.5) * waves / SIDE)
    products = torch.einsum("ai,bj->abij", cosines, cosines).reshape(SIDE**2, -1)
    frequency = (waves[:, None] ** 2 + waves**2).sqrt().reshape(-1)
    kept = (frequency > 0) & (frequency < WAVES)
    weighted = products[:, kept] * frequency[kept] * window
    return weighted - window * (weighted.sum(dim=0) / window.sum())


def _normalised(rows: torch.Tensor) -> torch.Tensor:
    unit: torch.Tensor = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-6)
    return unit


def _blurred(thumbs: torch.Tensor) -> torch.Tensor:
    kernel = torch.exp(-torch.arange(-3, 4).float().square() / (2 * BLUR**2))
    kernel = kernel / kernel.sum()
    padded = functional.pad(thumbs, (3, 3, 3, 3), mode="replicate")
    return functional.conv2d(functional.conv2d(padded, kernel.view(1, 1, 1, 7)), kernel.view(1, 1, 7, 1))


def _standard(thumbs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Bring thumbnails, (B, 1, S, S), to mean 0 and deviation 1 under a weight."""
    count = weight.sum((2, 3), keepdim=True).clamp(min=1)
    centred = thumbs - (thumbs * weight).sum((2, 3), keepdim=True) / count
    deviation = ((centred.square() * weight).sum((2, 3), keepdim=True) / count).sqrt()
    return centred / deviation.clamp(min=1e-3)


def _slopes(thumbs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients across and down."""
    down, across = torch.gradient(thumbs, dim=(2, 3))
    return across, down


def _freedom(thumbs: torch.Tensor) -> torch.Tensor:
    """Return the effective number of degrees of freedom, (Σ P)² / Σ P² of the gradients' power P, (N,)."""
    found = []
    for some in thumbs.split(BATCH):
        slopes = _slopes(_standard(some, _DISK.expand_as(some)))
        power = sum((torch.fft.fft2(slope * _DISK).abs().square() for slope in slopes), torch.zeros(()))
        power = power.flatten(1)
        found.append(power.sum(dim=1).square() / power.square().sum(dim=1).clamp(min=1e-12))
    return torch.cat(found)


def _align(
    a: torch.Tensor, b: torch.Tensor, affine: torch.Tensor, steps: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Warp images onto others, (B, 1, S, S), by Gauss-Newton steps, from affine maps (B, 2, 3).

    Returns:
        The warped images and the others, standardised; the weight, 0 where one has no counterpart; the maps.
    """
    for step in range(steps + 1):
        grid = torch.einsum("bij,yxj->byxi", affine, _PLACES)
        weight = ((grid.abs().amax(dim=-1) < 1) * _DISK)[:, None]
        moved, target = _standard(_sampled(a, grid), weight), _standard(b, weight)
        if step == steps:
            break
        across, down = (slope * (SIDE / 2) for slope in _slopes(moved))
        slopes = [across * _ACROSS, across * _DOWN, across, down * _ACROSS, down * _DOWN, down]
        jacobian = (torch.stack(slopes, dim=-1) * weight[..., None]).reshape(len(a), -1, 6)
        rest = ((target - moved) * weight).reshape(len(a), -1, 1)
        normal = jacobian.mT @ jacobian + 0.1 * torch.eye(6)
        change = torch.linalg.solve(normal, jacobian.mT @ rest)[..., 0].view(-1, 2, 3).clamp(-0.1, 0.1)
        whole = torch.cat([change, torch.zeros(len(a), 1, 3)], dim=1) + torch.eye(3)
        affine = affine @ whole
    return moved, target, weight, affine
