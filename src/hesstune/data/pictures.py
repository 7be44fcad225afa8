"""Images that are objects in memory: Pillow's, or files' bytes, brought to squares as files are."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hesstune.data.arrays import square_pixels
from hesstune.data.contents import DIGEST_BYTES, Digests, as_digests, digest_bytes, image_digests
from hesstune.data.images import quiet_pillow, read_image
from hesstune.data.reading import WHITE
from hesstune.data.rgb import Oddities, to_rgb


def decode_pictures(
    pictures: Iterable[Any],
    size: int,
    background: tuple[int, int, int] = WHITE,
    ids: Sequence[str] | None = None,
) -> tuple[torch.Tensor, Digests, dict[int, str], list[str]]:
    """Bring images to (N, 3, size, size) uint8, by the same rules as files.

    Args:
        pictures: PIL images, bytes of files, paths, or mappings of `bytes` and `path`.
        size: Side of the square.
        background: What transparent pixels are laid on.
        ids: What messages call them; None: their numbers.

    Returns:
        The images, black where one cannot be decoded; their digests, those of the bytes of encoded images;
        {index: reason} of those that cannot be decoded; and what was changed, in sentences.
    """
    rows: list[torch.Tensor] = []
    digests: list[Digests] = []
    odd, bad = Oddities(), dict[int, str]()
    for at, value in enumerate(pictures):
        try:
            with quiet_pillow():
                rgb, changes, encoded = _rgb(value, background)
            pixels = square_pixels(rgb, size)
            found = image_digests([np.array(rgb)]) if encoded is None else as_digests([digest_bytes(encoded)])
        except Exception as error:  # Pillow's decoders raise many kinds of errors on damaged images
            called = at if ids is None else ids[at]
            bad[at] = f"cannot decode the image of example {called}: {error or type(error).__name__}"
            pixels = torch.zeros((1, 3, size, size), dtype=torch.uint8)
            found = np.zeros((1, DIGEST_BYTES), np.uint8)
        else:
            odd.add(at, changes)
        rows.append(pixels)
        digests.append(found)
    return torch.cat(rows), np.concatenate(digests), bad, odd.notes(len(rows), background)


def _rgb(value: Any, background: tuple[int, int, int]) -> tuple[Any, dict[str, float], bytes | None]:
    """Return an image, what was changed in it, and its encoded bytes, or None of one that is decoded."""
    if isinstance(value, dict) and value.keys() <= {"bytes", "path"}:
        content, path = value.get("bytes"), value.get("path")
        value = content if content is not None else path and Path(path)
    if isinstance(value, Path):
        value = value.read_bytes()
    if isinstance(value, bytes):
        return *read_image(io.BytesIO(value), background), value
    if hasattr(value, "convert"):
        return *to_rgb(value, background), None
    raise ValueError("there is none" if value is None else f"it is a {type(value).__name__}, not an image")
