"""Where votes come from: labeling functions, and files of votes in several layouts.

Each reader returns `WrittenVotes`, the votes of some annotators before the classes are known.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hesstune.errors import ConfigError, DataError, cut, listed, unknown_name
from hesstune.storage.columns import Column, CsvTable, json_cell
from hesstune.storage.table_files import JSON_LINES
from hesstune.storage.tables import read_table
from hesstune.user_code import import_user_module
from hesstune.weak.export_answers import seconds_of
from hesstune.weak.vote_files import (
    PREFIX,
    ROW_SUM_TOLERANCE,
    SOFT_PREFIX,
    abstains,
    class_index,
    class_of,
    column_votes,
    confidences,
    other_columns,
    probability_cells,
    refuse_several,
    soft_classes,
    vote_columns,
    voted,
    votes_in,
    written_vote,
)
from hesstune.weak.votes import ABSTAIN, MOST_CELLS, Votes


@dataclass(frozen=True)
class WrittenVotes:
    """Votes of some annotators as they were written."""

    # The example of each row of votes; None: the examples to be labelled, in their order
    ids: Sequence[str] | None
    classes: set[str]  # the names of classes, or indices as text, that occur in them
    # Returns the votes, and notes, from the names of all classes
    votes: Callable[[Sequence[str]], tuple[Votes, list[str]]]
    notes: tuple[str, ...] = ()  # how they were read, in sentences
    # The column of the examples' ids in a file with a row for each vote, "" if there is none; None: a file
    # with a row for each example.
    by_vote: str | None = None


Nested = dict[str, list[dict[str, str]]]
"""{column: an object a row, its values as text}; {} if a row has none."""


def read_vote_file(path: str | Path) -> tuple[CsvTable, Nested]:
    """Read a file of votes, CSV or JSON lines; columns of objects of probabilities are returned apart."""
    table = read_table(path, "the file of votes")
    if Path(path).suffix.lower() not in JSON_LINES:
        return table, {}
    nested = {
        name: [_parsed_object(table, name, at, cell) for at, cell in enumerate(column.cells())]
        for name, column in table.columns.items()
        if column.nested is not None
    }
    plain = {name: column for name, column in table.columns.items() if name not in nested}
    return replace(table, columns=plain), nested


def _parsed_object(table: CsvTable, name: str, at: int, cell: str) -> dict[str, str]:
    try:
        found = json.loads(cell or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or any(isinstance(value, dict | list) for value in found.values()):
        raise DataError(
            f"{table.name}, row {table.columns[name].row(at)}: '{cut(name)}' must be an object of plain "
            "values, or be empty, in every row"
        )
    return {key: json_cell(value) for key, value in found.items()}


Function = Callable[[Mapping[str, Any]], object]


def load_functions(spec: str) -> list[tuple[str, Function]]:
    """Import (name, labeling function) pairs: `py:module:name`, the name of a function or of a list of them.

    The module is imported and run: use it with code you trust. ConfigError is raised if there is no function.
    """
    kind, _, rest = spec.partition(":")
    module_name, _, attribute = rest.partition(":")
    if kind != "py" or not attribute:
        raise ConfigError(f"labeling functions '{spec}' must be written py:module:name")
    try:
        module = import_user_module(module_name)
    except Exception as error:  # a module that is run may fail in any way
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"cannot import the module '{module_name}': {reason}") from error
    if not hasattr(module, attribute):
        raise unknown_name(f"name in {module_name}", attribute, [n for n in vars(module) if n[:1] != "_"])
    found = getattr(module, attribute)
    functions = list(found) if isinstance(found, list | tuple) else [found]
    if not functions or not all(callable(f) for f in functions):
        raise ConfigError(f"{spec} must be a function, or a list of functions; got {type(found).__name__}")
    return named_functions(functions, attribute)


def named_functions(functions: Sequence[Function], usual: str = "function") -> list[tuple[str, Function]]:
    """Return (name, function) pairs, each name once; `usual` is the name of a function without one."""
    names = [str(getattr(f, "__name__", getattr(f, "name", usual))) for f in functions]
    # All lambdas have the same name.
    unique = [n if names.count(n) == 1 else f"{n}{i}" for i, n in enumerate(names)]
    return list(zip(unique, functions, strict=True))


def call_functions(
    functions: Sequence[tuple[str, Function]], rows: Iterable[Mapping[str, str]]
) -> WrittenVotes:
    """Call each (name, labeling function) on each example; DataError if one fails, by name and example.

    A function gets an example as a mapping of text (a CSV file's row; `id` and `path` for images) and returns
    a class name, a class index, or None.
    """
    ids: list[object] = []
    answers: list[list[object]] = [[] for _ in functions]
    for n, row in enumerate(rows):
        ids.append(row.get("id", n))
        for (name, function), column in zip(functions, answers, strict=True):
            try:
                column.append(function(row))
            except Exception as error:
                raise DataError(
                    f"labeling function {name} failed on example {ids[-1]}: {type(error).__name__}: {error}"
                ) from error
    names = [name for name, _ in functions]

    def votes(classes: Sequence[str]) -> tuple[Votes, list[str]]:
        index = class_index(classes)
        columns = [
            [
                class_of(value, index, f"labeling function {name}, example {example},")
                for example, value in zip(ids, column, strict=True)
            ]
            for name, column in zip(names, answers, strict=True)
        ]
        return Votes(np.array(columns, dtype=np.int64).T, len(classes), names), []

    written = {written_vote(value) for column in answers for value in column if not abstains(value)}
    return WrittenVotes(None, written, votes)


def apply_functions(
    functions: Sequence[tuple[str, Function]], rows: Iterable[Mapping[str, str]], classes: Sequence[str]
) -> Votes:
    """Call each labeling function on each example and collect the votes; see `call_functions`.

    Example:
        >>> rule = ("long", lambda row: "yes" if len(row["text"]) > 3 else None)
        >>> apply_functions([rule], [{"text": "ab"}, {"text": "abcd"}], ["no", "yes"]).table.tolist()
        [[-1], [1]]
    """
    return call_functions(functions, rows).votes(classes)[0]


def votes_by_column(
    table: CsvTable, wanted: Sequence[str], classes: Sequence[str], *, ids: Sequence[str] | None, guess: bool
) -> WrittenVotes | None:
    """Return the votes of a table with a row for each example and a column for each annotator, or None.

    `wanted` are columns of votes; none: those named vote_…. With `guess`, other columns that look like votes
    are taken if there is none of these, and there must be some.
    """
    columns, notes = vote_columns(table, wanted), list[str]()
    refuse_several(table, columns, classes)
    if not columns and guess:
        columns, left = other_columns(table, classes)
        if not columns:
            raise DataError(
                f"{table.name} has no columns vote_…, and none that look like votes among "
                f"{listed(table.columns)}; it is taken for a table with a row for each example. Name the "
                f"columns of votes by --vote-columns, or, with a row for each vote, by {OPTIONS}"
            )
        refuse_several(table, columns, classes)
        notes = [f"columns read as votes: {listed(columns)}"]
        notes += [f"columns left out, no votes by their values: {listed(left)}"] if left else []
    if not columns:
        return None
    written = voted(table, columns)
    return WrittenVotes(ids, written, lambda names: (votes_in(table, columns, names), []), tuple(notes))


# How annotation tools name their columns, see `_plain`.
ROLES = {
    "worker": (
        "worker", "annotator", "labeler", "labeller", "rater", "user", "coder", "judge", "performer",
    ),
    "label": (
        "label", "answer", "response", "vote", "annotation", "judgment", "judgement", "rating", "class",
    ),
    "task": ("task", "item", "example", "question", "instance", "unit", "document", "image", "id"),
    "time": ("updated", "modified", "submitted", "submit", "completed", "finished", "answered", "timestamp",
             "created", "time", "date"),
    "status": ("status", "state", "assignmentstatus", "answerstatus", "wascancelled", "cancelled",
               "rejected", "skipped", "discarded"),
}  # fmt: skip
# What a column of the status of answers says, in any case of letters, and what of it leaves an answer out.
GOOD = frozenset({"", "accepted", "accept", "approved", "submitted", "completed", "complete", "done", "valid",
                  "validated", "finished", "true", "false"})  # fmt: skip
BAD = frozenset({"rejected", "reject", "discarded", "cancelled", "canceled", "skipped", "draft", "pending",
                 "expired", "invalid", "in progress", "in_progress", "active", "ignore", "ignored",
                 })  # fmt: skip
CONFIDENCES = ("confidence", "probability", "certainty", "prob", "score")
OPTIONS = "--task-column, --worker-column and --label-column"


@dataclass(frozen=True)
class RoleColumns:
    """The columns of a table with a row for each vote, as the user names them; None: recognised by name.

    They hold the example's id, the annotator, the class voted for, and the annotator's probability of that
    class, which is never recognised.
    """

    task: str | None = None
    worker: str | None = None
    label: str | None = None
    confidence: str | None = None

    def found(self, table: CsvTable, roles: Sequence[str]) -> dict[str, str]:
        """Return the columns of these roles, named or recognised; DataError if a named one is missing."""
        given = {role: name for role, name in self.given().items() if role in roles}
        for name in given.values():
            if name not in table:
                raise unknown_name(f"column of {table.name}", name, list(table.columns), DataError)
        found: dict[str, str] = {}
        for role in roles:
            taken = {*given.values(), *found.values()}
            if column := given.get(role) or _recognised(table, ROLES.get(role, ()), taken):
                found[role] = column
        return found

    def given(self) -> dict[str, str]:
        """Return {role: column} of the columns that are named."""
        return {role: name for role, name in vars(self).items() if name is not None}


def _recognised(table: CsvTable, words: Sequence[str], taken: Collection[str]) -> str | None:
    """Return the only column that is named by one of the words; the first word that occurs decides."""
    plain: dict[str, list[str]] = {}
    for name in table.columns:
        if name not in taken:
            plain.setdefault(_plain(name, words), []).append(name)
    found = [plain[word] for word in words if word in plain]
    return found[0][0] if found and len(found[0]) == 1 else None


def _plain(name: str, words: Sequence[str]) -> str:
    """Return a column's name in small letters alone, without id, name, at or a final s that is no word's."""
    word = re.sub(r"[^a-z0-9]", "", name.lower())
    for suffix in ("", "id", "name", "at", "time", "s"):
        if (short := word.removesuffix(suffix)) in words:
            return short
    return word


def votes_by_row(table: CsvTable, named: RoleColumns) -> WrittenVotes | None:
    """Return the votes of a table with a row for each vote; None if it has a row for each example.

    If no column is named, a table has a row for each vote if it has no column vote_…, all three columns are
    recognised, and examples occur in several rows or no other column looks like votes. If an annotator votes
    on an example twice, the newest vote counts by a column of time stamps, or the last one. Votes that a
    column of status marks as rejected, skipped or drafts are left out. With a column of confidences, votes
    are probabilities; the labels then may be those of one annotator whom no column names. DataError is raised
    if a column is missing or not recognised, or a row has no annotator.
    """
    columns = _row_columns(table, named)
    if columns is None:
        return None
    refuse_several(table, [columns["label"]])
    numbered = [str(row) for row in range(len(table))]
    example, ids = (
        table.columns[columns["task"]].coded()
        if "task" in columns
        else (np.arange(len(table), dtype=np.int32), numbered)
    )
    annotator, names = (
        _annotators(table, columns["worker"])
        if "worker" in columns
        else (np.zeros(len(table), dtype=np.int64), [columns["label"]])
    )
    counts, left = _that_count(table, set(columns.values()))
    times, by_time = _times(table, set(columns.values()))
    confidence = None if named.confidence is None else confidences(table, named.confidence)[0]

    def votes(classes: Sequence[str]) -> tuple[Votes, list[str]]:
        vote = column_votes(table, columns["label"], class_index(classes))
        rows = np.flatnonzero((vote != ABSTAIN) & counts)
        rows = rows if times is None else rows[np.argsort(times[rows], kind="stable")]
        pair = example[rows].astype(np.int64) * len(names) + annotator[rows]
        # The last vote of each pair: the first of the reversed rows.
        last = rows[len(rows) - 1 - np.unique(pair[::-1], return_index=True)[1]]
        notes = []
        if repeated := len(rows) - len(last):
            notes.append(f"{repeated} votes are repeated by the same annotator: the {by_time} counts")
        own = (example[last], annotator[last], vote[last])
        made = partial(Votes.of_rows, n=len(ids), k=len(classes), names=names)
        if confidence is None:
            return made(*own), notes
        return _with_confidence(made, own, confidence[last], notes)

    how = ", by the names of its columns" if len(columns) > len(named.given()) else ""
    shown = {role: f"'{name}'" for role, name in columns.items()}
    note = (
        f"votes are read one a row{how}: {shown.get('task', 'the row')} is the example, "
        f"{shown.get('worker', 'one annotator')} the annotator, {shown['label']} the class"
    )
    if named.confidence is not None:
        note += f", '{named.confidence}' its probability"
    elif unused := _recognised(table, CONFIDENCES, columns.values()):
        note += f"; if '{unused}' is its probability, give --confidence-column"
    written = voted(table, [columns["label"]])
    return WrittenVotes(ids, written, votes, (note, *left), by_vote=columns.get("task", ""))


def _row_columns(table: CsvTable, named: RoleColumns) -> dict[str, str] | None:
    """Return {role: column} of a table with a row for each vote; None if it has a row for each example."""
    roles, given = ("worker", "label", "task"), named.given()
    columns = named.found(table, roles)
    missing = [role for role in roles if role not in columns]
    if named.confidence is not None and "worker" in missing:
        missing = [role for role in missing if role == "label"]
    if not given and (any(name.startswith(PREFIX) for name in table.columns) or "worker" in missing):
        return None
    others = [] if given else _other_votes(table, columns)
    if others and (missing or len(table.columns[columns["task"]].coded()[1]) == len(table)):
        return None
    if missing:
        guess = ", ".join(f"'{name}' is the {role}" for role, name in columns.items()) or "none of them"
        raise DataError(
            f"{table.name}: no column is known as the {missing[0]} among {listed(table.columns)}; by their "
            f"names {guess}. Give --{missing[0]}-column ({OPTIONS} name a row for each vote, --vote-columns "
            "a column for each annotator)"
        )
    if len(set(columns.values())) < len(columns):
        raise DataError(f"task, worker and label must be three columns; got {listed(columns.values())}")
    return columns


def _other_votes(table: CsvTable, columns: Mapping[str, str]) -> list[str]:
    """Return the columns that look like votes of annotators beside those of a row for each vote."""
    kept = {name: own for name, own in table.columns.items() if name not in columns.values()}
    taken = other_columns(replace(table, columns=kept))[0] if kept else []
    known = _recognised(table, ROLES["status"], columns.values())
    return [name for name in taken if name != known and len(voted(table, [name])) > 1]


def _that_count(table: CsvTable, taken: Collection[str]) -> tuple[NDArray[np.bool_], list[str]]:
    """Return which rows a column of status accepts, (V,), and notes."""
    every = np.ones(len(table), dtype=bool)
    name = _recognised(table, ROLES["status"], taken)
    if name is None:
        return every, []
    codes, values = table.columns[name].coded()
    said = [value.strip().lower() for value in values]
    # A column such as was_cancelled says true for what does not count.
    is_flag = _plain(name, ROLES["status"]) not in ROLES["status"][:4]
    bad = {"true", "1", "yes", *BAD} if is_flag else BAD
    good = {"0", "no", *GOOD} if is_flag else GOOD
    if not set(said) <= good | bad:
        return every, []
    counts = np.array([text not in bad for text in said])[codes]
    left = int((~counts).sum())
    shown = listed(value for value, text in zip(values, said, strict=True) if text in bad)
    return counts, [f"{left} votes are left out by the column '{name}' ({shown})"] if left else []


def _times(table: CsvTable, taken: Collection[str]) -> tuple[NDArray[np.float64] | None, str]:
    """Return each row's time stamp in seconds, (V,), or None; and which of several votes counts."""
    name = _recognised(table, ROLES["time"], taken)
    if name is None:
        return None, "last one"
    codes, values = table.columns[name].coded()
    times = []
    for value in values:
        if (time := seconds_of(value)) is None:
            return None, "last one"
        times.append(time)
    return np.array(times, dtype=np.float64)[codes], f"newest by '{name}'"


Rows = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


def _with_confidence(
    made: Callable[..., Votes], own: Rows, confidence: NDArray[np.float64], notes: list[str]
) -> tuple[Votes, list[str]]:
    """Return soft votes: the vote's class has its confidence, and the others share what remains."""
    example, annotator, vote = own
    plain = made(*own)
    if len(plain) * plain.m * plain.k > MOST_CELLS:
        size = f"{plain.m:,} annotators on {len(plain):,} examples"
        return plain, [*notes, f"the confidences of {size} are not used: they are too many for a table"]
    soft = np.zeros((len(plain), plain.m, plain.k))
    soft[example, annotator] = ((1 - confidence) / (plain.k - 1))[:, None]
    soft[example, annotator, vote] = confidence
    low = confidence < 1 / plain.k
    if plain.k == 2:
        vote = np.where(low, 1 - vote, vote)
        said = "they count for the other class"
    else:  # against one class, and for no other
        example, annotator, vote = (column[~low] for column in own)
        soft[own[0][low], own[1][low]] = 0.0
        said = "they are left out"
    notes += [f"{int(low.sum())} votes have a confidence below that of guessing; {said}"] if low.any() else []
    return made(example, annotator, vote, soft=soft), notes


def _annotators(table: CsvTable, column: str) -> tuple[NDArray[np.int64], list[str]]:
    """Return the annotator of each row, as indices, (V,), and the annotators' names."""
    codes, values = table.columns[column].coded()
    names = [value.strip() for value in values]
    if "" in names:
        row = table.columns[column].row_of(names.index(""))
        raise DataError(f"{table.name}, row {row}: the column '{column}' does not name the annotator")
    index = {name: at for at, name in enumerate(dict.fromkeys(names))}
    return np.array([index[name] for name in names], dtype=np.int64)[codes], list(index)


def probabilities(
    table: CsvTable, nested: Nested, named: RoleColumns, known: Collection[str], ids: Sequence[str] | None
) -> WrittenVotes | None:
    """Return the probabilities that annotators give, in columns or in objects; None if there are none.

    `known` are names of classes, if they are known, and `ids` those of the examples; None: the column `id`.
    """
    roles = named.found(table, ("worker", "task"))
    is_by_vote = len(roles) == 2
    if nested:
        ids = [] if is_by_vote else _example_ids(table, ids)
        # A class that an object leaves out has probability 0; no object is an abstention.
        classes = dict.fromkeys(name for rows in nested.values() for row in rows for name in row)
        like = next(iter(table.columns.values())).like
        own = {
            key: {name: like([row.get(name, "0" if row else "") for row in rows]) for name in classes}
            for key, rows in nested.items()
        }
        key = named.label or next(iter(own))
        if is_by_vote and (key not in own or (len(own) > 1 and named.label is None)):
            raise DataError(
                f"{table.name} has a line for each vote, and objects of probabilities named {listed(own)}; "
                "name the one that counts by --label-column"
            )
        if is_by_vote:
            return _soft_by_row(table, roles, own[key])
    elif named.label is not None:  # its votes are wanted, not probabilities beside them
        return None
    else:
        plain = {name: table.columns[SOFT_PREFIX + name] for name in soft_classes(table)}
        if is_by_vote and len(plain) > 1 and len(table.columns[roles["task"]].coded()[1]) < len(table):
            return _soft_by_row(table, roles, plain)
        columns = soft_columns(table, known)
        if not columns:
            return None
        own = {name: {c: table.columns[n] for c, n in by.items()} for name, by in columns.items()}
    return _soft_by_column(table, _example_ids(table, ids), own)


def _example_ids(table: CsvTable, ids: Sequence[str] | None) -> Sequence[str]:
    if ids is None and "id" not in table:
        raise DataError(f"{table.name} needs a column 'id', the examples' ids")
    return table.cells("id") if ids is None else ids


SoftColumns = dict[str, dict[str, str]]
"""{annotator: {class: column}}."""


def soft_columns(table: CsvTable, known: Collection[str] = ()) -> SoftColumns:
    """Return the columns p_ANNOTATOR_CLASS, without columns p_CLASS, which are soft labels.

    If classes are known, a column's name ends in one of them. Otherwise the names are split at their last
    underscores, or all at their first ones, such that every annotator has the same two classes at least.
    DataError is raised if an annotator has columns for some classes only.
    """
    bodies = soft_classes(table)
    if not known:
        for split in ("rpartition", "partition"):
            found = _columns_by_annotator(bodies, operator.methodcaller(split, "_"))
            groups = [frozenset(own) for own in found.values()]
            if len(set(groups)) == 1 and len(groups[0]) >= 2:
                return found
        return {}

    def at_class(body: str) -> tuple[str, str, str]:
        name = max((name for name in known if body.endswith(f"_{name}")), key=len, default="")
        return ("", "", "") if body in known or not name else (body.removesuffix(f"_{name}"), "_", name)

    found = _columns_by_annotator(bodies, at_class)
    if any(body in known for body in bodies):  # soft labels, perhaps of a class that ends in another's name
        return {annotator: own for annotator, own in found.items() if own.keys() >= set(known)}
    every = {name for own in found.values() for name in own}
    for annotator, own in found.items():
        if missing := sorted(every - own.keys()) or (sorted(set(known) - every) if len(every) < 2 else []):
            raise DataError(
                f"{table.name} has no column '{SOFT_PREFIX}{annotator}_{missing[0]}', but "
                f"{listed(own.values())}; an annotator needs one for every class"
            )
    return found


def _columns_by_annotator(bodies: Sequence[str], split: Callable[[str], tuple[str, str, str]]) -> SoftColumns:
    found: SoftColumns = {}
    for body in bodies:
        annotator, _, name = split(body)
        if annotator and name:
            found.setdefault(annotator, {})[name] = SOFT_PREFIX + body
    return found


def _soft_by_column(
    table: CsvTable, ids: Sequence[str], cells: Mapping[str, Mapping[str, Column]]
) -> WrittenVotes:
    """Return probabilities with a row for each example, from {annotator: {class: its cells}}."""
    classes = list(dict.fromkeys(name for own in cells.values() for name in own))
    p, notes = [], list[str]()
    for annotator, own in cells.items():
        found, more = _probabilities(table, f" of {annotator}", {name: own[name] for name in classes})
        p.append(found)
        notes += more
    return _soft(table, ids, list(cells), classes, np.stack(p, axis=1), notes)


def _soft_by_row(table: CsvTable, roles: Mapping[str, str], cells: Mapping[str, Column]) -> WrittenVotes:
    """Return probabilities with a row for each vote; if an annotator votes twice, the last vote counts."""
    example, ids = table.columns[roles["task"]].coded()
    annotator, names = _annotators(table, roles["worker"])
    if len(ids) * len(names) * len(cells) > MOST_CELLS:
        raise DataError(
            f"{table.name} has probabilities of {len(names):,} annotators on {len(ids):,} examples, too many "
            "for a table; give their votes alone"
        )
    p, notes = _probabilities(table, "", cells)
    whole = np.zeros((len(ids), len(names), len(cells)))
    whole[example, annotator] = p
    if twice := len(example) - len(np.unique(example.astype(np.int64) * len(names) + annotator)):
        notes.append(f"{twice} votes are repeated by the same annotator: the last one counts")
    if silent := int((~p.any(axis=1)).sum()):
        notes.append(f"{silent} votes give no probabilities; they are left out")
    return replace(_soft(table, ids, names, list(cells), whole, notes), by_vote=roles["task"])


def _soft(
    table: CsvTable,
    ids: Sequence[str],
    names: list[str],
    classes: list[str],
    p: NDArray[np.float64],
    notes: Sequence[str],
) -> WrittenVotes:
    """Return probabilities, (N, m, K of these classes), 0 for an abstention, as written votes."""

    def votes(every: Sequence[str]) -> tuple[Votes, list[str]]:
        index = class_index(every)
        if strange := [name for name in classes if name not in index]:
            raise DataError(
                f"{table.name} has probabilities of '{cut(strange[0])}', which is no class; the classes are "
                f"{listed(every)}"
            )
        soft = np.zeros((*p.shape[:2], len(every)))
        soft[:, :, [index[name] for name in classes]] = p
        return Votes.of_probabilities(soft, names), []

    said = f"probabilities are read of the annotators {listed(names)}"
    return WrittenVotes(ids, set(classes), votes, (said, *notes))


def _probabilities(
    table: CsvTable, of: str, cells: Mapping[str, Column]
) -> tuple[NDArray[np.float64], list[str]]:
    """Return (N, K) probabilities that sum to 1, or to 0 if all cells are empty, and notes."""
    p = np.stack([probability_cells(table, own, f"{name}{of}") for name, own in cells.items()], axis=1)
    empty = np.isnan(p)
    some = np.flatnonzero(empty.any(axis=1) & ~empty.all(axis=1))
    if len(some):
        raise DataError(
            f"{table.name}, row {table.row(int(some[0]))}: some probabilities{of} are missing; give all of "
            "them, or none to abstain"
        )
    p[empty] = 0.0
    outside = np.argwhere((p < 0) | (p > 1 + ROW_SUM_TOLERANCE) | ~np.isfinite(p))
    if len(outside):
        n, c = outside[0].tolist()
        raise DataError(
            f"{table.name}, row {table.row(n)}: the probability {p[n, c]:g} of {list(cells)[c]}{of} is not "
            "in [0, 1]; divide percentages by 100, exponentiate logarithms"
        )
    total = p.sum(axis=1, keepdims=True)
    notes = []
    if odd := int(((total > 0) & (abs(total - 1) > ROW_SUM_TOLERANCE)).sum()):
        notes.append(f"probabilities{of} of {odd} examples did not sum to 1; they were divided by their sum")
    return np.divide(p, total, out=np.zeros_like(p), where=total > 0), notes
