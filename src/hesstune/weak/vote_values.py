"""What a vote may be written as: a class by its name or its index, or one of the ways to abstain.

Whatever the votes come from, columns of a file or labeling functions, they mean the same: a vote is the
name of a class; else it abstains if it is nothing, or written as one of ABSTENTIONS; else it is a class's
zero-based index, unless some class is called by a number of that kind.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from hesstune.checks import parse_integer
from hesstune.errors import DataError, cut, listed
from hesstune.storage.cells import MISSING
from hesstune.weak.votes import ABSTAIN

__all__ = ["ABSTENTIONS", "abstains", "class_index", "class_of", "classes_named", "in_order"]

# In any case of letters, and with spaces around.
ABSTENTIONS = frozenset({*(text.lower() for text in MISSING), "-1", "abstain"})
# A longer number is a class's name, not its index.
MOST_DIGITS = 9


def abstains(value: object, classes: Collection[str] = ()) -> bool:
    """Tell whether a vote is for no class.

    Example:
        >>> abstains(None), abstains(" NaN "), abstains("none"), abstains("none", ["none", "some"])
        (True, True, True, False)
    """
    text = "" if value is None else str(value).strip()
    return text.lower() in ABSTENTIONS and text not in classes


def class_index(classes: Sequence[str]) -> dict[str, int]:
    """Return the index of each class's name, and of each index as text where no class is called so."""
    index = {name: i for i, name in enumerate(classes)}
    numbers = {str(i): i for i in range(len(classes))}
    return index if index.keys() & numbers.keys() else index | numbers


def class_of(value: object, index: dict[str, int], where: str) -> int:
    """Turn a vote into a class index, or ABSTAIN.

    Args:
        value: The vote.
        index: See `class_index`.
        where: Who votes on what, for the message.

    Raises:
        DataError: If it is no class.
    """
    if abstains(value, index):
        return ABSTAIN
    if isinstance(value, bool):
        raise DataError(f"{where} gave {value}; a vote is a class name, a class index, or None to abstain")
    text = str(value).strip()
    if text in index:
        return index[text]
    if isinstance(value, int | np.integer) and 0 <= value < len(set(index.values())):
        return int(value)
    names = {i: name for name, i in reversed(index.items())}  # the first of each: others are its aliases
    number = _class_number(text)
    if number is not None and str(number) in index:  # 01 for 1
        return index[str(number)]
    shown = listed(names[i] for i in sorted(names))
    raise DataError(f"{where} gave '{cut(value)}', which is no class; the classes are {shown}")


def classes_named(
    named: Iterable[str], voted: Iterable[str], count: int, where: str, soft: Sequence[str] = ()
) -> list[str]:
    """Return the classes behind labels and votes as written, in the order of their indices.

    Class names in sorted order, or zero-based integers where all are. A vote that is a number is an index
    where other names are known and it is small enough.

    Args:
        named: Names of classes: labels, and what labelers know.
        voted: Votes, abstentions left out: names, or indices into the named classes.
        count: How many examples there are.
        where: The file, for messages.
        soft: Classes that columns of soft labels name: where all others are among them, they are the
            classes.

    Raises:
        DataError: If there is but one class, or a number is no class index.

    Example:
        >>> classes_named(["dog", "cat"], ["cow", "1"], 9, "the file"), classes_named([], "021", 9, "it")
        (['cat', 'cow', 'dog'], ['0', '1', '2'])
    """
    found, voted = set(named), set(voted)
    numbers = {name: number for name in voted if (number := _class_number(name)) is not None}
    found |= voted - numbers.keys()
    found |= {name for name, number in numbers.items() if number >= len(found)} if found else voted
    if len(soft) > 1 and found and found <= set(soft):
        return in_order(soft)
    indices = [_class_number(name) for name in found]
    if None not in indices:
        top = max((index for index in indices if index is not None), default=0)
        if top >= max(2 * count, 2):
            raise DataError(f"{where}: class {top} is out of range for {count} examples")
        classes = [str(i) for i in range(top + 1)]
    else:
        classes = sorted(found)
    if len(classes) < 2:
        shown = classes[0] if classes else "none"
        raise DataError(f"{where} has one class only ('{shown}'); at least two are needed")
    return classes


def in_order(classes: Iterable[str]) -> list[str]:
    """Return the names of classes sorted; by size if all of them are whole numbers."""
    names = list(classes)
    numbers = {name: _class_number(name) for name in names}
    if None in numbers.values():
        return sorted(names)
    return sorted(names, key=lambda name: (numbers[name] or 0, name))


def _class_number(text: str) -> int | None:
    """Return the whole number that a class is called by, or None."""
    number = parse_integer(text) if len(text) <= MOST_DIGITS else None
    return None if number is None or text != text.strip().lstrip("+-") else number
