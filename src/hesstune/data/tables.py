"""The examples of a table: ids, parts, texts or images, labels, votes, and columns that may group them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hesstune.checks import expanded, parse_number
from hesstune.data.examples import PARTS, Listing, Vectors
from hesstune.data.images import Pixels, readable_suffixes
from hesstune.data.labels import (
    GIVEN_LABEL,
    SOURCE,
    ClassLabels,
    class_labels,
    column_named,
    label_sources,
    labels_as_written,
)
from hesstune.data.reading import Reading, Voting
from hesstune.errors import DataError, cut, listed, unknown_name
from hesstune.storage.columns import Column, CsvTable, is_missing
from hesstune.storage.files import is_file
from hesstune.weak.label_models import label
from hesstune.weak.vote_files import (
    PREFIX,
    class_index,
    class_of,
    classes_named,
    confidences,
    soft_classes,
    soft_labels,
    vote_columns,
    voted,
    votes_in,
)
from hesstune.weak.votes import ABSTAIN

# {role: the usual names of its column}, in any case.
USUAL: dict[str, tuple[str, ...]] = {
    role: (role,) for role in ("text", "text2", "image", "label", "id", "split")
}
# As folders of images for the library datasets name their files in metadata.csv or metadata.jsonl.
USUAL["image"] = ("image", "file_name")


def listing_of(
    table: CsvTable,
    roles: Mapping[str, str],
    how: Reading,
    labelled: bool,
    *,
    images: Pixels | Vectors | None = None,
    names: Sequence[str] | None = None,
    ids: list[str] | None = None,
    notes: Sequence[str] = (),
) -> Listing:
    """List the examples of a table, with labels, votes, soft labels p_CLASS and sources of labels.

    Args:
        table: The table.
        roles: {role: column}; the roles are those of USUAL.
        how: How labels and votes are read and combined, and the column by which the data is split.
        labelled: Whether labels or votes are required; otherwise votes are not read.
        images: The images, if they are not files in the column `image`; or feature vectors.
        names: Class names, if labels are names or indices into them.
        ids: The ids of a table without a column of ids; default: paths of images, or row numbers.
        notes: How the table was read, in sentences.
    """
    whole, table = table, table.renamed(roles)
    has_images = images is not None or "image" in roles
    unused = ("text", "text2") if has_images else ("image",)
    unused = (*unused, "image") if isinstance(images, Vectors) else unused
    table = replace(table, columns={name: own for name, own in table.columns.items() if name not in unused})
    annotators = vote_columns(table, how.voting.columns) if labelled else []
    if labelled and "label" not in table and not annotators:
        raise DataError(
            f"{table.name} needs a column 'label', or votes in columns vote_…; got the columns "
            f"{listed(whole.columns) or 'none'}; name another label column by --label-column"
        )
    _refuse_nested(table)
    made = examples_of(table, labelled, ids)
    if images is not None:
        notes = [*notes, *getattr(images, "notes", ())]
        if isinstance(images, Vectors):
            made = replace(made, vectors=images)
        else:
            made = replace(made, array=images.array, digests=images.digests, bad=images.bad)
    if missing := [n for n, path in enumerate(made.paths or ()) if not is_file(path)]:
        shown = listed((str((made.paths or [])[n]) for n in missing), 3)
        raise DataError(
            f"{table.name} names images that do not exist: {shown} (row {table.row(missing[0])}); paths are "
            f"relative to {table.folder.absolute()}"
        )
    if how.split_column is not None:
        if how.split_column not in whole:
            valid = list(whole.columns)
            raise unknown_name(f"column of {table.name} to split by,", how.split_column, valid, DataError)
        made = replace(made, split_values=whole.cells(how.split_column))
    made = replace(made, notes=[*table.notes, *notes, *made.notes])
    written, declared = table.columns.get("label"), soft_classes(table)
    if written is not None:
        names = names or written.class_names
        # Cells of several classes are refused where labels are needed.
        several = how.several if labelled or how.several != "refuse" else "name"
        own = labels_as_written(written, table.name, names, several, declared)
        table = replace(table, columns={**table.columns, "label": written.like(own)})
        made = replace(made, label_sources=label_sources(table))
    if not labelled:
        return made if written is None else replace(made, given=table.cells("label"))
    if written is None or annotators:
        made = _voted(table, made, annotators, how.voting)
    else:
        found = class_labels(written, table.name, names, how.several, declared)
        made = _labelled(table, made, found, how.confidence)
    return replace(made, groups=possible_groups(table.columns, made.classes, annotators))


def _refuse_nested(table: CsvTable) -> None:
    """Raise DataError for a list or an object in a column of ids, texts, images or parts."""
    for role in ("id", "text", "text2", "image", "split"):
        if role in table and (at := table.columns[role].nested) is not None:
            cell = cut(table.columns[role].cells()[at], 60)
            raise DataError(
                f"{table.name}, row {table.row(at)}: the {role} is a list or an object, {cell}; write one "
                "text or number a cell"
            )


def _labelled(table: CsvTable, made: Listing, found: ClassLabels, confidence: str | None) -> Listing:
    """Add the labels of a table; leave out examples without one."""
    soft, notes = soft_labels(table, found.classes), list(found.notes)
    if confidence is not None:
        if soft is not None or found.soft is not None:
            raise DataError(
                f"{table.name} has soft labels already, so a column of confidences cannot make others; leave "
                "--confidence-column out"
            )
        soft, more = _by_confidence(table, found, confidence)
        notes += more
    made = replace(
        made,
        labels=found.labels,
        classes=found.classes,
        before=_labels_before(table, found.classes),
        soft=found.soft if soft is None else soft,
        notes=[*made.notes, *notes],
    )
    missing = np.flatnonzero(found.labels == ABSTAIN)
    if not len(missing):
        return made
    note = (
        f"{len(missing)} of {len(made)} examples without a label left out (such as {made.ids[missing[0]]}, "
        f"row {table.row(int(missing[0]))})"
    )
    return replace(made.take(np.flatnonzero(found.labels != ABSTAIN)), notes=[*made.notes, note])


def _by_confidence(table: CsvTable, found: ClassLabels, column: str) -> tuple[NDArray[np.float64], list[str]]:
    """Return soft labels, (N, K): the confidence for the label, what is left equally for other classes."""
    given, empty = confidences(table, column)
    k, labels = len(found.classes), np.maximum(found.labels, 0)
    soft = np.repeat((1 - given)[:, None] / (k - 1), k, 1)
    soft[np.arange(len(labels)), labels] = given
    notes = [f"the column '{column}' is read as the confidence in the label"]
    if empty:
        notes.append(f"{empty} labels without a confidence are taken as certain")
    if low := int((given < 1 / k).sum()):
        notes.append(f"{low} labels have a confidence below that of guessing, 1/{k}")
    return soft, notes


def _voted(table: CsvTable, made: Listing, annotators: list[str], voting: Voting) -> Listing:
    """Add votes; a label model labels the rows that have no label of their own."""
    codes, values = table.columns["label"].coded() if "label" in table else (np.zeros(len(table), int), [""])
    declared = soft_classes(table)
    own = [value.strip() for value in values]  # "" if missing
    named = {name for name in own if name}
    classes = classes_named(named, voted(table, annotators), len(table), table.name, declared)
    votes = votes_in(table, annotators, classes)
    index = class_index(classes)
    labels = np.array([class_of(name, index, table.name) if name else ABSTAIN for name in own])[codes]
    soft = soft_labels(table, classes)
    posterior = np.eye(len(classes))[labels]  # rows without a label are overwritten
    open_rows = np.flatnonzero((labels == ABSTAIN) & votes.given.any(axis=1))
    if len(open_rows):
        combined = label(votes.take(open_rows), voting.model, seed=voting.seed)
        labels[open_rows], posterior[open_rows] = combined.labels, combined.posterior
    has_label = np.flatnonzero(labels != ABSTAIN)
    if not len(has_label):
        raise DataError(f"{table.name}: nobody gave a label or a vote to any example")
    soft = posterior if soft is None else soft
    whole = replace(made, labels=labels, classes=classes, votes=votes, soft=soft)
    unlabelled = [made.ids[i] for i in np.flatnonzero(labels == ABSTAIN)]
    return replace(whole.take(has_label), unlabelled=unlabelled)


def _labels_before(table: CsvTable, classes: list[str]) -> NDArray[np.int64] | None:
    """Return the labels before `hesstune clean` replaced them, (N,), −1 if they are none of the classes."""
    column = column_named(table.columns, GIVEN_LABEL)
    if column is None:
        return None
    index = {name: at for at, name in enumerate(classes)}
    labels = zip(table.cells(column), table.cells("label"), strict=True)
    written = [own.strip() if is_missing(before, index) else before.strip() for before, own in labels]
    return np.array([index.get(name, ABSTAIN) for name in written], dtype=np.int64)


def examples_of(table: CsvTable, labelled: bool = True, ids: list[str] | None = None) -> Listing:
    """List a table's examples without labels: ids, parts, and texts or paths of images.

    If labels are not required, cells of `split` may hold anything. DataError is raised if ids repeat, a part
    is unknown, or an image lies outside the file's folder.
    """
    parts, notes = None, list[str]()
    if "split" in table:
        parts, notes = each_part(table.columns["split"], f"the column 'split' of {table.name}", labelled)
    made = Listing(_ids(table, ids), parts=parts, notes=notes)
    if "text" in table:
        second: Sequence[str | None] = table.cells("text2") if "text2" in table else [None] * len(table)
        return replace(made, texts=list(zip(table.cells("text"), second, strict=True)))
    if "image" in table:
        paths, more = _paths(table)
        return replace(made, paths=paths, notes=[*notes, *more])
    return made


def _ids(table: CsvTable, ids: list[str] | None) -> list[str]:
    if "id" in table:
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
        return table.cells("id")
    images = table.cells("image") if "image" in table else []
    if images and len(set(images)) == len(images):
        return images
    return ids or [str(number) for number in range(len(table))]


def _paths(table: CsvTable) -> tuple[list[Path], list[str]]:
    """Return the images' paths, and a note on paths with spaces or backslashes."""
    paths, changed = [], []
    for name in table.cells("image"):
        path = _inside(table, name)
        if (name != name.strip() or "\\" in name) and not is_file(path):
            plain = name.strip().replace("\\", "/")
            if plain and is_file(other := _inside(table, plain)):
                path = other
                changed.append(name)
        paths.append(path)
    note = f"{len(changed)} paths of images are read without spaces around, and with / for \\: "
    paths, found = _found_by_name(table, paths)
    return paths, [*([note + listed(changed, 2)] if changed else []), *found]


