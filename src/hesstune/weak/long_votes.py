"""Votes of a crowd as crowds give them: a table with a row a vote, of example, labeler and class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hesstune.errors import DataError, cut, listed, unknown_name
from hesstune.storage.csv_table import CsvTable
from hesstune.weak.ballots import Ballots
from hesstune.weak.vote_columns import PREFIX
from hesstune.weak.vote_values import abstains, class_index, class_of
from hesstune.weak.votes import ABSTAIN, Votes

__all__ = ["LongColumns", "classes_in", "labelers_in", "long_columns", "long_votes", "voters"]

# What crowds call them, without regard to case, _id or a final s.
TASKS = ("task", "item", "example", "question", "instance", "unit", "document", "image", "id")
WORKERS = ("worker", "annotator", "labeler", "labeller", "rater", "user", "coder", "judge", "performer")
LABELS = ("label", "answer", "response", "vote", "annotation", "judgment", "judgement", "rating", "class")


@dataclass(frozen=True)
class LongColumns:
    """Which columns hold what.

    Attributes:
        task: The example's id.
        worker: Who votes.
        label: The class voted for.
        guessed: Whether a name was not given, but read from the header.
    """

    task: str
    worker: str
    label: str
    guessed: bool

    def note(self) -> str:
        """Say how the file was read."""
        how = ", by the names of its columns" if self.guessed else ""
        return (
            f"votes are read one a row{how}: '{self.task}' names the example, '{self.worker}' who votes, "
            f"'{self.label}' the class"
        )


def long_columns(
    table: CsvTable, task: str | None = None, worker: str | None = None, label: str | None = None
) -> LongColumns | None:
    """Return the columns of a table with a row a vote, or None where it has a row an example.

    Names that are given are taken; others are guessed where exactly one column is called so. Where none is
    given, a table counts as one with a row a vote if it has no column vote_…, all three can be told, and
    examples occur in several rows.

    Raises:
        DataError: If a column that is given is missing, or one that is needed cannot be told.
    """
    given = {"task": task, "worker": worker, "label": label}
    for name in (n for n in given.values() if n is not None):
        if name not in table:
            raise unknown_name(f"column of {table.name}", name, list(table.columns), DataError)
    taken = [name for name in given.values() if name is not None]
    found: dict[str, str] = {}
    for role, words in (("worker", WORKERS), ("label", LABELS), ("task", TASKS)):
        column = given[role] or _called(table, words, [*taken, *found.values()])
        if column is None and taken:
            raise DataError(
                f"{table.name}: which column holds the {role} cannot be told from {listed(table.columns)}; "
                f"give --{role}-column"
            )
        if column is None:
            return None
        found[role] = column
    if len(set(found.values())) < len(found):
        raise DataError(f"task, worker and label must be three columns; got {listed(found.values())}")
    if not taken:
        wide = any(name.startswith(PREFIX) for name in table.columns)
        codes, values = table.columns[found["task"]].coded()
        if wide or len(values) == len(codes):
            return None
    return LongColumns(found["task"], found["worker"], found["label"], len(taken) < len(given))


def voters(table: CsvTable, task: str | None, worker: str | None) -> tuple[str, str] | None:
    """Return the columns of examples and labelers of a table with a row a vote, or None; see `long_columns`.

    Raises:
        DataError: If a column that is given is missing.
    """
    for name in (n for n in (task, worker) if n is not None):
        if name not in table:
            raise unknown_name(f"column of {table.name}", name, list(table.columns), DataError)
    given = [name for name in (task, worker) if name is not None]
    who = worker or _called(table, WORKERS, given)
    what = task or _called(table, TASKS, [*given, *([who] if who else [])])
    return (what, who) if what is not None and who is not None else None


def _called(table: CsvTable, words: Sequence[str], taken: Sequence[str]) -> str | None:
    """Return the one column that is called like one of the words, the first word that occurs deciding."""
    plain: dict[str, list[str]] = {}
    for name in table.columns:
        if name not in taken:
            word = name.strip().lower().removesuffix("_id").removesuffix(" id")
            plain.setdefault(word if word in words else word.removesuffix("s"), []).append(name)
    found = [plain[word] for word in words if word in plain]
    return found[0][0] if found and len(found[0]) == 1 else None


def classes_in(table: CsvTable, columns: LongColumns) -> set[str]:
    """Return the distinct votes as written, without spaces around, abstentions left out."""
    values = {value.strip() for value in table.columns[columns.label].coded()[1]}
    return {value for value in values if not abstains(value)}


def long_votes(
    table: CsvTable, columns: LongColumns, classes: Sequence[str], examples: Sequence[str] | None = None
) -> tuple[list[str], Votes, list[str]]:
    """Return the examples' ids, their votes, and what should be known, in sentences.

    Where somebody votes on an example twice, the last vote counts.

    Args:
        table: The table.
        columns: Its columns.
        classes: Class names.
        examples: The ids of the examples, in their order; None: those that the table names.

    Raises:
        DataError: If a vote is no class, by its row, a labeler has no name, or an id is no example's.
    """
    ids, example = _examples(table, columns.task, examples)
    labeler, names = labelers_in(table, columns.worker)
    codes, values = table.columns[columns.label].coded()
    index = class_index(classes)
    meant = np.full(len(values), ABSTAIN)
    for code, value in enumerate(values):
        if not abstains(value, index):
            where = f"{table.name}, row {table.columns[columns.label].row_of(code)}, {columns.label}"
            meant[code] = class_of(value, index, where)
    vote = meant[codes]
    given = vote != ABSTAIN
    example, labeler, vote = example[given], labeler[given], vote[given]
    pair = example * len(names) + labeler
    order = np.argsort(pair, kind="stable")
    last = order[np.append(np.diff(pair[order]) > 0, True)] if len(order) else order
    notes = []
    if len(last) < len(pair):
        notes.append(f"{len(pair) - len(last)} votes are repeated by the same labeler: the last one counts")
    ballots = Ballots(example[last], labeler[last], vote[last], len(ids), len(names), len(classes))
    return ids, Votes.of_ballots(ballots, names), notes


def _examples(
    table: CsvTable, column: str, examples: Sequence[str] | None
) -> tuple[list[str], NDArray[np.int64]]:
    codes, values = table.columns[column].coded()
    if examples is None:
        return values, codes.astype(np.int64)
    place = {name: at for at, name in enumerate(examples)}
    strange = [value for value in values if value not in place]
    if strange:
        raise DataError(
            f"{len(strange)} values of {column} in {table.name} are no example's id, such as "
            f"'{cut(strange[0])}'; ids look like '{cut(examples[0])}'"
        )
    return list(examples), np.array([place[value] for value in values], dtype=np.int64)[codes]


def labelers_in(table: CsvTable, column: str) -> tuple[NDArray[np.int64], list[str]]:
    """Return who votes in each row, as indices, (V,), and the labelers' names.

    Raises:
        DataError: If a row does not say who, by its number.
    """
    codes, values = table.columns[column].coded()
    names = [value.strip() for value in values]
    if "" in names:
        row = table.columns[column].row_of(names.index(""))
        raise DataError(f"{table.name}, row {row}: the column '{column}' does not say who votes")
    index = {name: at for at, name in enumerate(dict.fromkeys(names))}
    return np.array([index[name] for name in names], dtype=np.int64)[codes], list(index)
