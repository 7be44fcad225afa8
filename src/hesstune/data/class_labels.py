"""Class labels as they are written: which are missing, which mean one class, and each class's index."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from hesstune.checks import parse_number
from hesstune.data.examples import Listing
from hesstune.errors import DataError, cut, listed
from hesstune.storage.tables import Column, is_missing
from hesstune.weak.votes import ABSTAIN


@dataclass(frozen=True)
class ClassLabels:
    """Labels as indices.

    Attributes:
        labels: (N,) int64 class indices; −1 where a label is missing and that was allowed.
        classes: Class names, sorted, numbers by their size.
        notes: What was changed, in sentences.
    """

    labels: NDArray[np.int64]
    classes: list[str]
    notes: list[str] = field(default_factory=list)


def class_labels(column: Column, where: str, hidden: bool = False) -> ClassLabels:
    """Turn labels as written into indices: names in sorted order, whole numbers in order.

    Spaces around a label are no part of it. Numbers that are not 0, 1, 2, … are mapped in their order.

    Args:
        column: The labels.
        where: The file, for messages.
        hidden: Whether labels may be missing, or −1: they are −1 then.

    Raises:
        DataError: If a label is missing, several in one, or no class; or if there is one class only.

    Example:
        >>> found = class_labels(Column(["5", "1", "5 ", "2"]), "the file")
        >>> found.labels.tolist(), found.classes
        ([2, 0, 2, 1], ['1', '2', '5'])
    """
    codes, written = column.coded()
    values = [value.strip() for value in written]
    gone = [is_missing(value) or (hidden and value in ("-1", "-1.0")) for value in values]
    for code, value in enumerate(values):
        row = f"{where}, row {column.row_of(code)}" if gone[code] or _many(value) else ""
        if gone[code] and not hidden:
            told = f" ('{cut(value)}' stands for none)" if value else ""
            raise DataError(f"{row}: the label is empty{told}; fill it in, or take the row out")
        if not gone[code] and _many(value):
            raise DataError(
                f"{row}: label '{cut(value)}' looks like several labels; "
                "multi-label targets are not supported, give one class an example"
            )
    there = [code for code in range(len(values)) if not gone[code]]
    numbers = {code: n for code in there if (n := parse_number(values[code])) is not None}
    if len(numbers) == len(there):
        keys, notes = _whole(column, where, numbers)
        order: list[int | str] = sorted(set(keys.values()))
    else:
        keys, notes = {code: values[code] for code in there}, []
        order = sorted(set(keys.values()))
    if len(order) < 2:
        shown = f"'{order[0]}'" if order else "no label at all"
        raise DataError(f"{where} has one class only ({shown}); at least two are needed")
    index = {key: i for i, key in enumerate(order)}
    places = np.array([index[keys[c]] if c in keys else ABSTAIN for c in range(len(values))], dtype=np.int64)
    spaced = [written[c] for c in there if written[c] != values[c]]
    if spaced:
        notes.append(f"labels are taken without the spaces around them: {listed(map(repr, spaced), 4)}")
    return ClassLabels(places[codes], [str(key) for key in order], notes)


def with_labels(
    listing: Listing,
    column: Column,
    where: str,
    labelled: bool = True,
    names: Sequence[str] | None = None,
    hidden: bool = False,
) -> Listing:
    """Return a listing with labels, or, where none are needed, with those written in `given`.

    Args:
        listing: The examples.
        column: Their labels, one each.
        where: The file, for messages.
        labelled: Whether labels are needed.
        names: Class names, where labels are indices into them; of classes without an example none is kept.
        hidden: Whether labels may be missing, or −1: those examples are left out.

    Raises:
        DataError: See `class_labels`; or if a label has no name.
    """
    if not labelled:
        shown = _named(column, names, where) if names is not None else column.cells()
        blank = ("-1", "-1.0") if hidden else ()
        return replace(listing, given=["" if cell.strip() in blank else cell.strip() for cell in shown])
    if names is None:
        made = class_labels(column, where, hidden)
    else:
        made = _among(column.like(_named(column, names, where)), names, where, hidden)
    whole = replace(listing, labels=made.labels, classes=made.classes, notes=[*listing.notes, *made.notes])
    left = np.flatnonzero(made.labels == ABSTAIN)
    if not len(left):
        return whole
    told = f"{len(left)} of {len(listing)} examples without a label left out (such as {listing.ids[left[0]]})"
    return replace(whole.take(np.flatnonzero(made.labels != ABSTAIN)), notes=[*whole.notes, told])


def _named(column: Column, names: Sequence[str], where: str) -> list[str]:
    """Return labels that are indices into names by name, "" where one is missing."""
    codes, written = column.coded()
    meant = []
    for code, value in enumerate(written):
        number = parse_number(value.strip())
        at = int(number) if number is not None and number.is_integer() else None
        if is_missing(value) or at == ABSTAIN:
            meant.append("")
        elif at is not None and 0 <= at < len(names):
            meant.append(names[at])
        elif value.strip() in names:
            meant.append(value.strip())
        else:
            row = column.row_of(code)
            raise DataError(
                f"{where}, row {row}: label {cut(value)} has no name; the {len(names)} names are "
                f"{listed(names)}"
            )
    return [meant[code] for code in codes.tolist()]


def _among(column: Column, names: Sequence[str], where: str, hidden: bool) -> ClassLabels:
    """Turn labels that are names into indices in the names' order; names without an example are dropped."""
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise DataError(f"{where}: two classes are called '{cut(twice)}'; give each a name of its own")
    codes, values = column.coded()
    if "" in values and not hidden:
        row = column.row_of(values.index(""))
        raise DataError(f"{where}, row {row}: the label is empty; fill it in, or take the row out")
    kept = [name for name in names if name in set(values)]
    if len(kept) < 2:
        raise DataError(f"{where} has one class only ({listed(kept) or 'none'}); at least two are needed")
    index = {name: i for i, name in enumerate(kept)}
    absent = [name for name in names if name not in index]
    notes = [f"classes without an example left out: {listed(absent)}"] if absent else []
    labels = np.array([index.get(value, ABSTAIN) for value in values], dtype=np.int64)[codes]
    return ClassLabels(labels, kept, notes)


