"""Images: decoding with Pillow, conversion to square uint8 tensors, and sources of decoded images."""

from __future__ import annotations

import contextlib
import hashlib
import io
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, features

from hesstune.data.examples import DIGEST_BYTES, Digests, as_digests, digest_bytes, image_digests
from hesstune.data.reading import WHITE
from hesstune.errors import DataError
from hesstune.resizing import LONGEST, Resize, Size, side_of
from hesstune.storage.tensors import digest, digest_of_texts

Colour = tuple[int, int, int]

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
# Only these: Pillow also knows formats whose decoders run other programs.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
# From this size on Pillow warns. A few hundred bytes can claim any size.
MAX_PIXELS = 89_478_485
# Threads that decode (Pillow releases the interpreter's lock), and bytes that one thread hashes at a time.
THREADS, _CHUNK = 4, 1 << 26
# The EXIF tag of the orientation, and what turns an image upright.
ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Changes of an image; the others are the ranges from which values were scaled.
TURNED, LAID, OWN_RANGE = "turned", "laid", "its own range"


@cache
def _has_avif() -> bool:
    with warnings.catch_warnings():  # older versions of Pillow do not know the feature
        warnings.simplefilter("ignore")
        return bool(features.check("avif"))


def _has_heif() -> bool:
    return "HEIF" in Image.OPEN  # registered by a plugin


def readable_suffixes() -> tuple[str, ...]:
    """Return the suffixes of image files that can be read, in lower case."""
    return (*SUFFIXES, *((".avif", ".avifs") * _has_avif()), *((".heic", ".heif", ".hif") * _has_heif()))


@dataclass
class Changes:
    """Counts of the changes made to the images of a data set, besides their size."""

    counts: Counter[str] = field(default_factory=Counter)
    # The largest value of images scaled from more than 8 bits, by range.
    largest: dict[str, float] = field(default_factory=dict)
    # Indices of changed images.
    rows: set[int] = field(default_factory=set)

    def add(self, row: int, changes: Mapping[str, float]) -> None:
        """Count the changes of one image."""
        if changes:
            self.rows.add(row)
        for name, value in changes.items():
            self.counts[name] += 1
            self.largest[name] = max(value, self.largest.get(name, value))

    def notes(self, total: int, background: Colour) -> list[str]:
        """Say what was changed, in sentences."""
        found = []
        for name, count in sorted(self.counts.items()):
            many = f"{count} of {total} images"
            if name == TURNED:
                found.append(f"{many} turned upright, as their EXIF orientation says")
            elif name == LAID:
                found.append(
                    f"{many} have transparent pixels: laid on {_colour_name(background)} (--background)"
                )
            else:
                top = "" if name == OWN_RANGE else f" (their largest value: {self.largest[name]:g})"
                found.append(f"{many} of more than 8 bits or of floats, scaled to 8 bits from {name}{top}")
        return found


def _colour_name(background: Colour) -> str:
    return "white" if background == WHITE else f"the colour {background}"


def to_rgb(image: Image.Image, background: Colour = WHITE) -> tuple[Image.Image, dict[str, float]]:
    """Return an image upright, in 8-bit RGB, transparent pixels laid on a background; and the changes.

    Values of more than 8 bits are scaled by the range of their type, see `scale_to_8_bits`. An image that
    needs none of this has the pixels of Pillow's convert("RGB").
    """
    image.load()
    changes: dict[str, float] = {}
    try:
        orientation = int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF raises many kinds of errors; the pixels can still be read
        orientation = 1
    if orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
        changes[TURNED] = 1
    if image.mode.startswith("I") or image.mode == "F":
        grey, scale, top = scale_to_8_bits(np.asarray(image))
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
            image = Image.new("RGBA", rgba.size, (*background, 255))
            image.alpha_composite(rgba)
            changes[LAID] = 1
    return (image if image.mode == "RGB" else image.convert("RGB")), changes


