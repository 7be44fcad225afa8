"""Which part of a data set a folder, a split or a cell names: training, validation or test."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hesstune.data.examples import PARTS
from hesstune.errors import DataError, cut, listed, unknown_name
from hesstune.storage.tables import Column

NAMES = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev", "devel", "development", "eval", "evaluation"),
    "test": ("test", "testing", "tst"),
}
_PARTS = {name: part for part, names in NAMES.items() for name in names}


def part_of(name: str) -> str | None:
    """Return `train`, `val` or `test` where a name is a usual one of them, in any case; else None.

    What follows a `-`, `_` or number tells parts of one kind apart, and is no matter.

    Example:
        >>> [part_of(name) for name in ("Training", "dev", "validation_matched", "test2017", "extra")]
        ['train', 'val', 'val', 'test', None]
    """
    found = re.fullmatch(r"([a-z]+)([-_ .\d].*)?", name.strip().lower(), re.DOTALL)
    return _PARTS.get(found[1]) if found else None


def parts_of(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Return {name: part} of the names that are a part's, and the others."""
    given = list(names)
    found = {name: part for name in given if (part := part_of(name)) is not None}
    return found, [name for name in given if name not in found]


def parts_note(found: dict[str, str]) -> list[str]:
    """Say, in a sentence or none, which names were taken for which parts."""
    by_part = {part: [name for name in found if found[name] == part] for part in PARTS}
    read = [
        f"{listed(f'{cut(name, 40)!r}' for name in names)} for {part}"
        for part, names in by_part.items()
        if names and names != [part]
    ]
    return [f"parts by their names: {'; '.join(read)}"] if read else []


def each_part(column: Column, what: str, needed: bool = True) -> tuple[list[str], list[str]]:
    """Return each example's part, of a column of their names, and what was guessed, in sentences.

    Args:
        column: The names.
        what: The column, for messages.
        needed: Whether each must be a part's; where not, another's part is "".

    Raises:
        DataError: If a cell is no part's name, by its row.
    """
    codes, values = column.coded()
    named, others = parts_of(values)
    if others and needed:
        row = column.row_of(values.index(others[0]))
        raise unknown_name(f"value in {what}, row {row},", others[0], PARTS, DataError)
    return [named.get(values[code], "") for code in codes.tolist()], parts_note(named) if needed else []
