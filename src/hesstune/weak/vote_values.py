"""What a vote may be written as: a class by its name or its index, or one of the ways to abstain.

Whatever the votes come from, columns of a file or labeling functions, they mean the same: a vote is the
name of a class; else it abstains if it is nothing, or written as one of ABSTENTIONS; else it is a class's
zero-based index, unless some class is called by a number of that kind.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from hesstune.errors import DataError, cut, listed
from hesstune.storage.cells import MISSING
from hesstune.weak.votes import ABSTAIN

__all__ = ["ABSTENTIONS", "abstains", "class_index", "class_of", "classes_named"]

# In any case of letters, and with spaces around.
ABSTENTIONS = frozenset({*(text.lower() for text in MISSING), "-1", "abstain"})
# No class index is longer; int() refuses a few thousand digits.
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
    if _is_number(text) and str(int(text)) in index:  # 01 for 1
        return index[str(int(text))]
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
    found |= {name for name in voted if not _is_number(name)}
    found |= {name for name in voted if _is_number(name) and int(name) >= len(found)} if found else voted
    if len(soft) > 1 and found and found <= set(soft):
        return sorted(soft, key=int) if all(map(_is_number, soft)) else sorted(soft)
    if all(map(_is_number, found)):
        top = max((int(name) for name in found), default=0)
        if top >= max(2 * count, 2):
            raise DataError(f"{where}: class {top} is out of range for {count} examples")
        classes = [str(i) for i in range(top + 1)]
    else:
        classes = sorted(found)
    if len(classes) < 2:
        shown = classes[0] if classes else "none"
        raise DataError(f"{where} has one class only ('{shown}'); at least two are needed")
    return classes


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) <= MOST_DIGITS
