"""One way from whatever Pillow decodes to an upright, opaque image of 8-bit RGB, and what was changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hesstune.data.reading import WHITE

ORIENTATION = 0x0112
# What brings an image upright, by its EXIF orientation.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TURNED, LAID, OWN = "turned", "laid", "its own range"


@dataclass
class Oddities:
    """What images were changed in beside their size, counted over a data set.

    Attributes:
        counts: How many images each change was made to.
        brightest: The largest value of images scaled from more than 8 bits, by range.
        rows: Which images were changed.
    """

    counts: Counter[str] = field(default_factory=Counter)
    brightest: dict[str, float] = field(default_factory=dict)
    rows: set[int] = field(default_factory=set)

    def add(self, row: int, changes: Mapping[str, float]) -> None:
        """Count one image's changes."""
        if changes:
            self.rows.add(row)
        for name, value in changes.items():
            self.counts[name] += 1
            self.brightest[name] = max(value, self.brightest.get(name, value))

    def notes(self, total: int, background: tuple[int, int, int] = WHITE) -> list[str]:
        """Say what was changed, in sentences."""
        found = []
        for name, count in sorted(self.counts.items()):
            many = f"{count} of {total} images"
            if name == TURNED:
                found.append(f"{many} turned upright, as their EXIF orientation says")
            elif name == LAID:
                colour = "white" if background == WHITE else f"the colour {background}"
                found.append(f"{many} have transparent pixels: laid on {colour} (--background)")
            else:
                top = "" if name == OWN else f" (their largest value: {self.brightest[name]:g})"
                found.append(f"{many} of more than 8 bits or of floats, scaled to 8 bits from {name}{top}")
        return found


def to_rgb(
    image: Image.Image, background: tuple[int, int, int] = WHITE
) -> tuple[Image.Image, dict[str, float]]:
    """Return an image upright, in 8-bit RGB, transparent pixels laid on a background; and what was changed.

    Values of more than 8 bits are scaled by the range of their type, 0 … 65535, floats from 0 … 1, 0 … 255 or
    0 … 65535, the first that holds them; others from the image's own least to its largest value. An image
    that needs none of this has the pixels that Pillow's convert("RGB") gives.
    """
    image.load()
    changes: dict[str, float] = {}
    if (turn := UPRIGHT.get(_orientation(image))) is not None:
        image = image.transpose(turn)
        changes[TURNED] = 1
    if image.mode.startswith("I") or image.mode == "F":
        grey, scale, top = narrowed(np.asarray(image))
        clear = image.info.get("transparency")
        hidden = np.asarray(image) == clear if isinstance(clear, int) else None
        if scale:
            changes[scale] = top
        image = Image.fromarray(grey).convert("RGB")
        if hidden is not None and hidden.any():
            image.paste(background, mask=Image.fromarray(hidden))
            changes[LAID] = 1
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        if np.asarray(rgba.getchannel("A")).min() < 255:
            base = Image.new("RGBA", rgba.size, (*background, 255))
            base.alpha_composite(rgba)
            image = base
            changes[LAID] = 1
    return (image if image.mode == "RGB" else image.convert("RGB")), changes


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF raises many kinds; the pixels are there all the same
        return 1


def narrowed(array: NDArray[np.generic]) -> tuple[NDArray[np.uint8], str, float]:
    """Scale grey or colour values to 8 bits.

    Args:
        array: Numbers of more than 8 bits, or floats.

    Returns:
        The values, uint8; the range they were scaled from, "" where they were in 0 … 255 already; and the
        largest one.

    Raises:
        ValueError: If a value is not finite.

    Example:
        >>> narrowed(np.array([0, 257, 65535], dtype=np.uint16))
        (array([  0,   1, 255], dtype=uint8), '0 to 65535', 65535.0)
    """
    values: NDArray[np.float32] = np.asarray(array, dtype=np.float32)
    if not values.size:
        return values.astype(np.uint8), "", 0.0
    low, top = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(top)):
        raise ValueError("it holds values that are not finite")
    if low < 0 or top > 65535:
        spread = max(top - low, 1e-30)
        return ((values - low) * np.float32(255 / spread)).round().astype(np.uint8), OWN, top
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return (values / np.float32(257)).round().astype(np.uint8), "0 to 65535", top
    if array.dtype.kind == "f" and top <= 1:
        return (values * np.float32(255)).round().astype(np.uint8), "0 to 1", top
    if top <= 255:
        return values.astype(np.uint8), "", top
    return (values / np.float32(257)).round().astype(np.uint8), "0 to 65535", top


def on_background(array: NDArray[np.generic], background: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Lay images of 8-bit RGBA, (N, H, W, 4), on a colour; return RGB, (N, H, W, 3)."""
    laid = np.empty((*array.shape[:3], 3), dtype=np.uint8)
    for at, image in enumerate(array.astype(np.uint8)):
        laid[at] = np.asarray(to_rgb(Image.fromarray(image, "RGBA"), background)[0])
    return laid
