"""The data adapters: `digits`, `folder:PATH`, `csv:PATH`, `array:PATH`, `hf:NAME`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from hesstune.data.arrays import enlarged, read_arrays
from hesstune.data.csv_listing import Voting, read_csv
from hesstune.data.examples import MEMORY, PARTS, Listing
from hesstune.data.hub import read_hub
from hesstune.data.images import SUFFIXES
from hesstune.errors import DataError, listed, unknown_name

__all__ = ["KINDS", "listing"]

KINDS = ("digits", "folder", "csv", "array", "hf")


def listing(spec: str, size: int, labelled: bool = True, voting: Voting | None = None) -> Listing:
    """List the examples that a data specification names.

    Args:
        spec: `digits`, `folder:PATH` (one subfolder a class, or train/ val/ test/ of those) or
            `csv:PATH` (columns `image` or `text`, `label`, and perhaps `text2` for pairs, `id` and
            `split`; tab-separated where it ends in .tsv), or `array:PATH`, an .npz file (see
            `hesstune.data.arrays`), or `hf:NAME_OR_PATH` (see `hesstune.data.hub`).
        size: Side in pixels that built-in images are enlarged to.
        labelled: Whether labels are needed; where not, a flat folder and a CSV without `label` do too.
        voting: How votes in columns of a CSV file are read and combined.

    Raises:
        DataError: If nothing usable is there, with what is needed.
    """
    if spec == MEMORY:
        raise DataError(
            "the data 'memory' was objects given in Python, which no file holds: give them again, "
            "finetune(data=…), Run.load(path, data=…) or run.measure(data=…)"
        )
    kind, _, path = spec.partition(":")
    if kind == "digits" and not path:
        return _digits(size)
    if kind in KINDS[1:]:
        if not path:
            raise DataError(f"data '{spec}' names no path; write {kind}:PATH")
        if kind == "hf":
            return read_hub(path, size, labelled)
        if kind == "array":
            return read_arrays(Path(path), size, labelled)
        if kind == "folder":
            return _folder(Path(path), labelled)
        return read_csv(Path(path), labelled, voting)
    if Path(spec).exists():
        raise DataError(f"data '{spec}' is a path; write {'folder' if Path(spec).is_dir() else 'csv'}:{spec}")
    raise unknown_name("data", kind, KINDS, DataError)


def _digits(size: int) -> Listing:
    from sklearn.datasets import load_digits

    digits = load_digits()
    array = enlarged(torch.from_numpy(digits.images / 16.0 * 255.0).float()[:, None], size)
    count = len(digits.target)
    return Listing(
        ids=[str(row) for row in range(count)],
        labels=digits.target.astype(np.int64),
        classes=[str(name) for name in digits.target_names],
        array=array,
        flip=False,
    )


def _images_below(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _folder(root: Path, labelled: bool) -> Listing:
    if not root.is_dir():
        state = "is a file" if root.exists() else "does not exist"
        raise DataError(f"the data folder {root} {state}; give a folder with one subfolder a class")
    children = _subfolders(root)
    split = bool(children) and "train" in {c.name for c in children} <= set(PARTS)
    roots = [(c.name, c) for c in children] if split else [("", root)]
    classes = sorted({c.name for _, part in roots for c in _subfolders(part)})
    if not classes and not labelled:
        return _flat(root)
    if len(classes) < 2:
        raise DataError(
            f"the data folder {root} needs two subfolders or more, one a class; "
            f"got {listed(classes) or 'none'}"
        )
    paths: list[Path] = []
    labels: list[int] = []
    parts: list[str] = []
    for part, folder in roots:
        for index, name in enumerate(classes):
            found = _images_below(folder / name) if (folder / name).is_dir() else []
            if not found and part in ("", "train") and labelled:
                raise DataError(
                    f"class '{name}' has no image in {folder / name}; add some or remove the folder"
                )
            paths += found
            labels += [index] * len(found)
            parts += [part] * len(found)
    if not paths:
        raise DataError(f"the data folder {root} holds no image ({listed(SUFFIXES, 20)})")
    ids = [p.relative_to(root).as_posix() for p in paths]
    return Listing(ids, np.array(labels, dtype=np.int64), classes, paths, parts=parts if split else None)


def _flat(root: Path) -> Listing:
    paths = _images_below(root)
    if not paths:
        raise DataError(f"the data folder {root} holds no image ({listed(SUFFIXES, 20)})")
    return Listing([p.relative_to(root).as_posix() for p in paths], None, [], paths)