def _many(value: str) -> bool:
    return "|" in value or ";" in value or value.startswith("[")


def _whole(column: Column, where: str, numbers: dict[int, float]) -> tuple[dict[int, int | str], list[str]]:
    """Return {code: number} of labels that are all numbers, and what should be said of them."""
    signs = set(numbers.values()) == {-1.0, 1.0}
    for code, number in numbers.items():
        if not number.is_integer() or (number < 0 and not signs):
            raise DataError(
                f"{where}, row {column.row_of(code)}: label '{cut(column.coded()[1][code])}' is not a "
                "class index (0, 1, 2, …); regression targets are not supported. Give names to classes that "
                "are no counts, and nothing where there is no label"
            )
    keys: dict[int, int | str] = {code: int(number) for code, number in numbers.items()}
    order = sorted({int(number) for number in numbers.values()})
    notes = []
    if order and order != list(range(len(order))):
        notes.append(
            f"labels are the numbers {listed(order)}, not 0 to {len(order) - 1}: mapped in their order, and "
            "kept as the classes' names"
        )
    spelled = Counter(keys.values())
    if twice := [key for key, count in spelled.items() if count > 1]:
        forms = [column.coded()[1][code].strip() for code, key in keys.items() if key == twice[0]]
        if len(set(forms)) > 1:
            notes.append(f"labels written in several ways are one class: {listed(map(repr, forms), 4)}")
    return keys, notes


def alike(classes: Sequence[str]) -> list[str]:
    """Say, in a sentence or none, which classes differ by case, spaces or form of letters only.

    Example:
        >>> alike(["cat", "Cat", "dog"])
        ["classes that differ by upper and lower case or spaces only stay apart: 'cat' and 'Cat'"]
    """
    groups = defaultdict(list)
    for name in classes:
        groups[" ".join(unicodedata.normalize("NFKC", name).casefold().split())].append(name)
    same = [" and ".join(repr(cut(n, 40)) for n in names) for names in groups.values() if len(names) > 1]
    told = "classes that differ by upper and lower case or spaces only stay apart: "
    return [told + "; ".join(same[:4])] if same else []


def labels_among(given: Sequence[str], classes: Sequence[str]) -> tuple[NDArray[np.int64] | None, list[str]]:
    """Find labels as written among a run's classes, to compare predictions with.

    Args:
        given: Labels, "" for none.
        classes: The classes.

    Returns:
        (N,) int64 indices, −1 where a label is missing or none of the classes; None where all are. And what
        should be said, in sentences.

    Example:
        >>> labels_among(["cat", "", "cow", "dog "], ["cat", "dog"])[0].tolist()
        [0, -1, -1, 1]
    """
    index = {name: i for i, name in enumerate(classes)}
    codes, written = Column(given).coded()
    found, strange = np.full(len(written), ABSTAIN), []
    empty = np.zeros(len(written), dtype=bool)
    for code, value in enumerate(name.strip() for name in written):
        number = parse_number(value)
        plain = str(int(number)) if number is not None and number.is_integer() else value
        if value in index or plain in index:
            found[code] = index.get(value, index.get(plain, ABSTAIN))
        elif is_missing(value):
            empty[code] = True
        else:
            strange.append(code)
    notes = []
    if count := int(empty[codes].sum()):
        notes.append(f"{count} of {len(codes)} examples have no label: predicted, and compared with nothing")
    if count := int(np.isin(codes, strange).sum()):
        shown = listed((written[code] for code in strange), 4)
        notes.append(
            f"{count} of {len(codes)} examples have labels that are none of the run's classes ({shown}): "
            "predicted, and compared with nothing"
        )
    labels = found[codes]
    if (labels == ABSTAIN).all():
        return None, [] if empty[codes].all() else notes
    return labels, notes
