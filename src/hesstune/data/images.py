"""Decode image files once, by Pillow, into square uint8 tensors."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from hesstune.errors import DataError
from hesstune.storage.tensors import digest, digest_of_texts

__all__ = ["SUFFIXES", "DecodedImages", "FileImages", "decode", "decode_all"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
# Pillow warns from here on, and refuses twice as many; a few hundred bytes can claim any number.
MAX_PIXELS = 89_478_485
# Bytes that one thread hashes at a time.
_CHUNK = 1 << 26


def decode(path: Path, size: int) -> torch.Tensor:
    """Decode one image: shorter side to `size`, centre crop, RGB, uint8, (3, size, size).

    Raises:
        DataError: If the file is missing, corrupt, truncated or too large to be decoded safely.
    """
    try:
        # Only these: Pillow also knows formats whose decoders run other programs.
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                told = f"{image.width} × {image.height} pixels"
                raise ValueError(f"it has {told}; at most {MAX_PIXELS:,} are read")
            image.draft("RGB", (size, size))  # a JPEG decodes at reduced size where that suffices
            rgb = image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise many kinds of errors on damaged files
        raise DataError(f"cannot decode the image {path}: {error or type(error).__name__}") from error
    width, height = rgb.size
    scale = size / min(width, height)
    if (width, height) != (size, size):
        wide, high = max(size, round(width * scale)), max(size, round(height * scale))
        left, top = (wide - size) // 2, (high - size) // 2
        rgb = rgb.resize((wide, high), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()


class DecodedImages:
    """Images kept in memory, uint8, (N, 3, S, S)."""

    def __init__(self, array: torch.Tensor) -> None:
        self.array = array

    def batch(self, indices: NDArray[np.int64]) -> torch.Tensor:
        """Return the images at the indices."""
        return self.array[torch.from_numpy(np.asarray(indices, dtype=np.int64))]

    @property
    def digest(self) -> str:
        """Checksum of the pixels as they are now: the hash of the hashes of chunks."""
        parts = self.array.contiguous().flatten().split(_CHUNK)
        with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter's lock
            return digest_of_texts(pool.map(lambda part: digest({"": part}), parts))


class FileImages:
    """Images decoded anew for each batch, for data sets larger than the memory set aside for them."""

    def __init__(self, paths: Sequence[Path], size: int, workers: int = 4) -> None:
        self.paths = list(paths)
        self.size = size
        self._pool = ThreadPoolExecutor(workers)

    def batch(self, indices: NDArray[np.int64]) -> torch.Tensor:
        """Decode and return the images at the indices."""
        return torch.stack(list(self._pool.map(lambda i: decode(self.paths[i], self.size), indices)))

    @cached_property
    def digest(self) -> str:
        """Checksum of the files' contents, whatever their names and times; read once for each source.

        Raises:
            DataError: If a file cannot be read.
        """
        return digest_of_texts(self._pool.map(_digest_of_file, self.paths))


def _digest_of_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise DataError(f"cannot read the image {path}: {error.strerror or error}") from error


def decode_all(
    paths: Sequence[Path], size: int, cache_mib: int, workers: int = 4
) -> tuple[DecodedImages | FileImages, dict[int, str]]:
    """Decode every image once, so that a damaged file is found before training starts.

    Args:
        paths: Image files.
        size: Side of the square they are brought to.
        cache_mib: Keep the decoded images in memory if they fit in so many MiB; else decode per batch.
        workers: Decoding threads (Pillow releases the interpreter's lock).

    Returns:
        The image source, and {index: reason} of the files that could not be decoded.
    """
    keep = len(paths) * 3 * size * size <= cache_mib * 2**20
    array = torch.zeros((len(paths) if keep else 0, 3, size, size), dtype=torch.uint8)
    bad: dict[int, str] = {}

    def one(index: int) -> None:
        try:
            image = decode(paths[index], size)
        except DataError as error:
            bad[index] = str(error)
        else:
            if keep:
                array[index] = image

    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # an error here
        list(pool.map(one, range(len(paths))))
    source = DecodedImages(array) if keep else FileImages(paths, size, workers)
    return source, dict(sorted(bad.items()))
