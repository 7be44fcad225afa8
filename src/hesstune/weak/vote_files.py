"""How tables write votes: class names and indices, columns of votes, and columns of probabilities."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from hesstune.checks import parse_integer, parse_rate
from hesstune.errors import DataError, cut, listed, unknown_name
from hesstune.storage.columns import MISSING, Column, CsvTable, is_missing
from hesstune.weak.votes import ABSTAIN, Votes

# In any case of letters, and with spaces around. Datumaro and CVAT write no_label.
ABSTENTIONS = frozenset({
    *(text.lower() for text in MISSING), "-1", "abstain", "abstained", "abstention", "no_label", "?", "-",
})  # fmt: skip
_WHOLE = re.compile(r"\s*([+-]?)0*([0-9]{1,9})\.0*\s*")
# A longer number is a class's name, not its index.
MOST_DIGITS = 9
PREFIX, SOFT_PREFIX = "vote_", "p_"
# The column that says where labels come from; see `hesstune.data.labels`.
LABEL_SOURCE = "label_source"
# Columns that never hold votes, and those that hold none unless asked for.
INPUTS = frozenset({"id", "image", "text", "text2"})
NO_VOTES = INPUTS | {"label", "true_label", "split", LABEL_SOURCE}
ROW_SUM_TOLERANCE = 1e-3
# A column that is not named vote_… holds votes if it has no more values than this.
MOST_CLASSES = 200


def written_vote(value: object) -> str:
    """Return a vote as text without spaces around; of whole numbers, without the point that pandas writes.

    Example:
        >>> [written_vote(value) for value in (" cat ", 1.0, "-1.0", "2.", "1.5", "007", None)]
        ['cat', '1', '-1', '2', '1.5', '007', '']
    """
    text = "" if value is None else str(value).strip().replace("\N{MINUS SIGN}", "-")
    whole = _WHOLE.fullmatch(text) if text[-1:] in ("0", ".") else None
    return text if whole is None else whole[1].strip("+") + whole[2]


def abstains(value: object, classes: Collection[str] = ()) -> bool:
    """Return whether a vote is for no class."""
    text = written_vote(value)
    return text.lower() in ABSTENTIONS and text not in classes


def class_index(classes: Sequence[str]) -> dict[str, int]:
    """Return the index of each class's name, and of each index as text if no class has such a name."""
    index = {name: i for i, name in enumerate(classes)}
    numbers = {str(i): i for i in range(len(classes))}
    spelled = {written_vote(name): i for i, name in reversed(list(enumerate(classes)))}
    index |= {name: i for name, i in spelled.items() if name not in index}
    return index if index.keys() & numbers.keys() else index | numbers


def class_of(value: object, index: dict[str, int], where: str) -> int:
    """Turn a vote into a class index, or ABSTAIN; DataError, which says where, if it is no class."""
    if abstains(value, index):
        return ABSTAIN
    if isinstance(value, bool):
        raise DataError(f"{where} gave {value}; a vote is a class name, a class index, or None to abstain")
    for text in (str(value).strip(), written_vote(value)):
        if text in index:
            return index[text]
    if isinstance(value, int | np.integer) and 0 <= value < len(set(index.values())):
        return int(value)
    number = _class_number(text)
    if number is not None and str(number) in index:  # 01 for 1
        return index[str(number)]
    names = {i: name for name, i in reversed(index.items())}  # the first of each: others are its indices
    shown = listed(names[i] for i in sorted(names))
    raise DataError(f"{where} gave '{cut(value)}', which is no class; the classes are {shown}")


def classes_named(
    named: Iterable[str], voted: Iterable[str], count: int, where: str, soft: Sequence[str] = ()
) -> list[str]:
    """Return the classes of labels and votes as written, in the order of their indices.

    These are class names in sorted order, or zero-based integers if all are integers. A vote that is a number
    is an index into the named classes if it is small enough. If all are among the classes `soft` of columns
    of soft labels, those are the classes. DataError is raised if there is one class only, or a number is no
    class index of so many (`count`) examples.

    Example:
        >>> classes_named(["dog", "cat"], ["cow", "1"], 9, "the file"), classes_named([], "021", 9, "it")
        (['cat', 'cow', 'dog'], ['0', '1', '2'])
    """
    found, voted = {written_vote(name) for name in named}, {written_vote(name) for name in voted}
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
    numbers = {name: _class_number(name) for name in classes}
    if None in numbers.values():
        return sorted(numbers)
    return sorted(numbers, key=lambda name: (numbers[name] or 0, name))


def _class_number(text: str) -> int | None:
    """Return the whole number that a class is named by, or None."""
    number = parse_integer(text) if len(text) <= MOST_DIGITS else None
    return None if number is None or text != text.strip().lstrip("+-") else number


def vote_columns(table: CsvTable, wanted: Sequence[str] = ()) -> list[str]:
    """Return the columns of votes: those wanted, else those named vote_…; DataError if one is missing."""
    possible = [name for name in table.columns if name not in INPUTS]
    for name in wanted:
        if name not in possible:
            raise unknown_name(f"column of {table.name}", name, possible, DataError)
    return list(wanted) or [name for name in possible if name.startswith(PREFIX)]


