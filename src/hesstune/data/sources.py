"""The data adapters: `digits`, `folder:PATH`, `csv:PATH`, `array:PATH`, `hf:NAME`."""

from __future__ import annotations

import csv
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.data.arrays import enlarged, read_arrays
from hesstune.data.examples import MEMORY, Listing, Text
from hesstune.data.hub import read_hub
from hesstune.data.images import SUFFIXES
from hesstune.data.votes import class_index, soft_columns, soft_names, vote_columns, vote_table, vote_values
from hesstune.errors import DataError, cut, listed, unknown_name
from hesstune.storage.reading import reading
from hesstune.weak.label_models import label
from hesstune.weak.votes import ABSTAIN, Votes

__all__ = ["KINDS", "PARTS", "Voting", "inside", "listing"]

KINDS = ("digits", "folder", "csv", "array", "hf")
PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Voting:
    """How a CSV file's votes become labels.

    Attributes:
        columns: Columns of votes; none: those named vote_….
        model: The label model.
        seed: Of its ties.
    """

    columns: tuple[str, ...] = ()
    model: str = "majority"
    seed: int = 0


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
        return _csv(Path(path), labelled, voting or Voting())
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


def _csv(path: Path, labelled: bool, voting: Voting) -> Listing:
    rows = _read_csv(path)
    columns = list(rows[0])
    found = [name for name in ("image", "text") if name in columns]
    if len(found) != 1:
        has = "both" if found else listed(columns)
        raise DataError(
            f"{path} needs either a column 'image' with paths of images or a column 'text'; got {has}"
        )
    names = vote_columns(columns, voting.columns, path) if labelled else []
    if labelled and "label" not in columns and not names:
        raise DataError(
            f"{path} needs a column 'label', or votes in columns vote_…; got the columns {listed(columns)}"
        )
    if names:
        return _voted(path, rows, names, found[0], voting)
    labels, classes = _labels([row["label"] for row in rows], path) if "label" in columns else (None, [])
    soft = soft_columns(rows, classes, path) if labels is not None and labelled else None
    return replace(_examples_of(path, rows, found[0]), labels=labels, classes=classes, soft=soft)


def _examples_of(path: Path, rows: list[dict[str, str]], column: str) -> Listing:
    """List a CSV file's images or texts, without labels."""
    parts = [row["split"] for row in rows] if "split" in rows[0] else None
    if parts:
        wrong = [p for p in parts if p not in PARTS]
        if wrong:
            raise unknown_name(f"value in the column 'split' of {path}", wrong[0], PARTS, DataError)
    if column == "text":
        texts: list[Text] = [(row["text"], row.get("text2")) for row in rows]
        return Listing(_ids(rows, None, path), None, [], texts=texts, parts=parts)
    paths = [inside(path, row["image"]) for row in rows]
    missing = [str(p) for p in paths if not _is_file(p)]
    if missing:
        raise DataError(f"{path} names images that do not exist: {listed(missing, 3)}")
    return Listing(_ids(rows, "image", path), None, [], paths, parts=parts)


def _voted(path: Path, rows: list[dict[str, str]], names: list[str], column: str, voting: Voting) -> Listing:
    """List a CSV file with votes: a label model labels the rows that have no label of their own."""
    values = vote_values(rows, names)
    own = [row.get("label", "").strip() for row in rows]
    written = [*filter(None, own), *(v for row in values for v in row if v)]
    classes, index = class_index(written, path, named=soft_names(list(rows[0])))
    votes = Votes(vote_table(values, index), len(classes), [n.removeprefix("vote_") for n in names])
    labels = np.array([index[name] if name else ABSTAIN for name in own], dtype=np.int64)
    soft = soft_columns(rows, classes, path)
    posterior = np.eye(len(classes))[labels]  # of rows without a label it is overwritten
    open_rows = np.flatnonzero((labels == ABSTAIN) & votes.given.any(axis=1))
    if len(open_rows):
        made = label(votes.take(open_rows), voting.model, seed=voting.seed)
        labels[open_rows], posterior[open_rows] = made.labels, made.posterior
    listed_rows = replace(
        _examples_of(path, rows, column),
        labels=labels,
        classes=classes,
        votes=votes,
        soft=posterior if soft is None else soft,
    )
    silent = np.flatnonzero(labels == ABSTAIN)
    if len(silent) == len(rows):
        raise DataError(f"{path}: nobody gave a label or a vote to any example")
    kept = listed_rows.take(np.flatnonzero(labels != ABSTAIN).tolist())
    return replace(kept, unlabelled=[listed_rows.ids[i] for i in silent])