def _found_by_name(table: CsvTable, paths: list[Path]) -> tuple[list[Path], list[str]]:
    """Look for images that are not where the table says: by their names, in the folders beside the table.

    Tables often write `a1` for the file train/a1.jpg. All of them are found, or none is taken; a name of two
    files is none's.
    """
    missing = [at for at, path in enumerate(paths) if not is_file(path)]
    if not missing:
        return paths, []
    suffixes = readable_suffixes()
    files: dict[str, set[Path]] = {}
    for base, _, names in os.walk(table.folder):
        for name in names:
            if name.lower().endswith(suffixes):
                for key in (name, Path(name).stem):
                    files.setdefault(key, set()).add(Path(base) / name)
    own = {at: files.get(Path(paths[at].name).name, set()) for at in missing}
    if any(len(each) != 1 for each in own.values()):
        return paths, []
    made = [next(iter(own[at])) if at in own else path for at, path in enumerate(paths)]
    folders = {made[at].parent.relative_to(table.folder).as_posix() for at in missing}
    return made, [
        f"{len(missing)} images are found by their names in the folders {listed(sorted(folders), 3)}"
    ]


def _inside(table: CsvTable, name: str) -> Path:
    """Return the path of an image: below the table's folder, or absolute."""
    if not Path(name).is_absolute() and ".." in Path(os.path.normpath(name)).parts:
        raise DataError(
            f"{table.name} names the image '{cut(name)}', outside its folder; put the file beside or above "
            "its images, or write absolute paths"
        )
    return expanded(name) if name.startswith("~") else table.folder / name