def scale_to_8_bits(array: NDArray[np.generic]) -> tuple[NDArray[np.uint8], str, float]:
    """Scale numbers of more than 8 bits, or floats; return them, the range "" or "… to …", and the largest.

    The range is 0 … 65535 for unsigned integers of 16 bits; for other numbers the first of 0 … 1 (floats),
    0 … 255 ("") and 0 … 65535 that holds them, or else their own range.
    """
    values: NDArray[np.float32] = np.asarray(array, dtype=np.float32)
    if not values.size:
        return values.astype(np.uint8), "", 0.0
    low, top = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(top)):
        raise ValueError("it holds values that are not finite")
    if low < 0 or top > 65535:
        spread = max(top - low, 1e-30)
        return ((values - low) * np.float32(255 / spread)).round().astype(np.uint8), OWN_RANGE, top
    deep = array.dtype.kind == "u" and array.dtype.itemsize == 2
    if not deep and array.dtype.kind == "f" and top <= 1:
        return (values * np.float32(255)).round().astype(np.uint8), "0 to 1", top
    if not deep and top <= 255:
        return values.astype(np.uint8), "", top
    return (values / np.float32(257)).round().astype(np.uint8), "0 to 65535", top


def read_image(
    file: Path | IO[bytes], background: Colour = WHITE, side: int | None = None
) -> tuple[Image.Image, dict[str, float]]:
    """Read an image file with `to_rgb`; a JPEG may be decoded at a smaller size, not below `side`."""
    formats = (*FORMATS, *(("AVIF",) * _has_avif()), *(("HEIF",) * _has_heif()))
    with Image.open(file, formats=formats) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"it has {image.width} × {image.height} pixels; at most {MAX_PIXELS:,} are read")
        if side is not None:
            image.draft("RGB", (side, side))
        return to_rgb(image, background)


@contextlib.contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Suppress Pillow's warnings of sizes, which are errors here, and of damaged EXIF."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def decode(path: Path, size: Size, background: Colour = WHITE) -> torch.Tensor:
    """Decode an image with `to_rgb`, resize it and crop its centre: uint8, (3, S, S).

    A size S that is a number resizes the shorter side to S, with JPEG files decoded at a smaller size.
    DataError is raised if the file is missing, corrupt, truncated or too large to be decoded safely.
    """
    return decode_and_hash(path, size, background, False)[0]


def decode_and_hash(
    path: Path, size: Size, background: Colour, hashed: bool = True
) -> tuple[torch.Tensor, dict[str, float], bytes]:
    """Decode an image as `decode` does; return it, its changes, and the digest of the file or b""."""
    try:
        with path.open("rb") as file:
            rgb, changes = read_image(file, background, size if isinstance(size, int) else None)
            found = _digest_of_open(file) if hashed else b""  # the file is in the system's cache now
    except Exception as error:  # Pillow's decoders raise many kinds of errors on damaged files
        raise DataError(f"cannot decode the image {path}: {error or type(error).__name__}") from error
    return torch.from_numpy(np.array(_square(rgb, size))).permute(2, 0, 1).contiguous(), changes, found


def _square(rgb: Image.Image, size: Size) -> Image.Image:
    """Resize and crop the centre: the rule's way, or the shorter side to a number of pixels."""
    if isinstance(size, Resize):
        return size.apply(rgb)
    width, height = rgb.size
    if (width, height) == (size, size):
        return rgb
    scale = size / min(width, height)
    wide, high = max(size, round(width * scale)), max(size, round(height * scale))
    left, top = (wide - size) // 2, (high - size) // 2
    if max(wide, high) > LONGEST * size:  # resized whole, a strip one pixel high would fill the memory
        box = (left * width / wide, top * height / high)
        end = ((left + size) * width / wide, (top + size) * height / high)
        return rgb.resize((size, size), Image.Resampling.BILINEAR, box=(*box, *end))
    return rgb.resize((wide, high), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))


