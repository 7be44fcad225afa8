"""What a cell's result depends on, as one digest: options, and the contents of data and files they name."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np

from hesstune.checks import expanded
from hesstune.data.reading import Reading
from hesstune.data.sources import listing
from hesstune.errors import DataError
from hesstune.runs.config import FinetuneConfig
from hesstune.study.options import Settings

__all__ = ["ELSEWHERE", "Contents", "data_digest", "fingerprint"]

# Options of a run that say where it runs, not what it computes; the data is known by its digest.
ELSEWHERE = ("out", "track", "device", "cache_mib", "activations_mib", "data", "weights")


class Contents:
    """Digests of files, folders and modules by path, each read once."""

    def __init__(self) -> None:
        self._known: dict[Path, str] = {}

    def named_by(self, value: object) -> str | None:
        """Return a digest of what PATH, KIND:PATH or py:MODULE:NAME names; None where nothing is there.

        Raises:
            DataError: If a file cannot be read.
        """
        if not isinstance(value, str) or not value:
            return None
        if expanded(value).is_file():
            return self.of(expanded(value))
        kind, sign, rest = value.partition(":")
        path = _module_file(rest.partition(":")[0]) if kind == "py" else expanded(rest) if rest else None
        if path is None or not path.exists():
            return None
        return f"{kind}{sign}{rest if kind == 'py' else ''}{self.of(path)}"

    def of(self, path: Path) -> str:
        """Return the digest of a file, or of all files below a folder with their names.

        Raises:
            DataError: If one cannot be read.
        """
        path = path.absolute()
        if path not in self._known:
            self._known[path] = self._folder(path) if path.is_dir() else _file(path)
        return self._known[path]

    def _folder(self, path: Path) -> str:
        files = sorted(each for each in path.rglob("*") if each.is_file())
        told = [[each.relative_to(path).as_posix(), _file(each)] for each in files]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _module_file(name: str) -> Path | None:
    """Return the file of a module that `py:MODULE:NAME` names, which is imported from here, too."""
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):  # the cell says what is wrong with it
        return None
    finally:
        sys.path[:] = before
    return None if found is None or not found.has_location or found.origin is None else Path(found.origin)


def fingerprint(config: FinetuneConfig, data: str, settings: Settings, contents: Contents) -> str:
    """Return the digest of everything that a cell's result depends on.

    Args:
        config: The run's resolved configuration.
        data: The digest of its data.
        settings: What is done beside training.
        contents: Digests of files.

    Raises:
        DataError: If a file that an option names cannot be read.
    """
    values = {name: v for name, v in config.to_dict().items() if name not in ELSEWHERE}
    for name in FinetuneConfig.naming_files():
        # By content: a path may hold something else tomorrow.
        if name != "data" and (found := contents.named_by(getattr(config, name))) is not None:
            values[name] = found
    asked = {name: v for name, v in settings.model_dump().items() if name != "keep_runs"}
    text = json.dumps([values, data, asked], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def data_digest(spec: str, size: int, how: Reading, contents: Contents) -> tuple[str, int, bool]:
    """Return a digest of the examples, the number of classes, and whether the examples are texts.

    The digest is of ids, labels, parts, images or texts, and of the table or archive that holds them: it may
    have votes or soft labels.

    Raises:
        DataError: If the data cannot be read.
    """
    found = listing(spec, size, how=how)
    digest = hashlib.sha256(json.dumps([found.ids, found.classes, found.parts, found.texts]).encode())
    if found.labels is not None:
        digest.update(np.ascontiguousarray(found.labels).data)
    if found.array is not None:
        digest.update(np.ascontiguousarray(found.array.numpy()).data)
    path = expanded(spec.partition(":")[2])
    files = [path] if path.is_file() else []
    for each in (*files, *(found.paths or ())):
        digest.update(contents.of(each).encode())
    return digest.hexdigest(), len(found.classes), found.texts is not None
