"""Near-duplicates: a picture stored twice (re-encoded, resized, cropped a little), a text spaced twice."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import dctn
from torch.nn import functional

from hesstune.data.examples import Examples

__all__ = ["near_duplicates", "plain_text"]

Array = NDArray[np.float32]

BATCH = 256
SIDE, COARSE = 32, 16
GREY = (0.299, 0.587, 0.114)
# Bits of two hashes that a copy may change, and how far its coarse thumbnail may be: wide, for the fine
# comparison decides. Of 600 PACS pictures, JPEG at quality 40, half the size and a pixel's crop changed at
# most 12 bits of the first hash, 7 of the second, and of all but one the thumbnail by less than 0.19.
PHASH_BITS, DHASH_BITS, COARSE_MOST = 12, 8, 0.2
# The fine comparison: the mean difference of aligned thumbnails over their mean difference between
# neighbouring pixels. Those copies had up to 0.2; the nearest of different photos, sketches and digits, but
# for a pair of sketches, had 0.24: smooth pictures are near one another anyway, and must agree more closely.
FINE_MOST = 0.2
# Before they are aligned: beyond it no small shift or scaling brings pictures together.
START_MOST = 0.45
# Grey levels of deviation below which a picture has nothing to be told by; then only equal pixels count.
FLAT = 3.0
# A grey level's difference between neighbours that counts as one: less is noise of the encoder.
STEP = 2.0
# Cells of a comparison's table at a time.
CELLS = 1 << 21


def near_duplicates(parts: Sequence[Examples]) -> list[NDArray[np.int64]]:
    """Group near-duplicates, within parts and between them, by their inputs alone.

    Texts are near-duplicates if `plain_text` makes them the same, pairs if it does so of both. Images are if
    their pixels are equal, or if a perceptual hash (64 signs of the low frequencies of the cosine transform;
    Zauner 2010), a difference hash (8 × 8 signs between neighbours) and thumbnails of 32 × 32, aligned by a
    shift and a scaling of each axis, are close: then one is the other re-encoded, resized, cropped by a pixel
    or two, brighter or with more contrast. Mirrored pictures and other photos of one thing are not. Groups
    are transitive: what is a near-duplicate of one of a group belongs to it.

    Args:
        parts: Examples of one task, images decoded to squares of one size, or texts.

    Returns:
        For each part (N,) int64: the number of each example's group. Of two examples, wherever they are, it
        is the same exactly if they are near-duplicates.

    Example:
        >>> from hesstune.data.examples import Texts
        >>> texts = Texts([("Good .", None), ("good.", None), ("Not good.", None)])
        >>> rows, ids = np.arange(3), ["a", "b", "c"]
        >>> near_duplicates([Examples(texts, rows, ids, None)])
        [array([0, 0, 1])]
    """
    if any(part.texts is not None for part in parts):
        keys = [
            (plain_text(one), None if two is None else plain_text(two))
            for part in parts
            for one, two in part.texts or []
        ]
        groups = _numbered(keys)
    else:
        groups = _groups_of_images(parts)
    ends = np.cumsum([len(part) for part in parts])[:-1]
    return np.split(groups, ends)


_MARKS = str.maketrans("‘’‚‛“”„‟«»‐‑‒–—―", '\'\'\'\'""""""------')


def plain_text(text: str) -> str:
    r"""Return a text's normal form: NFKC, case folded, plain quotes and dashes, no space beside punctuation.

    Words and punctuation stay, so that texts of other meaning stay apart.

    Example:
        >>> plain_text("  It ’s “GOOD” ,  isn't it ? "), plain_text("not good")
        ('it\'s"good",isn\'t it?', 'not good')
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    seen = "".join(c for c in folded.translate(_MARKS) if c.isspace() or unicodedata.category(c) != "Cf")
    return re.sub(r"\s*([^\w\s]|_)\s*", r"\1", " ".join(seen.split()))


def _numbered(keys: Sequence[object]) -> NDArray[np.int64]:
    """Number equal keys alike, in the order in which they first stand."""
    found: dict[object, int] = {}
    return np.array([found.setdefault(key, len(found)) for key in keys], np.int64)