class DecodedImages:
    """Images in memory, uint8, (N, 3, S, S), and digests of what they were decoded from, (N, 16).

    Without digests those of the pixels are taken.
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
        """Return the digests of the images at the indices; with `anew`, of their present pixels."""
        if self._digests is not None and not anew:
            return self._digests[indices]
        return image_digests(self.batch(indices).permute(0, 2, 3, 1).numpy())

    @property
    def digest(self) -> str:
        """Checksum of the present pixels: the hash of the hashes of chunks."""
        parts = self.array.contiguous().flatten().split(_CHUNK)
        with ThreadPoolExecutor(THREADS) as pool:  # hashing releases the interpreter's lock
            return digest_of_texts(pool.map(lambda part: digest({"": part}), parts))


class FileImages:
    """Images decoded anew for each batch, for data sets larger than the memory for decoded images."""

    def __init__(
        self,
        paths: Sequence[Path],
        size: Size,
        background: Colour = WHITE,
        changed: Collection[int] = (),
        digests: Digests | None = None,
    ) -> None:
        self.paths = list(paths)
        self.size, self.background = size, background
        self._changed = sorted(changed)
        self._pool = ThreadPoolExecutor(THREADS)
        self._digests = digests

    def batch(self, indices: NDArray[np.int64]) -> torch.Tensor:
        """Decode and return the images at the indices."""
        with _quiet_pillow():
            decoded = self._pool.map(lambda at: decode(self.paths[at], self.size, self.background), indices)
            return torch.stack(list(decoded))

    def take(self, rows: Sequence[int]) -> FileImages:
        """Return a source of some of the files."""
        changed = [at for at, row in enumerate(rows) if row in set(self._changed)]
        digests = None if self._digests is None else self._digests[rows]
        return FileImages([self.paths[i] for i in rows], self.size, self.background, changed, digests)

    def digests(self, indices: NDArray[np.int64], anew: bool = False) -> Digests:
        """Return the digests of the files at the indices; without any yet, or with `anew`, read all files."""
        if self._digests is None or anew:
            self._digests = as_digests(self._pool.map(_digest_of_file, self.paths))
        return self._digests[indices]

    @cached_property
    def digest(self) -> str:
        """Checksum of the files' contents, not of their names and times, and of how pixels were changed."""
        how = [f"upright on {self.background}: {self._changed}"] if self._changed else []
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
    paths: Sequence[Path], size: Size, cache_mib: int, background: Colour = WHITE
) -> tuple[DecodedImages | FileImages, dict[int, str], list[str]]:
    """Decode every image file once, so that a damaged file is found before training starts.

    The source of the images is returned, which decodes each batch anew if they do not fit in `cache_mib`;
    {index: reason} of the files that could not be decoded; and what was changed, in sentences.
    """
    side = side_of(size)
    keep = len(paths) * 3 * side * side <= cache_mib * 2**20
    array = torch.zeros((len(paths) if keep else 0, 3, side, side), dtype=torch.uint8)
    digests = np.zeros((len(paths), DIGEST_BYTES), np.uint8)
    counted, bad = Changes(), dict[int, str]()

    def one(index: int) -> dict[str, float]:
        try:
            image, changes, found = decode_and_hash(paths[index], size, background)
        except DataError as error:
            bad[index] = str(error)
            return {}
        digests[index] = np.frombuffer(found, np.uint8)
        if keep:
            array[index] = image
        return changes

    with _quiet_pillow(), ThreadPoolExecutor(THREADS) as pool:
        for index, changes in enumerate(pool.map(one, range(len(paths)))):
            counted.add(index, changes)
    bad = dict(sorted(bad.items()))
    notes = counted.notes(len(paths), background)
    if keep:
        return DecodedImages(array, digests), bad, notes
    return FileImages(paths, size, background, counted.rows, digests), bad, notes


def thumbnails(paths: Sequence[Path], side: int) -> Iterator[Image.Image]:
    """Yield image files with `to_rgb`, whole, their longer sides at most `side` pixels."""

    def one(path: Path) -> Image.Image:
        try:
            image, _ = read_image(path, side=side)
        except Exception as error:  # Pillow's decoders raise many kinds of errors on damaged files
            raise DataError(f"cannot decode the image {path}: {error or type(error).__name__}") from error
        image.thumbnail((side, side), Image.Resampling.BILINEAR)
        return image

    with _quiet_pillow(), ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(one, paths)


# -- images in memory


@dataclass
class Pixels:
    """Decoded images."""

    array: torch.Tensor  # (N, 3, S, S) uint8
    # (N, 16) digests of the images before they were resized, or of the bytes of encoded images
    digests: Digests
    # {index: reason} of images that could not be decoded; they are black
    bad: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what was changed, in sentences

    def __len__(self) -> int:
        return len(self.array)


