"""Read files that somebody else may have made: damaged, huge or malicious, they end in one clear error."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from hesstune.errors import HesstuneError, RunError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MAX_MIB", "encoding_of", "one_line", "read_array", "read_json", "read_text", "reading"]

# A text larger than this is no record, configuration or matrix of ours.
MAX_MIB = 256
# How files in wide characters begin, the longer marks first.
MARKS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


def one_line(error: object, most: int = 200) -> str:
    """Return an error's text on one line, cut where it quotes a file's contents at length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]}…"


@contextmanager
def reading(path: str | Path, what: str, kind: type[HesstuneError] = RunError) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read into an error that names the file.

    Parsers raise many kinds of errors on damaged files, memory errors among them.

    Args:
        path: The file.
        what: What it should have been, such as "a measurement".
        kind: The error's class.
    """
    try:
        yield
    except HesstuneError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else error
        raise kind(f"{path} cannot be read as {what} ({one_line(reason)})") from error


def encoding_of(path: Path) -> str:
    """Return the encoding of a file of text: UTF-8, or UTF-16 or UTF-32, which a mark or zero bytes tell."""
    with path.open("rb") as file:
        start = file.read(1024)
    for mark, name in MARKS.items():
        if start.startswith(mark):
            return name
    # Without a mark, every other byte of plain letters is zero.
    half = len(start) // 2
    if half > 1 and start[1::2].count(0) > 0.7 * half:
        return "utf-16-le"
    return "utf-16-be" if half > 1 and start[::2].count(0) > 0.7 * half else "utf-8-sig"


def read_text(path: Path, most_mib: float = MAX_MIB) -> str:
    """Return a file's text; raise ValueError where it is larger than `most_mib`, or in no UTF."""
    size = path.stat().st_size
    if size > most_mib * 2**20:
        raise ValueError(f"it has {size / 2**20:.0f} MiB, more than {most_mib:g}")
    return path.read_text(encoding=encoding_of(path))


def read_json(path: Path, kind: type[HesstuneError] = RunError) -> Any:
    """Return what a JSON file holds; raise an error of the class given where it cannot be read."""
    with reading(path, "JSON", kind):
        return json.loads(read_text(path))


def read_array(file: IO[bytes], size: int, most_mib: float = MAX_MIB) -> NDArray[Any]:
    """Read a .npy file, never an object array, and no more memory than the file's own size.

    Args:
        file: The open file.
        size: Its size in bytes, unpacked.
        most_mib: Larger arrays are refused.

    Raises:
        ValueError: If the header does not fit the size, or the array is too large or holds objects.
    """
    import numpy as np
    from numpy.lib import format as npy

    if size > most_mib * 2**20:
        raise ValueError(f"it unpacks to {size / 2**20:.0f} MiB, more than {most_mib:g}")
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its format {version} is unknown")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, which are never read")
    count = math.prod(shape)
    if count < 0 or count * dtype.itemsize > size:
        raise ValueError(f"its shape {shape} does not fit its size")
    content = file.read(count * dtype.itemsize)
    array = np.frombuffer(content, dtype=dtype, count=count).reshape(shape, order="F" if fortran else "C")
    return array.copy()