def other_columns(table: CsvTable, classes: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Return the columns not named vote_… that look like votes, and those that do not.

    Votes have few values, and other annotators give the same ones: a column of times, confidences or comments
    shares none. A column of abstentions is an annotator that never votes. Columns such as id, text, label,
    split and p_… are neither.
    """
    rest = [n for n in table.columns if n and n not in NO_VOTES and not n.startswith((PREFIX, SOFT_PREFIX))]
    values = {name: voted(table, [name]) for name in rest}
    known = voted(table, [name for name in ("label", "true_label") if name in table])
    known |= class_index(classes).keys()
    few = [name for name in rest if len(values[name]) <= min(MOST_CLASSES, max(2, len(table) // 2))]
    taken = [
        name
        for name in few
        if len(rest) == 1
        or not values[name]
        or values[name] & known
        or any(values[name] & values[o] for o in few if o != name)
    ]
    return taken, [name for name in rest if name not in taken]


def voted(table: CsvTable, columns: Sequence[str]) -> set[str]:
    """Return the distinct votes, see `written_vote`, without abstentions."""
    found = {written_vote(value) for name in columns for value in table.columns[name].coded()[1]}
    return {value for value in found if not abstains(value)}


def refuse_several(table: CsvTable, columns: Sequence[str], classes: Collection[str] = ()) -> None:
    """Raise DataError if a vote is a list, an object or joined classes, by row and column."""
    for name in columns:
        column = table.columns[name]
        for code, value in enumerate(column.coded()[1]):
            text = value.strip()
            if (text[:1] in ("[", "{") or "|" in text or ";" in text) and text not in classes:
                raise DataError(
                    f"{table.name}, row {column.row_of(code)}, column {name}: the vote '{cut(text)}' looks "
                    "like several classes; give one class for each vote, or name such a class in --classes"
                )


def column_votes(table: CsvTable, name: str, index: dict[str, int]) -> NDArray[np.int64]:
    """Return the votes in a column, (N,), ABSTAIN (−1) for an abstention; DataError if one is no class."""
    column = table.columns[name]
    codes, values = column.coded()
    found = [
        ABSTAIN
        if abstains(value, index)
        else class_of(value, index, f"{table.name}, row {column.row_of(code)}, column {name}")
        for code, value in enumerate(values)
    ]
    return np.array(found, dtype=np.int64)[codes]


def votes_in(table: CsvTable, columns: Sequence[str], classes: Sequence[str]) -> Votes:
    """Return the votes in some columns, one for each annotator; DataError if one is no class, by row."""
    index = class_index(classes)
    if not columns:
        raise DataError(f"{table.name} has no column of votes beside {listed(table.columns)}")
    votes = np.stack([column_votes(table, name, index) for name in columns], axis=1)
    return Votes(votes, len(classes), [name.removeprefix(PREFIX) for name in columns])


def soft_classes(table: CsvTable) -> list[str]:
    """Return the classes that columns p_CLASS name."""
    return [name.removeprefix(SOFT_PREFIX) for name in table.columns if name.startswith(SOFT_PREFIX)]


def soft_labels(table: CsvTable, classes: Sequence[str]) -> NDArray[np.float64] | None:
    """Return soft labels, (N, K), from the columns p_CLASS; None if the file has none of them.

    DataError is raised if a class has no column, or a row is no probability distribution.
    """
    columns = [SOFT_PREFIX + name for name in classes]
    missing = [name for name in columns if name not in table]
    if len(missing) == len(columns):
        return None
    if missing:
        raise DataError(f"{table.name} has soft labels, but no column '{missing[0]}' for that class")
    soft = np.stack([probability_cells(table, table.columns[name], name) for name in columns], axis=1)
    sums = soft.sum(axis=1)
    wrong = np.flatnonzero(~np.isfinite(sums) | (soft < 0).any(axis=1) | (abs(sums - 1) > ROW_SUM_TOLERANCE))
    if len(wrong):
        raise DataError(
            f"{table.name}, row {table.row(int(wrong[0]))}: the soft label must be probabilities that sum to "
            f"1; they sum to {sums[wrong[0]]:.4g}"
        )
    return np.asarray(soft / sums[:, None])


def probability_cells(table: CsvTable, column: Column, what: str) -> NDArray[np.float64]:
    """Return the numbers in a column, (N,), NaN for a missing one; DataError if a cell is none."""
    codes, values = column.coded()
    numbers = [np.nan if is_missing(value) else parse_rate(value) for value in values]
    if None in numbers:
        at = numbers.index(None)
        raise DataError(
            f"{table.name}, row {column.row_of(at)}: the probability in {what} must be a number; got "
            f"'{cut(values[at])}'"
        )
    return np.array(numbers, dtype=np.float64)[codes]


def confidences(table: CsvTable, column: str) -> tuple[NDArray[np.float64], int]:
    """Return the confidence of each row, (N,), 1 if a cell is empty; and how many are empty.

    Raises:
        DataError: If there is no such column, or a confidence is not in [0, 1], by its row.
    """
    if column not in table:
        raise unknown_name(f"column of {table.name}", column, list(table.columns), DataError)
    found = probability_cells(table, table.columns[column], f"the column '{column}'")
    is_empty = np.isnan(found)
    found[is_empty] = 1.0
    wrong = np.flatnonzero((found < 0) | (found > 1))
    if len(wrong):
        raise DataError(
            f"{table.name}, row {table.row(int(wrong[0]))}: the confidence {found[wrong[0]]:g} in the column "
            f"'{column}' must lie in [0, 1], or be a percentage such as 95%"
        )
    return found, int(is_empty.sum())