@dataclass(frozen=True)
class _Looks:
    """What is kept of N images.

    Attributes:
        digests: A checksum of each one's pixels.
        phash: (N,) uint64.
        dhash: (N,) uint64.
        thumbs: (N, 3, 32, 32) float16, 0 to 255.
        flat: (N,) whether there is nothing to be told by.
    """

    digests: list[bytes]
    phash: NDArray[np.uint64]
    dhash: NDArray[np.uint64]
    thumbs: NDArray[np.float16]
    flat: NDArray[np.bool_]

    @classmethod
    def of(cls, parts: Sequence[Examples]) -> _Looks:
        """Look at every image once, a batch at a time."""
        found = [_look(batch) for part in parts for batch in _batches(part)]
        digests = [digest for one in found for digest in one[0]]
        phash, dhash, thumbs, flat = (np.concatenate([one[at] for one in found]) for at in range(1, 5))
        return cls(digests, phash, dhash, thumbs, flat)


def _batches(part: Examples) -> Iterator[torch.Tensor]:
    for at in range(0, len(part), BATCH):
        yield part.images(np.arange(at, min(at + BATCH, len(part))))


def _look(images: torch.Tensor) -> tuple[list[bytes], *tuple[NDArray[np.generic], ...]]:
    """Return checksums, both hashes, thumbnails and flatness of some images."""
    pixels = images.contiguous().numpy()
    digests = [hashlib.blake2b(one.tobytes(), digest_size=16).digest() for one in pixels]
    whole = images.float()
    thumbs = functional.adaptive_avg_pool2d(whole, SIDE)
    weights = torch.tensor(GREY)[:, None, None]
    grey = (thumbs * weights).sum(dim=1).numpy()
    low = dctn(grey, axes=(1, 2), norm="ortho")[:, :8, :8].reshape(len(grey), 64)
    low[:, 0] = 0  # the mean brightness
    signs = low > np.median(low[:, 1:], axis=1, keepdims=True)
    cells = (functional.adaptive_avg_pool2d(whole, (8, 9)) * weights).sum(dim=1).numpy()
    steps = (np.diff(cells, axis=2) > STEP).reshape(len(cells), 64)
    flat = thumbs.std(dim=(1, 2, 3)).numpy() < FLAT
    return digests, _bits(signs), _bits(steps), thumbs.numpy().astype(np.float16), flat


def _bits(signs: NDArray[np.bool_]) -> NDArray[np.uint64]:
    return np.packbits(signs, axis=1).view(np.uint64).ravel()


def _groups_of_images(parts: Sequence[Examples]) -> NDArray[np.int64]:
    if not sum(map(len, parts)):
        return np.zeros(0, np.int64)
    looks = _Looks.of(parts)
    same = _numbered(looks.digests)
    # One of each set of equal pixels is compared with the others; flat ones with nothing.
    _, first = np.unique(same, return_index=True)
    alone = first[~looks.flat[first]]
    groups = same.copy()
    groups_of = same[alone]
    for row, others in _candidates(looks.phash[alone], looks.dhash[alone]):
        # What a chain has joined already needs no look: many copies of one picture cost no square of them.
        others = others[groups_of[others] != groups_of[row]]
        if not len(others):
            continue
        near = others[_alike(looks.thumbs[alone[row]], looks.thumbs[alone[others]])]
        for joined in np.unique(groups_of[near]):
            groups[groups == joined] = groups_of[row]
            groups_of[groups_of == joined] = groups_of[row]
    return _numbered(groups.tolist())


