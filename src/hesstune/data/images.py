"""Decode image files once, by Pillow, into square uint8 tensors."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, features

from hesstune.data.contents import DIGEST_BYTES, Digests, as_digests, image_digests
from hesstune.data.reading import WHITE
from hesstune.data.rgb import Oddities, to_rgb
from hesstune.errors import DataError
from hesstune.storage.tensors import digest, digest_of_texts

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
# Pillow warns from here on, and refuses twice as many; a few hundred bytes can claim any number.
MAX_PIXELS = 89_478_485
# Sides beyond so many times the shorter one are cut before the image is resized.
LONGEST = 16
# Bytes that one thread hashes at a time.
_CHUNK = 1 << 26


@cache
def _has_avif() -> bool:
    with warnings.catch_warnings():  # of a feature that older versions of Pillow do not know
        warnings.simplefilter("ignore")
        return bool(features.check("avif"))


def _formats() -> tuple[str, ...]:
    """Return the formats that are read: AVIF where Pillow was built with it, HEIF where a plugin is there."""
    avif, heif = ("AVIF",) * _has_avif(), ("HEIF",) * ("HEIF" in Image.OPEN)
    return (*FORMATS, *avif, *heif)


def readable_suffixes() -> tuple[str, ...]:
    """Return how names of image files end, in lower case."""
    formats = _formats()
    avif, heif = (".avif", ".avifs") * ("AVIF" in formats), (".heic", ".heif", ".hif") * ("HEIF" in formats)
    return (*SUFFIXES, *avif, *heif)


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Keep Pillow from warning of sizes, which are errors here, and of damaged EXIF, while this lasts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def read_image(
    file: Path | IO[bytes], background: tuple[int, int, int] = WHITE, side: int | None = None
) -> tuple[Image.Image, dict[str, float]]:
    """Read an image file as upright RGB; see `hesstune.data.rgb`.

    Args:
        file: A path or an open file.
        background: What transparent pixels are laid on.
        side: A JPEG may be decoded at a smaller size, not below this.

    Returns:
        The image, and what was changed.

    Raises:
        Exception: Of many kinds, if it is damaged, or too large to be decoded safely.
    """
    # Only these: Pillow also knows formats whose decoders run other programs.
    with Image.open(file, formats=_formats()) as image:
        if image.width * image.height > MAX_PIXELS:
            told = f"{image.width} × {image.height} pixels"
            raise ValueError(f"it has {told}; at most {MAX_PIXELS:,} are read")
        if side is not None:
            image.draft("RGB", (side, side))
        return to_rgb(image, background)


def decode(path: Path, size: int, background: tuple[int, int, int] = WHITE) -> torch.Tensor:
    """Decode one image: shorter side to `size`, centre crop, RGB, uint8, (3, size, size).

    It is turned as its EXIF orientation says, and transparent pixels are laid on the background.

    Raises:
        DataError: If the file is missing, corrupt, truncated or too large to be decoded safely.
    """
    return decode_seen(path, size, background, False)[0]


def decode_seen(
    path: Path, size: int, background: tuple[int, int, int] = WHITE, hashed: bool = True
) -> tuple[torch.Tensor, dict[str, float], bytes]:
    """Decode one image as `decode` does.

    Returns:
        The image, what was changed in it (see `hesstune.data.rgb`), and the digest of the file: b""
        if it is not hashed.
    """
    try:
        with path.open("rb") as file:
            rgb, changes = read_image(file, background, size)
            # Decoding has brought the file into the system's cache.
            digest = _digest_of_open(file) if hashed else b""
    except Exception as error:  # Pillow's decoders raise many kinds of errors on damaged files
        raise DataError(f"cannot decode the image {path}: {error or type(error).__name__}") from error
    return torch.from_numpy(np.array(_square(rgb, size))).permute(2, 0, 1).contiguous(), changes, digest


def _square(rgb: Image.Image, size: int) -> Image.Image:
    """Bring the shorter side to a size and cut the middle."""
    width, height = rgb.size
    scale = size / min(width, height)
    if (width, height) == (size, size):
        return rgb
    wide, high = max(size, round(width * scale)), max(size, round(height * scale))
    left, top = (wide - size) // 2, (high - size) // 2
    if max(wide, high) > LONGEST * size:  # resized whole, a strip one pixel high would fill the memory
        box = (left * width / wide, top * height / high)
        end = ((left + size) * width / wide, (top + size) * height / high)
        return rgb.resize((size, size), Image.Resampling.BILINEAR, box=(*box, *end))
    return rgb.resize((wide, high), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))


class DecodedImages:
    """Images kept in memory, uint8, (N, 3, S, S).

    Args:
        array: The images.
        digests: (N, 16) digests of what they were decoded from; None: of their pixels.
    """

    def __init__(self, array: torch.Tensor, digests: Digests | None = None) -> None:
        self.array = array
        self._digests = digests

    def batch(self, indices: NDArray[np.int64]) -> torch.Tensor:
        """Return the images at the indices."""
        return self.array[torch.from_numpy(np.asarray(indices, dtype=np.int64))]

    def take(self, rows: Sequence[int]) -> DecodedImages:
        """Return a source of some of the images."""
        return DecodedImages(self.array[rows], None if self._digests is None else self._digests[rows])

    def digests(self, indices: NDArray[np.int64], anew: bool = False) -> Digests:
        """Return the digests of the images at the indices: `anew`, of their pixels as they are now."""
        if self._digests is not None and not anew:
            return self._digests[indices]
        return image_digests(self.batch(indices).permute(0, 2, 3, 1).numpy())

    @property
    def digest(self) -> str:
        """Checksum of the pixels as they are now: the hash of the hashes of chunks."""
        parts = self.array.contiguous().flatten().split(_CHUNK)
        with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter's lock
            return digest_of_texts(pool.map(lambda part: digest({"": part}), parts))


class FileImages:
    """Images decoded anew for each batch, for data sets larger than the memory set aside for them."""

    def __init__(
        self,
        paths: Sequence[Path],
        size: int,
        workers: int = 4,
        background: tuple[int, int, int] = WHITE,
        changed: Collection[int] = (),
        digests: Digests | None = None,
    ) -> None:
        self.paths = list(paths)
        self.size = size
        self._background, self._changed = background, sorted(changed)
        self._pool = ThreadPoolExecutor(workers)
        self._digests = digests

    def batch(self, indices: NDArray[np.int64]) -> torch.Tensor:
        """Decode and return the images at the indices."""

        def one(index: int) -> torch.Tensor:
            return decode(self.paths[index], self.size, self._background)

        with quiet_pillow():
            return torch.stack(list(self._pool.map(one, indices)))

    def take(self, rows: Sequence[int]) -> FileImages:
        """Return a source of some of the files."""
        changed = [at for at, row in enumerate(rows) if row in set(self._changed)]
        digests = None if self._digests is None else self._digests[rows]
        return FileImages([self.paths[i] for i in rows], self.size, 4, self._background, changed, digests)

    def digests(self, indices: NDArray[np.int64], anew: bool = False) -> Digests:
        """Return the digests of the files at the indices; without any yet, or `anew`, all files are read.

        Raises:
            DataError: If a file cannot be read.
        """
        if self._digests is None or anew:
            self._digests = as_digests(self._pool.map(_digest_of_file, self.paths))
        return self._digests[indices]

    @cached_property
    def digest(self) -> str:
        """Checksum of the files' contents, whatever their names and times; read once for each source.

        Where the pixels are not those of the file alone, it tells how they were made, too.

        Raises:
            DataError: If a file cannot be read.
        """
        how = [f"upright on {self._background}: {self._changed}"] if self._changed else []
        every = self.digests(np.arange(len(self.paths)))
        return digest_of_texts([*(row.tobytes().hex() for row in every), *how])


def _digest_of_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return _digest_of_open(file)
    except OSError as error:
        raise DataError(f"cannot read the image {path}: {error.strerror or error}") from error


def _digest_of_open(file: IO[bytes]) -> bytes:
    file.seek(0)
    return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)).digest()  # type: ignore[arg-type]


def decode_all(
    paths: Sequence[Path],
    size: int,
    cache_mib: int,
    workers: int = 4,
    background: tuple[int, int, int] = WHITE,
    oddities: Oddities | None = None,
) -> tuple[DecodedImages | FileImages, dict[int, str]]:
    """Decode every image once, so that a damaged file is found before training starts.

    Args:
        paths: Image files.
        size: Side of the square they are brought to.
        cache_mib: Keep the decoded images in memory if they fit in so many MiB; else decode per batch.
        workers: Decoding threads (Pillow releases the interpreter's lock).
        background: What transparent pixels are laid on.
        oddities: Where what was changed is counted.

    Returns:
        The image source, and {index: reason} of the files that could not be decoded.
    """
    keep = len(paths) * 3 * size * size <= cache_mib * 2**20
    array = torch.zeros((len(paths) if keep else 0, 3, size, size), dtype=torch.uint8)
    bad: dict[int, str] = {}
    digests = np.zeros((len(paths), DIGEST_BYTES), np.uint8)
    odd = Oddities() if oddities is None else oddities

    def one(index: int) -> dict[str, float]:
        try:
            image, changes, digest = decode_seen(paths[index], size, background)
        except DataError as error:
            bad[index] = str(error)
            return {}
        digests[index] = np.frombuffer(digest, np.uint8)
        if keep:
            array[index] = image
        return changes

    with quiet_pillow(), ThreadPoolExecutor(workers) as pool:
        for index, changes in enumerate(pool.map(one, range(len(paths)))):
            odd.add(index, changes)
    bad = dict(sorted(bad.items()))
    if keep:
        return DecodedImages(array, digests), bad
    return FileImages(paths, size, workers, background, odd.rows, digests), bad
