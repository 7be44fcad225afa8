"""What a run was started from, as checksums: classes, examples, labels, contents, weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from hesstune.data.examples import Task, Texts
from hesstune.data.images import DecodedImages, FileImages
from hesstune.errors import DataError
from hesstune.storage.tensors import digest

__all__ = ["contents_digest", "fingerprints"]

_CHUNK = 1 << 26


def fingerprints(task: Task, start: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return checksums of a task (classes, ids by part, labels, contents) and of the starting weights."""
    parts = (("train", task.train), ("val", task.val), ("test", task.test))
    ids = [text for name, part in parts for text in (f"\1{name}", *part.ids)]
    labels = {name: torch.from_numpy(part.labels) for name, part in parts if part.labels is not None}
    return {
        "classes": _of_texts(task.classes),
        "examples": _of_texts(ids),
        "labels": digest(labels),
        "contents": contents_digest(task),
        "weights": digest(start),
    }


def _of_texts(texts: Iterable[str | None]) -> str:
    made = hashlib.blake2b(digest_size=16)
    for text in texts:
        made.update(b"\2" if text is None else text.encode("utf-8", "surrogatepass"))
        made.update(b"\0")
    return made.hexdigest()


def contents_digest(task: Task) -> str:
    """Return a checksum of the images (as decoded, or their files) or texts of all parts."""
    source = task.train.source
    if isinstance(source, Texts):
        return _of_texts(text for pair in source.rows for text in pair)
    if isinstance(source, DecodedImages):
        # The hash of the hashes of chunks: hashing releases the interpreter's lock.
        parts = source.array.contiguous().flatten().split(_CHUNK)
        with ThreadPoolExecutor(4) as pool:
            return _of_texts(pool.map(lambda part: digest({"": part}), parts))
    if isinstance(source, FileImages):
        with ThreadPoolExecutor(4) as pool:
            return _of_texts(pool.map(_of_file, source.paths))
    return ""


def _of_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise DataError(f"cannot read the image {path}: {error.strerror or error}") from error