def _candidates(
    phash: NDArray[np.uint64], dhash: NDArray[np.uint64]
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield each image that has others after it whose hashes are near, and these."""
    rows = max(1, CELLS // max(1, len(phash)))
    for at in range(0, len(phash), rows):
        own = slice(at, at + rows)
        near = np.bitwise_count(dhash[own, None] ^ dhash[None, at:]) <= DHASH_BITS
        near &= np.bitwise_count(phash[own, None] ^ phash[None, at:]) <= PHASH_BITS
        for row in np.flatnonzero(near.sum(axis=1) > 1).tolist():  # each is near itself
            others = at + np.flatnonzero(near[row, row + 1 :]) + row + 1
            if len(others):
                yield at + row, others


def _alike(one: NDArray[np.float16], others: NDArray[np.float16]) -> NDArray[np.bool_]:
    """Tell which of some thumbnails, (B, 3, S, S), are of the same picture as one, (3, S, S)."""
    found = np.zeros(len(others), bool)
    for at in range(0, len(others), BATCH):
        some = torch.from_numpy(others[at : at + BATCH].astype(np.float32))
        own = torch.from_numpy(one.astype(np.float32)).expand_as(some)
        coarse = [_standard(functional.avg_pool2d(t, SIDE // COARSE)) for t in (own, some)]
        near = (coarse[0] - coarse[1]).abs().mean(dim=(1, 2, 3)) <= COARSE_MOST
        start = _apart(_standard(own), _standard(some))
        near &= start <= START_MOST
        sure = start <= FINE_MOST
        found[at : at + BATCH] = (near & sure).numpy()
        if (open_ := near & ~sure).any():
            found[at + np.flatnonzero(open_.numpy())] = _aligned(own[open_], some[open_])
    return found


def _apart(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the mean difference of standardised thumbnails over the smoother one's roughness, (B,).

    The border, which a crop leaves without a counterpart, is not compared.
    """
    inner = (a - b)[:, :, 2:-2, 2:-2].abs().mean(dim=(1, 2, 3))
    return inner / torch.minimum(_roughness(a), _roughness(b)).clamp(min=1e-6)


def _standard(thumbs: torch.Tensor) -> torch.Tensor:
    """Bring thumbnails to mean 0 a channel and deviation 1: brightness and contrast are no matter."""
    centred = thumbs - thumbs.mean(dim=(2, 3), keepdim=True)
    return centred / centred.std(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)


def _aligned(a: torch.Tensor, b: torch.Tensor) -> NDArray[np.bool_]:
    """Tell of pairs, (B, 3, S, S), whether one is the other but for a small shift and scaling of each axis.

    Gauss–Newton steps on the squared difference find shift and scaling (Lucas & Kanade 1981).
    """
    target = _standard(b)
    rough = torch.minimum(_roughness(_standard(a)), _roughness(target)).clamp(min=1e-6)
    centres = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    down, across = torch.meshgrid(centres, centres, indexing="ij")
    theta = torch.zeros(len(a), 4)
    best = torch.full((len(a),), torch.inf)
    for _ in range(4):
        x = across * (1 + theta[:, 1, None, None]) + theta[:, 0, None, None]
        y = down * (1 + theta[:, 3, None, None]) + theta[:, 2, None, None]
        grid = torch.stack([x, y], dim=-1)
        moved = functional.grid_sample(a, grid, mode="bicubic", padding_mode="border", align_corners=False)
        now = _standard(moved)
        inner = (target - now)[:, :, 2:-2, 2:-2].abs().mean(dim=(1, 2, 3))
        best = torch.minimum(best, inner)
        slope_y, slope_x = (slope * SIDE / 2 for slope in torch.gradient(now, dim=(2, 3)))
        slopes = torch.stack([slope_x, across * slope_x, slope_y, down * slope_y], dim=-1)
        jacobian = slopes.reshape(len(a), -1, 4)
        rest = (target - now).reshape(len(a), -1, 1)
        normal = jacobian.mT @ jacobian + 1e-3 * torch.eye(4)
        step = torch.linalg.solve(normal, jacobian.mT @ rest)[..., 0]
        theta = (theta + step).clamp(-0.1, 0.1)
    return np.asarray((best <= FINE_MOST * rough).numpy(), bool)


def _roughness(thumbs: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute difference between neighbours, (B,), summed over both directions."""
    steps = [thumbs.diff(dim=axis).abs().mean(dim=(1, 2, 3)) for axis in (2, 3)]
    return steps[0] + steps[1]