# -- names of parts

_PART_NAMES = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev", "devel", "development", "eval", "evaluation"),
    "test": ("test", "testing", "tst"),
}
_PARTS = {name: part for part, names in _PART_NAMES.items() for name in names}


def parts_of(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Return {name: part} of the usual names of parts, in any case, and the other names.

    A suffix that begins with `-`, `_`, a space, a dot or a digit is ignored.
    """
    given = list(names)
    found = {}
    for name in given:
        word = re.fullmatch(r"([a-z]+)([-_ .\d].*)?", name.strip().lower(), re.DOTALL)
        if word is not None and word[1] in _PARTS:
            found[name] = _PARTS[word[1]]
    return found, [name for name in given if name not in found]


def parts_note(found: dict[str, str]) -> list[str]:
    """Say which names were taken for which parts."""
    by_part = {part: [name for name in found if found[name] == part] for part in PARTS}
    read = [
        f"{listed(f'{cut(name, 40)!r}' for name in names)} for {part}"
        for part, names in by_part.items()
        if names and names != [part]
    ]
    return [f"parts by their names: {'; '.join(read)}"] if read else []


def each_part(column: Column, what: str, needed: bool = True) -> tuple[list[str], list[str]]:
    """Return the part of each example from a column of names, and notes.

    Other names raise DataError if they are `needed`, and become "" otherwise.
    """
    codes, values = column.coded()
    named, others = parts_of(values)
    if others and needed:
        row = column.row_of(values.index(others[0]))
        raise unknown_name(f"value in {what}, row {row},", others[0], PARTS, DataError)
    return [named.get(values[code], "") for code in codes.tolist()], parts_note(named) if needed else []


# -- columns that may group examples

# Words in the names of columns that say what an example belongs to.
GROUP_WORDS = frozenset({
    "author", "case", "clip", "conversation", "doc", "document", "family", "group", "hospital", "patient",
    "person", "scene", "session", "site", "source", "speaker", "subject", "thread", "user", "video", "writer",
})  # fmt: skip
# Columns that hesstune writes or reads as labels, inputs and parts.
OWN = frozenset({*USUAL, "true_label", "likely_label", "clean_label", "wrong_probability", "prediction"}) | {
    GIVEN_LABEL, SOURCE,
}  # fmt: skip


def possible_groups(
    columns: Mapping[str, Column], classes: Iterable[str], used: Iterable[str] = ()
) -> dict[str, int]:
    """Return {column: number of distinct values} of the columns that may group examples.

    Such a column repeats values. Either its name has a word such as patient, author or video, or it has more
    values than there are classes, most of them in several rows. Constant columns, numbers that are not
    integers, labels, soft labels and `used` columns are no groups. Missing cells do not count.
    """
    names = list(classes)
    others = {*used, *(f"p_{name}" for name in names)}
    found = {}
    for name, column in columns.items():
        if name in others or name.startswith(PREFIX) or name.strip().casefold() in OWN:
            continue
        if column.nested is not None or column.objects is not None:
            continue
        counts = _counts(column)
        if counts is None:
            continue
        words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
        by_name = any(word in GROUP_WORDS or word.removesuffix("s") in GROUP_WORDS for word in words)
        if by_name or (len(counts) > len(names) and 2 * (counts > 1).sum() > len(counts)):
            found[name] = len(counts)
    return found


def _counts(column: Column) -> NDArray[np.int64] | None:
    """Return the rows of each value; None if no value repeats, there is one value, or a fraction."""
    codes, values = column.coded()
    there = [code for code, value in enumerate(values) if not is_missing(value)]
    counts = np.bincount(codes, minlength=len(values))[there]
    if len(there) < 2 or counts.max() < 2:
        return None
    numbers = [parse_number(values[code].strip()) for code in there]
    fractions = [number for number in numbers if number is not None and not number.is_integer()]
    return None if fractions and None not in numbers else counts


def group_notes(groups: Mapping[str, int], n: int) -> list[str]:
    """Say which columns may group the n examples, and what to do about it."""
    return [
        f"the column '{name}' has {count} values in {n} rows: if rows that share one belong together, like "
        f"those of one patient, train with --split group:{name}, which keeps each group in one part"
        for name, count in groups.items()
    ]
