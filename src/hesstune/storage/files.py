"""Read files that may be damaged, huge or malicious; write files whole or not at all."""

from __future__ import annotations

import contextlib
import json
import math
import os
import zipfile
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from hesstune.errors import HesstuneError, RunError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A text larger than this is no record, configuration or matrix of ours.
MAX_MIB = 256
# How files in wide characters begin, the longer marks first.
MARKS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


def one_line(error: object, most: int = 200) -> str:
    """Return an error's text on one line, cut if it quotes a file's contents at length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]}…"


@contextmanager
def reading(path: str | Path, what: str, kind: type[HesstuneError] = RunError) -> Iterator[None]:
    """Turn any error while a file is read as `what` into an error of a kind, which names the file.

    Parsers raise many kinds of errors on damaged files, memory errors among them.
    """
    try:
        yield
    except HesstuneError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else error
        raise kind(f"{path} cannot be read as {what} ({one_line(reason)})") from error


def encoding_of(path: Path) -> str:
    """Return the encoding of a file of text: UTF-8, UTF-16 or UTF-32, by its mark or its zero bytes."""
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
    """Return a file's text; raise ValueError if it is larger than `most_mib`, or in no UTF."""
    size = path.stat().st_size
    if size > most_mib * 2**20:
        raise ValueError(f"it has {size / 2**20:.0f} MiB, more than {most_mib:g}")
    return path.read_text(encoding=encoding_of(path))


def npz_names(path: Path) -> list[str] | None:
    """Return the names of the arrays of an .npz file, or None if it cannot be read as one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except Exception:  # as in `reading`: damaged files raise many kinds of errors
        return None


def array_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, Any]:
    """Read shape, Fortran order and dtype of an open .npy file; ValueError if it holds objects."""
    from numpy.lib import format as npy

    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its format {version} is unknown")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, which are never read")
    return shape, fortran, dtype


def read_array(file: IO[bytes], size: int, most_mib: float = MAX_MIB) -> NDArray[Any]:
    """Read a .npy file of a size in bytes, never an object array, and no more memory than its own size.

    ValueError is raised if the header does not fit the size, or the array is too large or holds objects.
    """
    import numpy as np

    if size > most_mib * 2**20:
        raise ValueError(f"it unpacks to {size / 2**20:.0f} MiB, more than {most_mib:g}")
    shape, fortran, dtype = array_header(file)
    count = math.prod(shape)
    if count < 0 or count * dtype.itemsize > size:
        raise ValueError(f"its shape {shape} does not fit its size")
    content = file.read(count * dtype.itemsize)
    array = np.frombuffer(content, dtype=dtype, count=count).reshape(shape, order="F" if fortran else "C")
    return array.copy()


def read_npz(
    path: Path, names: Container[str] | None, most_mib: float
) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Return the arrays of these names, or all, in an .npz file, see `read_array`; and the names of all."""
    found, every = {}, []
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            every.append(name)
            if names is None or name in names:
                with archive.open(entry) as file:
                    found[name] = read_array(file, entry.file_size, most_mib)
    return found, every


def is_file(path: Path) -> bool:
    """Tell whether a path is a file; no error is raised for a name that is too long, or has a NUL."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


# What a file is called while it is written; a kill may leave some behind.
PART = ".part"
Writer = Callable[[Path], object]
"""Writes a file at the path that it is given."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the file system into a RunError that names what could not be written."""
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error


def made_folder(path: Path) -> Path:
    """Create a folder, and those above it, unless they exist; return its path; RunError if it cannot be."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def replace_file(path: Path, write: Writer) -> None:
    """Call write(temporary path), sync, and rename to `path`, so that readers never see a part of it.

    RunError is raised if it cannot be written: the old file is then as it was.
    """
    replace_files({path: write})


def replace_files(writers: Mapping[Path, Writer]) -> None:
    """Write several files, and rename them to their paths once all of them are written.

    RunError is raised if one cannot be written: the old files are then as they were.
    """
    beside = {path: path.with_name(f".{path.name}{PART}") for path in writers}
    try:
        for path, part in beside.items():
            with writing(path):
                writers[path](part)
                with part.open("r+b") as file:  # Windows syncs only what could be written to
                    os.fsync(file.fileno())
        for path, part in beside.items():
            with writing(path):
                part.replace(path)
                _sync_folder(path.parent)
    finally:
        for part in beside.values():
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    # The rename itself must outlive a power cut, too. Some network file systems cannot sync a folder, and
    # Windows cannot open one.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all, the same bytes on every system."""
    replace_file(path, text_writer(text))


def write_json(path: Path, record: object) -> None:
    """Write a JSON file whole or not at all."""
    replace_file(path, json_writer(record))


def text_writer(text: str) -> Writer:
    """Return what writes a text in UTF-8, for `replace_files`."""
    return lambda part: part.write_text(text, encoding="utf-8", newline="\n")


def json_writer(record: object) -> Writer:
    """Return what writes a record as JSON, for `replace_files`."""
    return text_writer(json.dumps(record, indent=1, allow_nan=False) + "\n")