def decode_objects(
    images: Iterable[Any], size: Size, background: Colour = WHITE, ids: Sequence[str] | None = None
) -> Pixels:
    """Bring PIL images, bytes of files, paths, or mappings of `bytes` and `path` to squares.

    They are changed as image files are. Messages name the ids; default: numbers.
    """
    rows: list[torch.Tensor] = []
    digests: list[Digests] = []
    counted, bad = Changes(), dict[int, str]()
    for at, value in enumerate(images):
        try:
            with _quiet_pillow():
                rgb, changes, encoded = _rgb_of_object(value, background)
            pixels = np.array(rgb)
            found = image_digests([pixels]) if encoded is None else as_digests([digest_bytes(encoded)])
            if isinstance(size, int):
                side = min(pixels.shape[:2])
                top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
                pixels = pixels[top : top + side, left : left + side].copy()
            row = resized(torch.from_numpy(pixels).permute(2, 0, 1)[None].float(), size)
        except Exception as error:  # Pillow's decoders raise many kinds of errors on damaged images
            name = at if ids is None else ids[at]
            bad[at] = f"cannot decode the image of example {name}: {error or type(error).__name__}"
            row = torch.zeros((1, 3, side_of(size), side_of(size)), dtype=torch.uint8)
            found = np.zeros((1, DIGEST_BYTES), np.uint8)
        else:
            counted.add(at, changes)
        rows.append(row)
        digests.append(found)
    return Pixels(torch.cat(rows), np.concatenate(digests), bad, counted.notes(len(rows), background))


def _rgb_of_object(value: Any, background: Colour) -> tuple[Image.Image, dict[str, float], bytes | None]:
    """Return an image, its changes, and its encoded bytes or None."""
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


def resized(images: torch.Tensor, size: Size) -> torch.Tensor:
    """Resize (N, C, h, w) float images in [0, 255] to (N, 3, S, S) uint8; grey becomes RGB."""
    if isinstance(size, Resize):
        pixels = images.clamp(0, 255).round().to(torch.uint8).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
        squares = [np.array(size.apply(Image.fromarray(each))) for each in pixels.contiguous().numpy()]
        made = np.stack(squares) if squares else np.zeros((0, size.side, size.side, 3), np.uint8)
        return torch.from_numpy(made).permute(0, 3, 1, 2).contiguous()
    if images.shape[-2:] != (size, size):
        images = torch.nn.functional.interpolate(
            images, size=(size, size), mode="bicubic", align_corners=False, antialias=True
        )
    return images.clamp(0, 255).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()


def pixels_of_array(array: NDArray[Any], size: Size, what: str, background: Colour) -> Pixels:
    """Bring images given as one array, (N, H, W) or (N, H, W, C), to squares.

    Values are integers in [0, 255], floats in [0, 1], or unsigned integers of 16 bits, which are scaled if
    one is above 255. A fourth channel is opacity. Other shapes and values raise DataError.
    """
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[3] not in (1, 3, 4):
        raise DataError(f"{what} must have the shape (N, H, W) or (N, H, W, 1, 3 or 4); got {array.shape}")
    if array.dtype.kind not in "uif" or not len(array):
        raise DataError(f"{what} must hold numbers, of one image or more; got {len(array)} of {array.dtype}")
    if array.size and not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).all(axis=(1, 2, 3)))[0])
        raise DataError(f"{what} hold values that are not finite, first in row {row}")
    notes: list[str] = []
    if array.dtype.kind == "u" and array.dtype.itemsize == 2 and array.size and array.max() > 255:
        array, scale, most = scale_to_8_bits(array)
        notes.append(f"images of 16 bits are scaled to 8 bits from {scale} (their largest value: {most:g})")
    top, factor = (1.0, 255.0) if array.dtype.kind == "f" else (255, 1.0)
    if array.size and (array.min() < 0 or array.max() > top):
        raise DataError(
            f"{what} must hold integers from 0 to 255 or floats from 0 to 1; got {array.dtype} from "
            f"{array.min():g} to {array.max():g}"
        )
    if array.shape[3] == 4:
        rgba = (array.astype(np.float32) * factor).round().astype(np.uint8)
        array, factor = np.empty((*rgba.shape[:3], 3), dtype=np.uint8), 1.0
        for at, image in enumerate(rgba):
            array[at] = np.asarray(to_rgb(Image.fromarray(image, "RGBA"), background)[0])
        notes.append(
            f"images of four channels, the last taken for opacity, are laid on {_colour_name(background)} "
            "(--background)"
        )
    scaled = torch.from_numpy(array.astype(np.float32) * factor).permute(0, 3, 1, 2)
    return Pixels(resized(scaled, size), image_digests(array), notes=notes)
