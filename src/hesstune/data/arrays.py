"""Images that are arrays already: `array:FILE.npz`."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from hesstune.checks import readable_file
from hesstune.data.class_labels import with_labels
from hesstune.data.contents import image_digests
from hesstune.data.examples import Listing
from hesstune.data.parts import each_part
from hesstune.data.reading import WHITE, Reading
from hesstune.data.rgb import narrowed, on_background
from hesstune.errors import DataError, listed
from hesstune.storage.files import read_array, reading
from hesstune.storage.tables import Column, as_cell

# What an .npz file may hold, and what of it has one value an image.
NAMES, EACH = ("images", "labels", "classes", "split"), ("labels", "split")
# Arrays are kept in memory whole; a small file may claim to unpack to any size.
MAX_MIB = 8192


def enlarged(images: torch.Tensor, size: int) -> torch.Tensor:
    """Resize (N, C, h, w) float images in [0, 255] to (N, 3, size, size) uint8; grey becomes RGB."""
    if images.shape[-2:] != (size, size):
        images = torch.nn.functional.interpolate(
            images, size=(size, size), mode="bicubic", align_corners=False, antialias=True
        )
    return images.clamp(0, 255).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()


def square_pixels(rgb: Image.Image, size: int) -> torch.Tensor:
    """Bring an RGB image to (1, 3, size, size) uint8: centre crop, then resized."""
    array = np.array(rgb)
    side = min(array.shape[:2])
    top, left = (array.shape[0] - side) // 2, (array.shape[1] - side) // 2
    square = array[top : top + side, left : left + side]
    return enlarged(torch.from_numpy(square.copy()).permute(2, 0, 1)[None].float(), size)


def scaled(images: NDArray[np.generic], size: int) -> torch.Tensor:
    """Bring what `as_images` gives, (N, H, W, C), to (N, 3, size, size) uint8."""
    factor = 255.0 if images.dtype.kind == "f" else 1.0
    return enlarged(torch.from_numpy(images.astype(np.float32) * factor).permute(0, 3, 1, 2), size)


def as_images(
    array: NDArray[np.generic], what: str = "images", background: tuple[int, int, int] = WHITE
) -> tuple[NDArray[np.generic], list[str]]:
    """Return images as (N, H, W, C), C = 1 or 3, from (N, H, W) or (N, H, W, C), and what was changed.

    Unsigned integers of 16 bits above 255 are scaled by 65535, and a fourth channel is opacity.

    Raises:
        DataError: If the shape is another, or the values are no integers 0 … 255 nor floats 0 … 1.
    """
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[3] not in (1, 3, 4):
        raise DataError(f"{what} must have the shape (N, H, W) or (N, H, W, 1, 3 or 4); got {array.shape}")
    if array.dtype.kind not in "uif":
        raise DataError(f"{what} must hold numbers; got {array.dtype}")
    if array.size and not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).all(axis=(1, 2, 3)))[0])
        raise DataError(f"{what} hold values that are not finite, first in row {row}")
    notes: list[str] = []
    deep = array.dtype.kind == "u" and array.dtype.itemsize == 2 and array.size and array.max() > 255
    if deep:
        array, scale, most = narrowed(array)
        notes.append(f"images of 16 bits are scaled to 8 bits from {scale} (their largest value: {most:g})")
    top = 1.0 if array.dtype.kind == "f" else 255
    if array.size and (array.min() < 0 or array.max() > top):
        raise DataError(
            f"{what} must hold integers from 0 to 255 or floats from 0 to 1; got {array.dtype} from "
            f"{array.min():g} to {array.max():g}"
        )
    if array.shape[3] == 4:
        factor = 255.0 if array.dtype.kind == "f" else 1.0
        array = on_background((array.astype(np.float32) * factor).round(), background)
        colour = "white" if background == WHITE else f"the colour {background}"
        notes.append(
            f"images of four channels, the last taken for opacity, are laid on {colour} (--background)"
        )
    return array, notes


def read_arrays(path: Path, size: int, labelled: bool, how: Reading | None = None) -> Listing:
    """Read an .npz file: `images`, `labels` (integers or names), perhaps `classes` (names) and `split`.

    Raises:
        DataError: If the file is damaged or holds something else; it is read without pickle.
    """
    how = how or Reading()
    path = readable_file(path, "the data file")
    found: dict[str, NDArray[Any]] = {}
    with reading(path, ".npz arrays", DataError), zipfile.ZipFile(path) as archive:
        entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        for name in (name for name in NAMES if name in entries):
            with archive.open(entries[name]) as file:
                found[name] = read_array(file, entries[name].file_size, most_mib=MAX_MIB)
    if "images" not in found or (labelled and "labels" not in found):
        raise DataError(f"{path} needs the arrays 'images' and 'labels'; got {listed(entries) or 'none'}")
    images, notes = as_images(found["images"], f"the images in {path}", how.background)
    if not len(images):
        raise DataError(f"{path} holds no images")
    if others := [name for name in entries if name not in NAMES]:
        notes.append(f"arrays of {path} left out: {listed(others)}")
    cells = {name: _cells(found[name], len(images), f"{name}' in {path}") for name in found if name in EACH}
    parts = None
    if "split" in cells:
        parts, more = each_part(Column(cells["split"], first=0), f"the array 'split' of {path}", labelled)
        notes += more
    ids = [str(i) for i in range(len(images))]
    made = Listing(
        ids, None, [], array=scaled(images, size), parts=parts, notes=notes, digests=image_digests(images)
    )
    if "labels" not in cells:
        return made
    names = [str(name) for name in found["classes"].ravel()] if "classes" in found else None
    labels = Column(cells["labels"], first=0)
    return with_labels(made, labels, f"the array 'labels' of {path}", labelled, names)


def _cells(values: NDArray[Any], n: int, what: str) -> list[str]:
    if values.shape != (n,) or values.dtype.kind not in "uibfUS":
        raise DataError(
            f"the array '{what} must hold {n} values, one an image, class indices or names; got "
            f"{values.dtype} of shape {values.shape}"
        )
    plain = np.char.decode(values, "utf-8", "replace") if values.dtype.kind == "S" else values
    return [as_cell(value) for value in plain.tolist()]
