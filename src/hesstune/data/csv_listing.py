"""The examples of a table of text, such as a CSV file: images or texts, labels, votes, soft labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hesstune.checks import expanded
from hesstune.data.class_labels import with_labels
from hesstune.data.examples import Listing, Text
from hesstune.data.groups import possible_groups
from hesstune.data.label_sources import GIVEN_LABEL, SOURCE, column_named, read_sources
from hesstune.data.parts import each_part
from hesstune.data.reading import Columns, Reading, Voting
from hesstune.errors import DataError, cut, listed, unknown_name
from hesstune.storage.tables import CsvTable, is_missing, read_table
from hesstune.weak.label_models import label
from hesstune.weak.vote_files import (
    class_index,
    class_of,
    classes_named,
    soft_classes,
    soft_labels,
    vote_columns,
    voted,
    votes_in,
)
from hesstune.weak.votes import ABSTAIN

# What columns are called where nobody says otherwise, in any case of letters.
USUAL = {role: (role,) for role in ("text", "text2", "image", "label", "id", "split")}
OTHERWISE = "; columns of other names are told by --text-column, --image-column, --label-column, --id-column"


def read_csv(path: Path, labelled: bool = True, how: Reading | None = None) -> Listing:
    """List the examples of a CSV file; see `listing_of`."""
    return listing_of(read_table(path), labelled, how)


def listing_of(table: CsvTable, labelled: bool = True, how: Reading | None = None) -> Listing:
    """List the examples of a table, with labels and votes where it has them.

    Args:
        table: Columns `image` or `text`, `label`, and perhaps `text2` for pairs, `id`, `split`, votes and
            soft labels p_CLASS; or others that are named.
        labelled: Whether labels, or votes, are needed; where not, labels go into `given` as written.
        how: Which columns hold what, and how votes are read and combined; votes are not read where labels
            are not needed.

    Raises:
        DataError: If a column is missing, or what it holds cannot be used.
    """
    how = how or Reading()
    whole, (table, notes) = table, _named(table, how.columns)
    found = [name for name in ("image", "text") if name in table]
    if len(found) != 1:
        has = f"both in {listed(whole.columns)}" if found else f"{listed(whole.columns)}"
        raise DataError(
            f"{table.name} needs either a column 'image' with paths of images or a column 'text'; got {has} "
            f"(a file's first row names its columns){'' if found else OTHERWISE}"
            f"{'; say which by --text-column or --image-column' if found else ''}"
        )
    names = vote_columns(table, how.voting.columns) if labelled else []
    if labelled and "label" not in table and not names:
        raise DataError(
            f"{table.name} needs a column 'label', or votes in columns vote_…; got the columns "
            f"{listed(whole.columns)}; a label column of another name is told by --label-column"
        )
    examples = examples_of(table, labelled)
    told = _told(whole, how.told)
    examples = replace(examples, notes=[*table.notes, *notes, *examples.notes], told=told)
    if missing := [n for n, path in enumerate(examples.paths or ()) if not _is_file(path)]:
        shown = listed((str((examples.paths or [])[n]) for n in missing), 3)
        raise DataError(
            f"{table.name} names images that do not exist: {shown} (row {table.row(missing[0])}); paths are "
            f"relative to {table.folder.absolute()}"
        )
    if "label" in table:
        examples = replace(examples, label_sources=_label_sources(table))
    if names:
        made = _voted(table, examples, names, how.voting)
    elif "label" in table:
        made = with_labels(examples, table.columns["label"], table.name, labelled)
        if labelled:
            before = _labels_before(table, made.classes)
            made = replace(made, before=before, soft=soft_labels(table, made.classes))
    else:
        return examples
    return replace(made, groups=possible_groups(table.columns, made.classes, names)) if labelled else made


def _label_sources(table: CsvTable) -> list[str] | None:
    """Return where each label comes from; None if the table does not say."""
    given, said = (
        None if (column := column_named(table.columns, name)) is None else table.cells(column)
        for name in (GIVEN_LABEL, SOURCE)
    )
    return read_sources(table.cells("label"), given, said)


def _labels_before(table: CsvTable, classes: list[str]) -> NDArray[np.int64] | None:
    """Return the labels before they were rewritten, (N,), −1 if they are none of the classes."""
    column = column_named(table.columns, GIVEN_LABEL)
    if column is None:
        return None
    index = {name: at for at, name in enumerate(classes)}
    labels = zip(table.cells(column), table.cells("label"), strict=True)
    written = [own.strip() if is_missing(before, index) else before.strip() for before, own in labels]
    return np.array([index.get(name, ABSTAIN) for name in written], dtype=np.int64)


def _told(table: CsvTable, column: str | None) -> list[str] | None:
    """Return the column that the data is split by, where there is one to be."""
    if column is None:
        return None
    if column not in table:
        raise unknown_name(f"column of {table.name} to split by,", column, list(table.columns), DataError)
    return list(table.cells(column))


def _named(table: CsvTable, columns: Columns) -> tuple[CsvTable, list[str]]:
    """Return the table with its columns called as usual, and what was guessed."""
    found, notes = columns.found(list(table.columns), USUAL, table.name)
    return table.renamed(found), notes


def examples_of(table: CsvTable, labelled: bool = True) -> Listing:
    """List a table's examples without labels: ids, parts, and texts or else paths where it has them.

    An id is the column `id`, else the image's path where each is named once, else the row's number. Where no
    labels are needed, cells of `split` may hold anything.

    Raises:
        DataError: If ids repeat, a part is unknown, or an image lies outside the file's folder.
    """
    parts, notes = None, list[str]()
    if "split" in table:
        parts, notes = each_part(table.columns["split"], f"the column 'split' of {table.name}", labelled)
    texts: list[Text] | None = None
    paths = None
    if "text" in table:
        second: Sequence[str | None] = table.cells("text2") if "text2" in table else [None] * len(table)
        texts = list(zip(table.cells("text"), second, strict=True))
    elif "image" in table:
        paths, more = _paths(table)
        notes = [*notes, *more]
    return Listing(_ids(table), None, [], paths, texts=texts, parts=parts, notes=notes)


def _ids(table: CsvTable) -> list[str]:
    if "id" in table:
        ids = table.cells("id")
        codes, values = table.columns["id"].coded()
        if len(values) < len(codes):
            twice = int(np.flatnonzero(np.bincount(codes) > 1)[0])
            first, again = (table.row(int(n)) for n in np.flatnonzero(codes == twice)[:2])
            raise DataError(
                f"the column 'id' of {table.name} repeats some ids; each example needs its own "
                f"('{cut(values[twice])}' is in the rows {first} and {again})"
            )
        if blank := [n for n, value in enumerate(values) if not value.strip()]:
            raise DataError(f"{table.name}, row {table.columns['id'].row_of(blank[0])}: the id is empty")
        return ids
    images = table.cells("image") if "image" in table else []
    if images and len(set(images)) == len(images):
        return images
    return [str(number) for number in range(len(table))]


def _paths(table: CsvTable) -> tuple[list[Path], list[str]]:
    """Return the images' paths, and what was changed in how they are written."""
    paths, changed = [], []
    for name in table.cells("image"):
        path = _inside(table, name)
        if (name != name.strip() or "\\" in name) and not _is_file(path):
            plain = name.strip().replace("\\", "/")
            if plain and _is_file(other := _inside(table, plain)):
                path = other
                changed.append(name)
        paths.append(path)
    if not changed:
        return paths, []
    return paths, [
        f"{len(changed)} paths of images are read without spaces around, and with / for \\: "
        f"{listed(changed, 2)}"
    ]


def _inside(table: CsvTable, name: str) -> Path:
    """Return the path of an image: below the table's folder, or absolute."""
    if not Path(name).is_absolute() and ".." in Path(os.path.normpath(name)).parts:
        raise DataError(
            f"{table.name} names the image '{cut(name)}', outside its folder; put the file beside or above "
            "its images, or write absolute paths"
        )
    return expanded(name) if name.startswith("~") else table.folder / name


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or with a NUL
        return False


def _voted(table: CsvTable, examples: Listing, names: list[str], voting: Voting) -> Listing:
    """Add labels of a table with votes: a label model labels the rows that have no label of their own."""
    codes, values = table.columns["label"].coded() if "label" in table else (np.zeros(len(table), int), [""])
    declared = soft_classes(table)
    own = ["" if is_missing(value, declared) else value.strip() for value in values]
    named = {name for name in own if name}
    classes = classes_named(named, voted(table, names), len(table), table.name, declared)
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
