"""What a run was started from, as checksums, so that it is never resumed with something else."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from hesstune.data.examples import Task, Texts
from hesstune.data.images import DecodedImages, FileImages
from hesstune.errors import DataError, HesstuneWarning, RunError
from hesstune.reference import Reference
from hesstune.runs.run import REFERENCE, Run
from hesstune.storage.atomic import replace_file
from hesstune.storage.tensors import digest

__all__ = ["check_start", "fingerprints"]

_CHUNK = 1 << 26
# What to say about each checksum: what has changed, and the option it belongs to.
_NAMES = {
    "classes": ("the classes", "data"),
    "examples": ("the examples or their split", "data"),
    "labels": ("the labels", "data"),
    "contents": ("the images or texts", "data"),
    "weights": ("the weights that training starts from", "model"),
}


def fingerprints(task: Task, start: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return checksums of a task (classes, ids by part, labels, contents) and of the starting weights."""
    parts = (("train", task.train), ("val", task.val), ("test", task.test))
    ids = [text for name, part in parts for text in (f"\1{name}", *part.ids)]
    labels = {name: torch.from_numpy(part.labels) for name, part in parts if part.labels is not None}
    return {
        "classes": _of_texts(task.classes),
        "examples": _of_texts(ids),
        "labels": digest(labels),
        "contents": _contents(task),
        "weights": digest(start),
    }


def check_start(before: Run, now: Run, reference: Reference) -> None:
    """Refuse to resume from other data or weights; mend a reference file that was damaged since.

    Raises:
        RunError: Naming what is no longer what the run was started from.
    """
    then, found, out = before.record.get("checksums", {}), now.record["checksums"], now.path
    for key, value in found.items():
        if key in then and then[key] != value:
            what, option = _NAMES[key]
            raise RunError(
                f"cannot resume the run in {out}: {what} of --{option} {getattr(now.config, option)} changed "
                "since it was started; restore them, or start over with --overwrite"
            )
    try:
        kept = before.reference()
        same = digest({name: kept[name] for name in kept.names()}) == found["weights"]
    except RunError:
        same = False
    if not same:
        warnings.warn(f"{out / REFERENCE} was damaged; it is written anew", HesstuneWarning, stacklevel=2)
        replace_file(out / REFERENCE, reference.save)


def _of_texts(texts: Iterable[str | None]) -> str:
    made = hashlib.blake2b(digest_size=16)
    for text in texts:
        made.update(b"\2" if text is None else text.encode("utf-8", "surrogatepass"))
        made.update(b"\0")
    return made.hexdigest()


def _contents(task: Task) -> str:
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
