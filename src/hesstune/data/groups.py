"""Columns of a table whose values look like groups of examples: patients, authors, videos."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from hesstune.checks import parse_number
from hesstune.data.label_sources import GIVEN_LABEL, SOURCE
from hesstune.storage.tables import Column, is_missing
from hesstune.weak.vote_files import PREFIX

# Words in the names of columns that say what an example belongs to.
WORDS = frozenset({
    "author", "case", "clip", "conversation", "doc", "document", "family", "group", "hospital", "patient",
    "person", "scene", "session", "site", "source", "speaker", "subject", "thread", "user", "video", "writer",
})  # fmt: skip
# Columns that hesstune writes or reads as labels, inputs and parts.
OWN = frozenset({"text", "text2", "image", "label", "id", "split", "true_label", "likely_label"}) | {
    "clean_label", "wrong_probability", "prediction", GIVEN_LABEL, SOURCE,
}  # fmt: skip


def possible_groups(
    columns: Mapping[str, Column], classes: Iterable[str], used: Iterable[str] = ()
) -> dict[str, int]:
    """Return {column: number of distinct values} of the columns that may group examples.

    Such a column repeats values. Either its name has a word such as patient, author or video, or its values
    look like groups: more of them than classes, most of them in several rows. Constant columns and numbers
    that are not integers are no groups, and neither are labels and soft labels. Missing cells do not count.

    Args:
        columns: The table's columns.
        classes: Class names.
        used: Columns that are read as something else, such as votes.

    Example:
        >>> sites = Column(["a", "b", "a"])
        >>> possible_groups({"text": Column("xyz"), "hospitalId": sites}, ["0", "1"])
        {'hospitalId': 2}
    """
    names = list(classes)
    others = {*used, *(f"p_{name}" for name in names)}
    found = {}
    for name, column in columns.items():
        if name in others or name.startswith(PREFIX) or name.strip().casefold() in OWN:
            continue
        counts = _counts(column)
        if counts is None:
            continue
        by_values = len(counts) > len(names) and 2 * (counts > 1).sum() > len(counts)
        if by_values or _is_group_name(name):
            found[name] = len(counts)
    return found


def _counts(column: Column) -> np.ndarray | None:
    """Return how many rows each value has; None if no value repeats, or one value or numbers are all."""
    codes, values = column.coded()
    there = [code for code, value in enumerate(values) if not is_missing(value)]
    counts = np.bincount(codes, minlength=len(values))[there]
    if len(there) < 2 or counts.max() < 2:
        return None
    numbers = [parse_number(values[code].strip()) for code in there]
    if None not in numbers and not all(float(number).is_integer() for number in numbers):  # type: ignore[arg-type]
        return None
    return counts


def _is_group_name(name: str) -> bool:
    """Tell whether a word of a column's name is one of WORDS, or its plural."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return any(word.lower() in WORDS or word.lower().removesuffix("s") in WORDS for word in words)


def group_notes(groups: Mapping[str, int], n: int) -> list[str]:
    """Say which columns may group the n examples, and what to do about it."""
    return [
        f"the column '{name}' has {count} values in {n} rows: if rows that share one belong together, like "
        f"those of one patient, train with --split group:{name}, which keeps each group in one part"
        for name, count in groups.items()
    ]
