"""What a run was started from and what training wrote, as checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch

from hesstune.errors import RunError
from hesstune.runs.data_record import DataRecord
from hesstune.runs.records import CONFIG, MODEL, NOISE_MATRIX, REFERENCE
from hesstune.runs.run import Run
from hesstune.storage.reading import reading
from hesstune.storage.tensors import digest

__all__ = ["changed_files", "check_files", "fingerprints", "of_files"]

# What a certificate computes with and training wrote; run.json has their checksums.
FILES = (CONFIG, MODEL, REFERENCE, NOISE_MATRIX)


def fingerprints(record: DataRecord, start: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return checksums of a run's classes, of its examples by part, and of its starting weights."""
    return {**record.checksums(), "weights": digest(start)}


def of_files(folder: Path) -> dict[str, str]:
    """Return checksums of the files of FILES by name; empty where there is no such file."""
    return {name: _of_file(folder / name) for name in FILES}


def _of_file(path: Path) -> str:
    if not path.is_file():
        return ""
    with reading(path, "a file of a run"), path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def changed_files(run: Run) -> list[str]:
    """Return the names of files in FILES that were changed, removed or added since training wrote them."""
    then = run.facts.checksums
    return [name for name, now in of_files(run.path).items() if then.get(name) != now]


def check_files(run: Run) -> None:
    """Check that the files a certificate computes with are as training wrote them.

    Raises:
        RunError: If one is not, naming it.
    """
    if changed := changed_files(run):
        raise RunError(
            f"{run.path / changed[0]} is not as training wrote it, so it may depend on the examples that are "
            "counted; restore it, or train again with --overwrite"
        )
