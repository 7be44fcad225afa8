"""Images that are arrays already: `array:FILE.npz`."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune._former import former_names
from hesstune.checks import readable_file
from hesstune.data.examples import Listing
from hesstune.errors import DataError
from hesstune.storage.reading import read_array, reading

# Arrays are kept in memory whole; a small file may claim to unpack to any size.
MAX_MIB = 8192

__all__ = ["as_images", "enlarged", "read_arrays", "scaled", "square_pixels"]


def enlarged(images: torch.Tensor, size: int) -> torch.Tensor:
    """Resize (N, C, h, w) float images in [0, 255] to (N, 3, size, size) uint8; grey becomes RGB."""
    if images.shape[-2:] != (size, size):
        images = torch.nn.functional.interpolate(
            images, size=(size, size), mode="bicubic", align_corners=False, antialias=True
        )
    return images.clamp(0, 255).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()


def square_pixels(image: Any, size: int) -> torch.Tensor:
    """Bring a PIL image to (1, 3, size, size) uint8: centre crop, then resized."""
    array = np.array(image.convert("RGB"))
    side = min(array.shape[:2])
    top, left = (array.shape[0] - side) // 2, (array.shape[1] - side) // 2
    square = array[top : top + side, left : left + side]
    return enlarged(torch.from_numpy(square.copy()).permute(2, 0, 1)[None].float(), size)


def scaled(images: NDArray[np.generic], size: int) -> torch.Tensor:
    """Bring what `as_images` gives, (N, H, W, C), to (N, 3, size, size) uint8."""
    factor = 255.0 if images.dtype.kind == "f" else 1.0
    return enlarged(torch.from_numpy(images.astype(np.float32) * factor).permute(0, 3, 1, 2), size)


def as_images(array: NDArray[np.generic], what: str = "images") -> NDArray[np.generic]:
    """Return images as (N, H, W, C), C = 1 or 3, from (N, H, W) or (N, H, W, C).

    Raises:
        DataError: If the shape is another, or the values are no integers 0 … 255 nor floats 0 … 1.
    """
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[3] not in (1, 3):
        raise DataError(f"{what} must have the shape (N, H, W) or (N, H, W, 1 or 3); got {array.shape}")
    if array.dtype.kind not in "uif":
        raise DataError(f"{what} must hold numbers; got {array.dtype}")
    if array.size and not np.isfinite(array).all():
        raise DataError(f"{what} hold values that are not finite")
    top = 1.0 if array.dtype.kind == "f" else 255
    if array.size and (array.min() < 0 or array.max() > top):
        raise DataError(
            f"{what} must hold integers from 0 to 255 or floats from 0 to 1; got {array.dtype} from "
            f"{array.min():g} to {array.max():g}"
        )
    return array


def read_arrays(path: Path, size: int, labelled: bool) -> Listing:
    """Read an .npz file: `images`, `labels` (integers) and perhaps `classes` (names).

    Raises:
        DataError: If the file is damaged or holds something else; it is read without pickle.
    """
    path = readable_file(path, "the data file")
    found = {}
    with reading(path, ".npz arrays", DataError), zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        for name in ("images", "labels", "classes"):
            if (entry := entries.get(f"{name}.npy")) is not None:
                with archive.open(entry) as file:
                    found[name] = read_array(file, entry.file_size, most_mib=MAX_MIB)
    if "images" not in found or (labelled and "labels" not in found):
        raise DataError(f"{path} needs the arrays 'images' and 'labels'; got {', '.join(found) or 'none'}")
    images = as_images(found["images"], f"the images in {path}")
    if not len(images):
        raise DataError(f"{path} holds no images")
    labels = found.get("labels")
    if labels is not None:
        labels = _checked_labels(labels, len(images), path)
    names = [str(name) for name in found["classes"]] if "classes" in found else []
    if labels is not None and int(labels.max()) >= max(len(names), 1):
        if names:
            raise DataError(f"{path}: label {int(labels.max())} has no name; 'classes' holds {len(names)}")
        names = [str(i) for i in range(int(labels.max()) + 1)]
    return Listing([str(i) for i in range(len(images))], labels, names, array=scaled(images, size))


def _checked_labels(labels: NDArray[np.generic], n: int, path: Path) -> NDArray[np.int64]:
    if labels.shape != (n,) or labels.dtype.kind not in "ui":
        raise DataError(
            f"the labels in {path} must be {n} integers; got {labels.dtype} of shape {labels.shape}"
        )
    if len(labels) and int(labels.min()) < 0:
        raise DataError(f"the labels in {path} must not be negative; got {int(labels.min())}")
    return labels.astype(np.int64)


__getattr__ = former_names(__name__, write_arrays="numpy.savez(path, images=…, labels=…, classes=…)")
