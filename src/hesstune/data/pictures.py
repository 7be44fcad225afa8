"""Images that are objects in memory: Pillow's, or files' bytes, brought to squares as files are."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from hesstune.data.arrays import square_pixels
from hesstune.data.images import quiet_pillow, read_image
from hesstune.data.reading import WHITE
from hesstune.data.rgb import Oddities, to_rgb

__all__ = ["decode_pictures"]


def decode_pictures(
    pictures: Iterable[Any],
    size: int,
    background: tuple[int, int, int] = WHITE,
    ids: Sequence[str] | None = None,
) -> tuple[torch.Tensor, dict[int, str], list[str]]:
    """Bring images to (N, 3, size, size) uint8, by the same rules as files.

    Args:
        pictures: PIL images, bytes of files, paths, or mappings of `bytes` and `path`.
        size: Side of the square.
        background: What transparent pixels are laid on.
        ids: What messages call them; None: their numbers.

    Returns:
        The images, black where one cannot be decoded; {index: reason} of these; and what was changed, in
        sentences.
    """
    rows: list[torch.Tensor] = []
    odd, bad = Oddities(), dict[int, str]()
    for at, value in enumerate(pictures):
        try:
            with quiet_pillow():
                rgb, changes = _rgb(value, background)
            rows.append(square_pixels(rgb, size))
        except Exception as error:  # Pillow's decoders raise many kinds of errors on damaged images
            called = at if ids is None else ids[at]
            bad[at] = f"cannot decode the image of example {called}: {error or type(error).__name__}"
            rows.append(torch.zeros((1, 3, size, size), dtype=torch.uint8))
        else:
            odd.add(at, changes)
    return torch.cat(rows), bad, odd.notes(len(rows), background)


def _rgb(value: Any, background: tuple[int, int, int]) -> tuple[Any, dict[str, float]]:
    if isinstance(value, dict) and value.keys() <= {"bytes", "path"}:
        content, path = value.get("bytes"), value.get("path")
        value = content if content is not None else path and Path(path)
    if isinstance(value, bytes):
        return read_image(io.BytesIO(value), background)
    if isinstance(value, Path):
        return read_image(value, background)
    if hasattr(value, "convert"):
        return to_rgb(value, background)
    raise ValueError("there is none" if value is None else f"it is a {type(value).__name__}, not an image")