def inside(path: Path, name: str) -> Path:
    """Return the path of an image that a CSV file names: below the file's folder, or absolute.

    Raises:
        DataError: If a relative name climbs out of the folder.
    """
    if not Path(name).is_absolute() and ".." in Path(os.path.normpath(name)).parts:
        raise DataError(
            f"{path} names the image '{cut(name)}', outside its folder; put the file beside or above its "
            "images, or write absolute paths"
        )
    return path.parent / name


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or with a NUL
        return False


def _ids(rows: list[dict[str, str]], default: str | None, path: Path) -> list[str]:
    """Return the column `id`, else the default column where it names each row once, else row numbers."""
    column = "id" if "id" in rows[0] else default
    ids = [row[column] for row in rows] if column else []
    if column == "id" and len(set(ids)) < len(ids):
        raise DataError(f"the column 'id' of {path} repeats some ids; each example needs its own")
    return ids if ids and len(set(ids)) == len(ids) else [str(number) for number in range(len(rows))]


def _read_csv(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise DataError(
            f"the data file {path} does not exist; give a CSV file with columns image or text, and label"
        )
    with reading(path, "CSV", DataError), path.open(newline="", encoding="utf-8-sig") as file:
        # In tab-separated files quotes are text.
        reader = (
            csv.DictReader(file, strict=True, delimiter="\t", quoting=csv.QUOTE_NONE)
            if path.suffix.lower() in (".tsv", ".tab")
            else csv.DictReader(file, strict=True)
        )
        rows = list(reader)
    if not rows:
        raise DataError(f"{path} has no rows below its header")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise DataError(f"{path}, row {number}: the number of cells differs from the header's")
    return rows


def _labels(values: list[str], path: Path) -> tuple[NDArray[np.int64], list[str]]:
    """Turn a label column into indices: class names in sorted order, or zero-based integers."""
    for number, value in enumerate(values, start=2):
        if not value.strip():
            raise DataError(f"{path}, row {number}: the label is empty")
        if "|" in value or ";" in value or value.lstrip().startswith("["):
            raise DataError(
                f"{path}, row {number}: label '{cut(value)}' looks like several labels; multi-label targets "
                "are not supported, give one class an example"
            )
    numbers = [_number(value) for value in values]
    if any(n is None for n in numbers):
        classes = sorted(set(values))
        index = {name: i for i, name in enumerate(classes)}
        return _enough(np.array([index[v] for v in values], dtype=np.int64), classes, path)
    for row, given in enumerate(numbers, start=2):
        if given is None or not given.is_integer() or given < 0:
            raise DataError(
                f"{path}, row {row}: label '{cut(values[row - 2])}' is not a class index (0, 1, 2, …); "
                "regression targets are not supported"
            )
    largest = max(n for n in numbers if n is not None)
    if largest >= max(2 * len(numbers), 2):
        raise DataError(f"{path}: label {largest:g} is out of range for {len(numbers)} examples")
    labels = np.array([int(n) for n in numbers if n is not None], dtype=np.int64)
    absent = sorted(set(range(int(labels.max()) + 1)) - set(labels.tolist()))
    if absent:
        raise DataError(
            f"{path}: labels run to {int(labels.max())}, but class {absent[0]} has no example. "
            "Are the labels zero-based?"
        )
    return _enough(labels, [str(i) for i in range(int(labels.max()) + 1)], path)


def _enough(labels: NDArray[np.int64], classes: list[str], path: Path) -> tuple[NDArray[np.int64], list[str]]:
    if len(classes) < 2:
        raise DataError(f"{path} has one class only ('{classes[0]}'); at least two are needed")
    return labels, classes


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
