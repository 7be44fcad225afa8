"""How votes are written: values, columns of a table, a row a vote, and columns of probabilities."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hesstune.checks import parse_integer, parse_rate
from hesstune.errors import DataError, cut, listed, unknown_name
from hesstune.storage.tables import MISSING, CsvTable, is_missing, read_table
from hesstune.weak.votes import ABSTAIN, MOST_CELLS, Ballots, Votes

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


PREFIX, SOFT_PREFIX = "vote_", "p_"
# The column that says where labels come from; see `hesstune.data.labels`.
LABEL_SOURCE = "label_source"
# Columns that never hold votes, and those that hold none unless asked for.
INPUTS = frozenset({"id", "image", "text", "text2"})
NO_VOTES = INPUTS | {"label", "true_label", "split", LABEL_SOURCE}
ROW_SUM_TOLERANCE = 1e-3
# A column whose name says nothing holds votes if it has no more values than this.
MOST_CLASSES = 200


def vote_columns(
    table: CsvTable, wanted: Sequence[str] = (), others: bool = False, classes: Sequence[str] = ()
) -> list[str]:
    """Return the columns of votes: those wanted, else those named vote_….

    Args:
        table: The table.
        wanted: Names of columns.
        others: Whether, in a file of votes alone, other columns that look like votes are taken where none
            is wanted or named so; see `other_columns`.
        classes: Class names, where they are known.

    Raises:
        DataError: If a wanted column is missing.
    """
    possible = [name for name in table.columns if name not in INPUTS]
    for name in wanted:
        if name not in possible:
            raise unknown_name(f"column of {table.name}", name, possible, DataError)
    named = [name for name in possible if name.startswith(PREFIX)]
    return list(wanted) or named or (other_columns(table, classes)[0] if others else [])


def other_columns(table: CsvTable, classes: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Return the columns not named vote_… that look like votes, and those that do not.

    None of id, image, text, text2, label, true_label, split and p_…. Votes have few values, and those of one
    labeler are given by others, too: a column of times, confidences or comments shares none. A column in
    which all abstain is a labeler that never votes.
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
    """Return the distinct votes as written, without spaces around, abstentions left out."""
    found = {value.strip() for name in columns for value in table.columns[name].coded()[1]}
    return {value for value in found if not abstains(value)}


def votes_in(table: CsvTable, columns: Sequence[str], classes: Sequence[str]) -> Votes:
    """Return the votes in some columns, (N, m); see `hesstune.weak.vote_files` for how they are written.

    Raises:
        DataError: If a vote is no class, by row and column.
    """
    index = class_index(classes)
    votes = np.empty((len(table), len(columns)), dtype=np.int64)
    for j, name in enumerate(columns):
        codes, values = table.columns[name].coded()
        found = np.full(len(values), ABSTAIN)
        for code, value in enumerate(values):
            try:
                found[code] = class_of(value, index, "")
            except DataError:  # once more, to say where
                row = table.columns[name].row_of(code)
                class_of(value, index, f"{table.name}, row {row}, column {name}")
        votes[:, j] = found[codes]
    return Votes(votes, len(classes), [name.removeprefix(PREFIX) for name in columns])


def soft_classes(table: CsvTable) -> list[str]:
    """Return the classes that columns p_CLASS name."""
    return [name.removeprefix(SOFT_PREFIX) for name in table.columns if name.startswith(SOFT_PREFIX)]


def soft_labels(table: CsvTable, classes: Sequence[str]) -> NDArray[np.float64] | None:
    """Return soft labels, (N, K), from the columns p_CLASS; None where the file has none of them.

    Raises:
        DataError: If a class has no column, or a row is no probability distribution.
    """
    columns = [SOFT_PREFIX + name for name in classes]
    missing = [name for name in columns if name not in table]
    if len(missing) == len(columns):
        return None
    if missing:
        raise DataError(f"{table.name} has soft labels, but no column '{missing[0]}' for that class")
    soft = np.stack([_numbers(table, name) for name in columns], axis=1)
    sums = soft.sum(axis=1)
    wrong = np.flatnonzero(~np.isfinite(sums) | (soft < 0).any(axis=1) | (abs(sums - 1) > ROW_SUM_TOLERANCE))
    if len(wrong):
        raise DataError(
            f"{table.name}, row {table.row(int(wrong[0]))}: the soft label must be probabilities that sum to "
            f"1; they sum to {sums[wrong[0]]:.4g}"
        )
    return np.asarray(soft / sums[:, None])


def _numbers(table: CsvTable, column: str) -> NDArray[np.float64]:
    codes, values = table.columns[column].coded()
    numbers = [parse_rate(value) for value in values]
    if None in numbers:
        at = numbers.index(None)
        row = table.columns[column].row_of(at)
        raise DataError(
            f"{table.name}, row {row}: the soft label in the column '{column}' must be a number; got "
            f"'{cut(values[at])}'"
        )
    return np.array(numbers, dtype=np.float64)[codes]


def read_votes(
    path: str | Path, classes: Sequence[str], columns: Sequence[str] | None = None
) -> tuple[list[str], Votes]:
    """Read a file of votes: `id`, then a column a labeler; empty cells abstain.

    Args:
        path: The file.
        classes: Class names; a vote is one of them, or a zero-based index.
        columns: The labelers' columns; see `vote_columns`.

    Returns:
        The ids, and the votes.

    Raises:
        DataError: If the file is missing, a vote is no class or a column is missing, by row and column.
    """
    table = read_table(path, "the file of votes")
    if "id" not in table:
        raise DataError(f"{table.name} needs a column 'id', and a column a labeler")
    names = vote_columns(table, columns or (), True, classes)
    if not names:
        raise DataError(f"{table.name} has no column of votes beside {', '.join(table.columns)}")
    return table.cells("id"), votes_in(table, names, classes)


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
    given, a table counts as one with a row a vote if it has no column vote_…, all three can be found, and
    examples occur in several rows.

    Raises:
        DataError: If a column that is given is missing, or one that is needed cannot be found.
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
                f"{table.name}: no column is known as the {role} among {listed(table.columns)}; "
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


SoftColumns = dict[str, dict[str, str]]
"""{labeler: {class: column}}."""


@dataclass(frozen=True)
class SoftVotes:
    """Probabilities of m labelers on N examples.

    Attributes:
        ids: One id an example.
        names: The labelers' names.
        classes: What the columns or objects call the classes, K.
        p: (N, m, K) that sum to 1, or all 0 where a labeler abstains.
        notes: What was changed when they were read, in sentences.
    """

    ids: list[str]
    names: list[str]
    classes: list[str]
    p: NDArray[np.float64]
    notes: tuple[str, ...] = ()

    def votes(self, classes: Sequence[str], where: str) -> Votes:
        """Return them as votes for the most probable class, among all classes in their order.

        Raises:
            DataError: If one of theirs is no class.
        """
        index = class_index(classes)
        strange = [name for name in self.classes if name not in index]
        if strange:
            raise DataError(
                f"{where} has probabilities of '{cut(strange[0])}', which is no class; the classes are "
                f"{listed(classes)}"
            )
        soft = np.zeros((*self.p.shape[:2], len(classes)))
        soft[:, :, [index[name] for name in self.classes]] = self.p
        table = np.where(soft.any(axis=2), soft.argmax(axis=2), ABSTAIN)
        return Votes(table, len(classes), self.names, soft)


def soft_columns(table: CsvTable, known: Collection[str] = ()) -> SoftColumns:
    """Return the columns p_LABELER_CLASS; columns p_CLASS, soft labels, are none of them.

    Where classes are known, a column's name ends in one of them. Else the names are split at their last
    underscores, or all at their first ones, such that every labeler has the same two classes at least.

    Args:
        table: The table.
        known: Names of classes, where they are known.

    Raises:
        DataError: If a labeler has columns for some classes only.

    Example:
        >>> cells = {name: ["1"] for name in ("p_gpt_yes", "p_gpt_no", "p_llama_yes", "p_llama_no")}
        >>> sorted(soft_columns(CsvTable.of(cells, "the table")))
        ['gpt', 'llama']
    """
    bodies = [n.removeprefix(SOFT_PREFIX) for n in table.columns if n.startswith(SOFT_PREFIX)]
    if not known:
        for found in (_grouped(bodies, str.rpartition), _grouped(bodies, str.partition)):
            if found and len({frozenset(own) for own in found.values()}) == 1 and _several(found):
                return found
        return {}

    def by_class(body: str, _: str) -> tuple[str, str, str]:
        fitting = [name for name in known if body.endswith(f"_{name}")]
        name = max(fitting, key=len, default="")
        return ("", "", "") if body in known or not name else (body.removesuffix(f"_{name}"), "_", name)

    found = _grouped(bodies, by_class)
    every = {name for own in found.values() for name in own}
    if any(
        body in known for body in bodies
    ):  # soft labels, perhaps of a class that ends as another is called
        return {labeler: own for labeler, own in found.items() if own.keys() >= set(known)}
    for labeler, own in found.items():
        if missing := sorted(every - own.keys()) or (sorted(set(known) - every) if len(every) < 2 else []):
            raise DataError(
                f"{table.name} has no column '{SOFT_PREFIX}{labeler}_{missing[0]}', but "
                f"{listed(own.values())}; a labeler needs one for every class"
            )
    return found


def _grouped(bodies: Sequence[str], split: Callable[[str, str], tuple[str, str, str]]) -> SoftColumns:
    found: SoftColumns = {}
    for body in bodies:
        labeler, _, name = split(body, "_")
        if labeler and name:
            found.setdefault(labeler, {})[name] = SOFT_PREFIX + body
    return found


def _several(found: SoftColumns) -> bool:
    return len(next(iter(found.values()))) >= 2


def soft_by_example(
    table: CsvTable, ids: Sequence[str], cells: Mapping[str, Mapping[str, Sequence[str]]]
) -> SoftVotes:
    """Return probabilities written a row an example.

    Args:
        table: The table, for the rows that messages name.
        ids: The examples' ids.
        cells: {labeler: {class: its cells}}, every labeler of the same classes.

    Raises:
        DataError: If a cell is no probability, by its row.
    """
    classes = list(dict.fromkeys(name for own in cells.values() for name in own))
    found, notes = [], list[str]()
    for labeler, own in cells.items():
        p, more = _probabilities(table, labeler, {name: own[name] for name in classes})
        found.append(p)
        notes += more
    return SoftVotes(list(ids), list(cells), classes, np.stack(found, axis=1), tuple(notes))


def soft_by_vote(table: CsvTable, task: str, worker: str, cells: Mapping[str, Sequence[str]]) -> SoftVotes:
    """Return probabilities written a row a vote; where a labeler votes twice, the last vote counts.

    Args:
        table: The table.
        task: Its column of examples' ids.
        worker: Its column of labelers.
        cells: {class: its cells}.

    Raises:
        DataError: If a cell is no probability, by its row, or there are too many labelers.
    """
    example, ids = table.columns[task].coded()
    labeler, names = labelers_in(table, worker)
    if len(ids) * len(names) * len(cells) > MOST_CELLS:
        raise DataError(
            f"{table.name} has probabilities of {len(names):,} labelers on {len(ids):,} examples, too many "
            "for a table; give their votes alone"
        )
    p, notes = _probabilities(table, "", cells)
    whole = np.zeros((len(ids), len(names), len(cells)))
    whole[example, labeler] = p
    twice = len(example) - len(np.unique(example.astype(np.int64) * len(names) + labeler))
    if twice:
        notes.append(
            f"{twice} votes are followed by another of the same labeler on the same example: it counts"
        )
    if silent := int((~p.any(axis=1)).sum()):
        notes.append(f"{silent} votes give no probabilities; they are left out")
    return SoftVotes(ids, names, list(cells), whole, tuple(notes))


def _probabilities(
    table: CsvTable, labeler: str, cells: Mapping[str, Sequence[str]]
) -> tuple[NDArray[np.float64], list[str]]:
    """Return (N, K) probabilities that sum to 1, or to 0 where all cells are empty."""
    of = f" of {labeler}" if labeler else ""
    p = np.stack([_probability_cells(table, f"{name}{of}", own) for name, own in cells.items()], axis=1)
    empty = np.isnan(p)
    some = np.flatnonzero(empty.any(axis=1) & ~empty.all(axis=1))
    if len(some):
        raise DataError(
            f"{table.name}, row {table.row(int(some[0]))}: some probabilities{of} are there, and some are "
            "missing; give all of them, or none to abstain"
        )
    p[empty] = 0.0
    outside = np.argwhere((p < 0) | (p > 1 + ROW_SUM_TOLERANCE) | ~np.isfinite(p))
    if len(outside):
        n, c = outside[0].tolist()
        hint = "percentages are divided by 100, logarithms exponentiated, first"
        raise DataError(
            f"{table.name}, row {table.row(n)}: the probability {p[n, c]:g} of {list(cells)[c]}{of} is not "
            f"in [0, 1]; {hint}"
        )
    total = p.sum(axis=1, keepdims=True)
    odd = int(((total > 0) & (abs(total - 1) > ROW_SUM_TOLERANCE)).sum())
    notes = (
        [f"probabilities{of} of {odd} examples did not sum to 1; they were divided by their sum"]
        if odd
        else []
    )
    return np.divide(p, total, out=np.zeros_like(p), where=total > 0), notes


def _probability_cells(table: CsvTable, what: str, cells: Sequence[str]) -> NDArray[np.float64]:
    found = np.full(len(cells), np.nan)
    for n, cell in enumerate(cells):
        if not is_missing(cell):
            number = parse_rate(cell)
            if number is None:
                raise DataError(
                    f"{table.name}, row {table.row(n)}: the probability of {what} is '{cut(cell)}', no number"
                )
            found[n] = number
    return found
