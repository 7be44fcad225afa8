"""The examples of a table of text, such as a CSV file: images or texts, labels, votes, soft labels."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hesstune.data.examples import PARTS, Listing, Text
from hesstune.errors import DataError, cut, listed, unknown_name
from hesstune.storage.csv_table import CsvTable, read_table
from hesstune.weak.label_models import label
from hesstune.weak.vote_columns import soft_classes, soft_labels, vote_columns, voted, votes_in
from hesstune.weak.vote_values import class_index, class_of, classes_named
from hesstune.weak.votes import ABSTAIN

__all__ = ["Voting", "examples_of", "listing_of", "read_csv"]


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


def read_csv(path: Path, labelled: bool = True, voting: Voting | None = None) -> Listing:
    """List the examples of a CSV file; see `listing_of`."""
    return listing_of(read_table(path), labelled, voting)


def listing_of(table: CsvTable, labelled: bool = True, voting: Voting | None = None) -> Listing:
    """List the examples of a table, with labels and votes where it has them.

    Args:
        table: Columns `image` or `text`, `label`, and perhaps `text2` for pairs, `id`, `split`, votes and
            soft labels p_CLASS.
        labelled: Whether labels, or votes, are needed.
        voting: How votes are read and combined; they are not read where labels are not needed.

    Raises:
        DataError: If a column is missing, or what it holds cannot be used.
    """
    voting = voting or Voting()
    found = [name for name in ("image", "text") if name in table]
    if len(found) != 1:
        has = "both" if found else f"{listed(table.columns)} (a file's first row names its columns)"
        raise DataError(
            f"{table.name} needs either a column 'image' with paths of images or a column 'text'; got {has}"
        )
    names = vote_columns(table, voting.columns) if labelled else []
    if labelled and "label" not in table and not names:
        raise DataError(
            f"{table.name} needs a column 'label', or votes in columns vote_…; got the columns "
            f"{listed(table.columns)}"
        )
    examples = examples_of(table)
    if missing := [str(path) for path in examples.paths or () if not _is_file(path)]:
        raise DataError(f"{table.name} names images that do not exist: {listed(missing, 3)}")
    if names:
        return _voted(table, examples, names, voting)
    if "label" not in table:
        return examples
    labels, classes = _labels(table)
    soft = soft_labels(table, classes) if labelled else None
    return replace(examples, labels=labels, classes=classes, soft=soft)


def examples_of(table: CsvTable) -> Listing:
    """List a table's examples without labels: ids, parts, and texts or else paths where it has them.

    An id is the column `id`, else the image's path where each is named once, else the row's number.

    Raises:
        DataError: If ids repeat, a part is unknown, or an image lies outside the file's folder.
    """
    parts = None
    if "split" in table:
        parts = table.cells("split")
        wrong = [part for part in table.columns["split"].coded()[1] if part not in PARTS]
        if wrong:
            raise unknown_name(f"value in the column 'split' of {table.name}", wrong[0], PARTS, DataError)
    texts: list[Text] | None = None
    paths = None
    if "text" in table:
        second = table.cells("text2") if "text2" in table else [None] * len(table)
        texts = list(zip(table.cells("text"), second, strict=True))
    elif "image" in table:
        paths = [_inside(table, name) for name in table.cells("image")]
    return Listing(_ids(table), None, [], paths, texts=texts, parts=parts)


def _ids(table: CsvTable) -> list[str]:
    if "id" in table:
        ids = table.cells("id")
        if len(set(ids)) < len(ids):
            raise DataError(f"the column 'id' of {table.name} repeats some ids; each example needs its own")
        return ids
    images = table.cells("image") if "image" in table else []
    if images and len(set(images)) == len(images):
        return images
    return [str(number) for number in range(len(table))]


def _inside(table: CsvTable, name: str) -> Path:
    """Return the path of an image: below the table's folder, or absolute."""
    if not Path(name).is_absolute() and ".." in Path(os.path.normpath(name)).parts:
        raise DataError(
            f"{table.name} names the image '{cut(name)}', outside its folder; put the file beside or above "
            "its images, or write absolute paths"
        )
    return table.folder / name


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or with a NUL
        return False


def _voted(table: CsvTable, examples: Listing, names: list[str], voting: Voting) -> Listing:
    """Add labels of a table with votes: a label model labels the rows that have no label of their own."""
    codes, values = table.columns["label"].coded() if "label" in table else (np.zeros(len(table), int), [""])
    own = [value.strip() for value in values]
    named = {name for name in own if name}
    classes = classes_named(named, voted(table, names), len(table), table.name, soft_classes(table))
    votes = votes_in(table, names, classes)
    index = class_index(classes)
    labels = np.array([class_of(name, index, table.name) if name else ABSTAIN for name in own])[codes]
    soft = soft_labels(table, classes)
    posterior = np.eye(len(classes))[labels]  # of rows without a label it is overwritten
    open_rows = np.flatnonzero((labels == ABSTAIN) & votes.given.any(axis=1))
    if len(open_rows):
        made = label(votes.take(open_rows), voting.model, seed=voting.seed)
        labels[open_rows], posterior[open_rows] = made.labels, made.posterior
    labelled = np.flatnonzero(labels != ABSTAIN)
    if not len(labelled):
        raise DataError(f"{table.name}: nobody gave a label or a vote to any example")
    whole = replace(
        examples, labels=labels, classes=classes, votes=votes, soft=posterior if soft is None else soft
    )
    silent = np.flatnonzero(labels == ABSTAIN)
    return replace(whole.take(labelled), unlabelled=[examples.ids[i] for i in silent])


def _labels(table: CsvTable) -> tuple[NDArray[np.int64], list[str]]:
    """Turn the label column into indices: class names in sorted order, or zero-based integers."""
    column = table.columns["label"]
    codes, values = column.coded()
    for code, value in enumerate(values):
        if not value.strip():
            raise DataError(f"{table.name}, row {column.row_of(code)}: the label is empty")
        if "|" in value or ";" in value or value.lstrip().startswith("["):
            raise DataError(
                f"{table.name}, row {column.row_of(code)}: label '{cut(value)}' looks like several labels; "
                "multi-label targets are not supported, give one class an example"
            )
    numbers = [_number(value) for value in values]
    if any(n is None for n in numbers):
        classes = sorted(values)
        index = {name: i for i, name in enumerate(classes)}
        places = [index[value] for value in values]
    else:
        places = _indices(table, [n for n in numbers if n is not None])
        classes = [str(i) for i in range(max(places) + 1)]
    if len(classes) < 2:
        raise DataError(f"{table.name} has one class only ('{classes[0]}'); at least two are needed")
    return np.array(places, dtype=np.int64)[codes], classes


def _indices(table: CsvTable, numbers: list[float]) -> list[int]:
    """Check that the distinct labels, all numbers, are zero-based class indices."""
    column = table.columns["label"]
    for code, given in enumerate(numbers):
        if not given.is_integer() or given < 0:
            raise DataError(
                f"{table.name}, row {column.row_of(code)}: label '{cut(column.coded()[1][code])}' is not a "
                "class index (0, 1, 2, …); regression targets are not supported"
            )
    if max(numbers) >= max(2 * len(table), 2):
        raise DataError(f"{table.name}: label {max(numbers):g} is out of range for {len(table)} examples")
    places = [int(number) for number in numbers]
    absent = sorted(set(range(max(places) + 1)) - set(places))
    if absent:
        raise DataError(
            f"{table.name}: labels run to {max(places)}, but class {absent[0]} has no example. "
            "Are the labels zero-based?"
        )
    return places


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
