"""Class labels: their spelling and indices, their sources, and labels that a person has checked."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hesstune.checks import parse_number
from hesstune.data.decisions import Decisions, decisions_in, holds_decisions, read_checked_table
from hesstune.data.examples import (
    KEPT,
    MODEL_LABEL,
    MODEL_SOURCES,
    PREDICTED,
    REWRITTEN,
    Examples,
    Task,
)
from hesstune.errors import DataError, cut, listed, unknown_name
from hesstune.storage.columns import Column, CsvTable, as_cell, is_missing
from hesstune.weak.vote_files import LABEL_SOURCE, ROW_SUM_TOLERANCE, SOFT_PREFIX
from hesstune.weak.votes import ABSTAIN


def is_missing_label(value: object, names: Collection[str] = ()) -> bool:
    """Return whether a label is missing: None, NaN, NA, another missing value, or −1; `names` are not."""
    text = as_cell(value).strip()
    return text not in names and (is_missing(text) or parse_number(text) == ABSTAIN)


def missing_labels(values: Iterable[object], names: Collection[str] = ()) -> list[bool]:
    """Return whether each of the labels of a data set is missing; −1 is a class if all others are 1.

    `names` are classes.
    """
    cells = [as_cell(value).strip() for value in values]
    missing = {cell for cell in cells if is_missing_label(cell, names)}
    if {parse_number(cell) for cell in cells if cell not in missing} == {1.0}:
        missing = {cell for cell in missing if is_missing(cell)}
    return [cell in missing for cell in cells]


@dataclass(frozen=True)
class ClassLabels:
    """Class labels of examples."""

    labels: NDArray[np.int64]  # (N,) int64 indices, −1 if missing
    classes: list[str]  # class names, sorted or in a given order
    notes: list[str]  # what was changed or left out, in sentences
    # (N, K) equal shares of the classes that a cell names, uniform where it names none; None if no cell was
    # shared.
    soft: NDArray[np.float64] | None = None


def class_labels(
    column: Column,
    what: str,
    names: Sequence[str] | None = None,
    several: str = "refuse",
    declared: Collection[str] = (),
) -> ClassLabels:
    """Turn labels as written into class indices; missing labels become −1.

    Spaces around a label are dropped. Numbers other than 0, 1, 2, … are mapped in their order. With `names`,
    labels are names or indices into them, and names without an example are dropped. Classes that are
    `declared` mean no missing label. `several` is one of SEVERAL. DataError is raised if a cell is no class,
    or there is only one class.
    """
    codes, written = column.coded()
    cells, notes = _read_cells(column, what, names or declared, several)
    rows: dict[str, int] = {}
    for code, own in enumerate(cells):
        for name in own:
            rows.setdefault(name, code)
    keys, order, more = _keys(column, what, names, rows)
    notes += more
    if len(order) < 2:
        shown = f"'{order[0]}'" if order else "no label at all"
        raise DataError(f"{what} has one class only ({shown}); at least two are needed")
    index = {key: at for at, key in enumerate(order)}
    shares = np.zeros((len(cells), len(order)))
    for code, own in enumerate(cells):
        for name in own:
            shares[code, index[keys[name]]] += 1
    # Of equal shares, the class that is named first.
    first = np.array([index[keys[own[0]]] if own else 0 for own in cells], dtype=np.int64)
    most = shares[np.arange(len(cells)), first] == shares.max(axis=1)
    places = np.where(most, first, shares.argmax(axis=1))
    places[[not own for own in cells]] = ABSTAIN
    spaced = [v for v, own in zip(written, cells, strict=True) if names is None and own == [v.strip()] != [v]]
    if spaced:
        notes.append(f"labels are taken without the spaces around them: {listed(map(repr, spaced), 4)}")
    soft = None
    if (shares > 0).sum(axis=1).max(initial=0) > 1:
        shares[[not own for own in cells]] = 1
        soft = (shares / shares.sum(axis=1, keepdims=True))[codes]
    return ClassLabels(places[codes], [str(key) for key in order], notes, soft)


def _keys(
    column: Column, what: str, names: Sequence[str] | None, rows: Mapping[str, int]
) -> tuple[dict[str, int | str], list[int | str], list[str]]:
    """Return {label: class}, the classes in order, and notes; `rows` is {label: code of its first cell}."""
    order: list[int | str]
    if names is not None:
        keys: dict[str, int | str] = {
            name: _name_of(name, names, f"{what}, row {column.row_of(code)}") for name, code in rows.items()
        }
        order = [name for name in names if name in set(keys.values())]
        absent = [name for name in names if name not in order]
        return keys, order, [f"classes without an example left out: {listed(absent)}"] if absent else []
    numbers = {name: number for name in rows if (number := parse_number(name)) is not None}
    if len(numbers) < len(rows):
        return {name: name for name in rows}, sorted(rows), []
    keys, notes = _integer_labels(column, what, numbers, rows)
    return keys, sorted(set(keys.values())), notes


def labels_as_written(
    column: Column,
    what: str,
    names: Sequence[str] | None = None,
    several: str = "refuse",
    declared: Collection[str] = (),
) -> list[str]:
    """Return each label as text or by its name, "" if it is missing; see `class_labels`.

    Of several classes in a cell it is the one that is named most often, and first.
    """
    codes, _ = column.coded()
    cells, _ = _read_cells(column, what, names or declared, several)
    if names is not None:
        cells = [
            [_name_of(name, names, f"{what}, row {column.row_of(code)}") for name in own]
            for code, own in enumerate(cells)
        ]
    values = [Counter(own).most_common(1)[0][0] if own else "" for own in cells]
    return [values[code] for code in codes.tolist()]


def _read_cells(
    column: Column, what: str, declared: Collection[str], several: str
) -> tuple[list[list[str]], list[str]]:
    """Return the labels that each distinct cell names, and notes on missing ones and on several in a cell."""
    codes, written = column.coded()
    if len(set(declared)) < len(declared):
        twice = next(name for name, count in Counter(declared).items() if count > 1)
        raise DataError(f"{what}: two classes are named '{cut(twice)}'; give each a name of its own")
    counts = np.bincount(codes, minlength=len(written))
    if (code := next((c for c, v in enumerate(written) if _is_nested(v.strip())), None)) is not None:
        raise DataError(
            f"{what}, row {column.row_of(code)}: label '{cut(written[code])}' is an object or a list of "
            "lists, not a class; write the class alone into the column of labels"
        )
    split = [[value.strip()] for value in written] if several == "name" else split_labels(written, declared)
    flags = iter(missing_labels([name for own in split for name in own], declared))
    cells = [[name for name in own if not next(flags)] for own in split]
    joined = [code for code, own in enumerate(cells) if len(set(own)) > 1]
    notes = []
    if joined and several == "refuse":
        code = joined[0]
        raise DataError(
            f"{what}, row {column.row_of(code)}: label '{cut(written[code])}' holds {len(set(cells[code]))} "
            f"classes ({listed(cells[code], 4)}); multi-label targets are not "
            "supported: give one class per example, or say what such cells mean by --several-labels "
            "leave_out, first, share or name"
        )
    if joined:
        said = {
            "leave_out": "are left out",
            "first": "count for the first",
            "share": "are shared equally among these, as soft labels",
        }[several]
        notes.append(
            f"{counts[joined].sum()} labels of several classes, such as "
            f"'{cut(written[joined[0]], 40)}', {said}"
        )
        for code in joined:
            cells[code] = {"leave_out": [], "first": cells[code][:1]}.get(several, cells[code])
    words = {
        written[code].strip(): int(counts[code])
        for code, own in enumerate(cells)
        if not own and code not in joined and written[code].strip()
    }
    if words:
        shown = listed((f"'{cut(word, 40)}' ({count} times)" for word, count in words.items()), 6)
        notes.append(f"{shown} means no label; if it is a class, give it another name")
    return cells, notes


# What to do with a cell that names several classes.
SEVERAL = ("refuse", "leave_out", "first", "share", "name")
# What always separates classes in a cell, and what does so if the classes occur on their own, too.
SEPARATORS, POSSIBLE = ("|", ";"), (",", "#", "/", "+", "&", "\n", "\t")


def split_labels(written: Sequence[str], names: Collection[str] = ()) -> list[list[str]]:
    """Return the labels that each cell names: those of a list, or of classes joined by a separator.

    A list is written as JSON, or as Python or numpy print it. A bar or semicolon separates classes. A comma
    or another sign of POSSIBLE does so if one of the parts is a label of another cell, or if each part is in
    several cells; else it belongs to the name. `names` are never split.
    """
    found = [[value.strip()] if value.strip() in names else _as_list(value.strip()) for value in written]
    for sign in (*SEPARATORS, *POSSIBLE):
        open_cells = [
            at for at, own in enumerate(found) if len(own) == 1 and sign in own[0] and own[0] not in names
        ]
        if not open_cells:
            continue
        parts = {at: [part.strip() for part in found[at][0].split(sign)] for at in open_cells}
        alone = {name for at, own in enumerate(found) if at not in parts for name in own if name}
        often = Counter(part for own in parts.values() for part in set(own))
        for at, own in parts.items():
            known = any(part in alone for part in own) or all(
                part in alone or often[part] > 1 for part in own if part
            )
            if sign in SEPARATORS or (known and all(own)):
                found[at] = [part for part in own if part]
    return found


def _is_nested(text: str) -> bool:
    return (text.startswith("{") and text.endswith("}") and ":" in text) or text.startswith(("[[", "[{"))


def _as_list(text: str) -> list[str]:
    """Return the items of a list as texts, or the text alone."""
    if not (text.startswith("[") and text.endswith("]")):
        return [text]
    inner = re.sub(r"(['\"])\s+(['\"])", r"\1, \2", text)  # as numpy prints texts
    for read in (json.loads, ast.literal_eval):
        try:
            items = read(inner)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return [as_cell(item).strip() for item in items]
    items = [item.strip(" '\"") for item in re.split(r"[,\s]+", text[1:-1].strip())]
    return [item for item in items if item] if len(items) > 1 else [text]


def _name_of(value: str, names: Sequence[str], where: str) -> str:
    """Return the class name of a label, a name or an index into the names."""
    number = parse_number(value)
    at = int(number) if number is not None and number.is_integer() else None
    if at is not None and 0 <= at < len(names):
        return names[at]
    if value in names:
        return value
    raise DataError(f"{where}: label {cut(value)} has no name; the {len(names)} names are {listed(names)}")


def _integer_labels(
    column: Column, what: str, numbers: Mapping[str, float], rows: Mapping[str, int]
) -> tuple[dict[str, int | str], list[str]]:
    """Return {label: class} of labels that are all numbers, and notes."""
    signs = set(numbers.values()) == {-1.0, 1.0}
    for name, number in numbers.items():
        if not number.is_integer() or (number < 0 and not signs):
            raise DataError(
                f"{what}, row {column.row_of(rows[name])}: label '{cut(name)}' is not a class index (0, "
                "1, 2, …); regression targets are not supported. Give names to classes that are no counts, "
                "and nothing if there is no label"
            )
    keys: dict[str, int | str] = {name: int(number) for name, number in numbers.items()}
    order = sorted({int(number) for number in numbers.values()})
    notes = []
    if order != list(range(len(order))):
        notes.append(
            f"labels are the numbers {listed(order)}, not 0 to {len(order) - 1}: mapped in their order, and "
            "kept as the classes' names"
        )
    for key in order:
        forms = [name for name, own in keys.items() if own == key]
        if len(forms) > 1:
            notes.append(f"labels written in several ways are one class: {listed(map(repr, forms), 4)}")
            break
    return keys, notes


def alike(classes: Sequence[str], one: str | None = None) -> list[str]:
    """Return a note on classes whose names differ only by case, spaces or the form of letters, or none.

    With `one` the note is on the classes whose names are like that of this class.
    """
    groups = defaultdict(list)
    for name in classes:
        groups[" ".join(unicodedata.normalize("NFKC", name).casefold().split())].append(name)
    pairs = [names for names in groups.values() if len(names) > 1 and (one is None or one in names)]
    same = [" and ".join(repr(cut(n, 40)) for n in names) for names in pairs]
    said = "names that differ by upper and lower case or spaces only are different classes; correct slips"
    return [f"{said}: {'; '.join(same[:4])}"] if same else []


def labels_among(given: Sequence[str], classes: Sequence[str]) -> tuple[NDArray[np.int64] | None, list[str]]:
    """Return labels as written as indices into a run's classes, (N,), to compare predictions with, and notes.

    An index is −1 if the label is missing or not a class; None is returned if all are.
    """
    index = {name: i for i, name in enumerate(classes)}
    codes, written = Column(given).coded()
    found = np.full(len(written), ABSTAIN)
    empty, unknown = list[int](), list[int]()
    for code, value in enumerate(name.strip() for name in written):
        number = parse_number(value)
        whole = str(int(number)) if number is not None and number.is_integer() else value
        if value in index or whole in index:
            found[code] = index.get(value, index.get(whole, ABSTAIN))
        else:
            (empty if is_missing_label(value, index) else unknown).append(code)
    notes = []
    if count := int(np.isin(codes, empty).sum()):
        notes.append(f"{count} of {len(codes)} examples have no label: predicted, and compared with nothing")
    if count := int(np.isin(codes, unknown).sum()):
        shown = listed((written[code] for code in unknown), 4)
        notes.append(
            f"{count} of {len(codes)} examples have labels that are none of the run's classes ({shown}): "
            "predicted, and compared with nothing"
        )
    if (found == ABSTAIN).all():
        return None, notes if unknown else []
    return found[codes], notes


# -- sources of labels

# Columns that `hesstune clean`, `label` and `predict` write: the label before `clean` replaced it, and the
# source of each label.
GIVEN_LABEL, SOURCE = "given_label", LABEL_SOURCE
# Sources of labels that no model made or chose: the data, and a person who checked the label.
GIVEN, CHECKED = "given", "checked"
_MADE = {
    REWRITTEN: "are not as given: hesstune clean rewrote them",
    MODEL_LABEL: "are not as given: a label model made them from votes (hesstune label)",
    PREDICTED: "are not as given: they are predictions of a model (hesstune predict)",
}


def column_named(columns: Iterable[str], name: str) -> str | None:
    """Return the column with a name, in any case and with spaces around it; None if there is none."""
    return next((column for column in columns if column.strip().casefold() == name), None)


def label_sources(table: CsvTable, column: str = "label") -> list[str] | None:
    """Return the source of each label of a column, in lower case; None if the table has no column of sources.

    A label that differs from the given label is REWRITTEN, whatever its source says; those in GIVEN_LABEL are
    not.
    """
    said, given = (column_named(table.columns, name) for name in (SOURCE, GIVEN_LABEL))
    is_given = column == GIVEN_LABEL
    if said is None and (given is None or is_given):
        return None
    labels = table.cells(column)
    before = labels if given is None or is_given else table.cells(given)
    written = [""] * len(table) if said is None else [source.strip().lower() for source in table.cells(said)]
    if is_given:
        return ["" if source == REWRITTEN else source for source in written]
    return [
        REWRITTEN if own.strip() != old.strip() and not is_missing(old) else source
        for own, old, source in zip(labels, before, written, strict=True)
    ]


def source_notes(part: Examples, name: str) -> list[str]:
    """Say how many labels of a part a model made, and whether `hesstune clean` left out other examples."""
    notes = [
        f"{count} of {len(part)} {name} labels {made}"
        for source, made in _MADE.items()
        if (count := part.count_source(source))
    ]
    if part.count_source(KEPT):
        notes.append(
            f"hesstune clean left suspected label errors out of the {name} examples, so accuracy on them is "
            "higher than on all"
        )
    return notes


# -- labels that a person has checked

# The report's list of suspected label errors has a column true_label for a person to fill in.
CHECKED_COLUMNS = ("clean_label", "true_label", "label")


@dataclass(frozen=True)
class CheckedLabels:
    """Labels that a person checked."""

    labels: dict[str, int]  # {id of an example: class index}
    # The decisions on suspected label errors that the labels come from, or None. Examples with these
    # decisions are no random sample.
    decisions: Decisions | None = None

    @property
    def removed(self) -> frozenset[str]:
        """Ids of the examples that a person removed."""
        return frozenset() if self.decisions is None else self.decisions.removed

    def among(
        self, examples: Mapping[str, tuple[str, str]], count_missing: bool = True
    ) -> tuple[dict[str, int], frozenset[str], list[str]]:
        """Return {id: class index} of checked labels among examples, the ids of those removed, and notes.

        `examples` are {id: (label as given, digest of the image or text)}; "" if it is not to be compared.
        DataError is raised if a checked label is of no example, or decisions are of other data.
        """
        if self.decisions is None:
            if strange := [name for name in self.labels if name not in examples]:
                raise DataError(
                    f"{len(strange)} checked labels are of no example here, such as '{strange[0]}'"
                )
            return self.labels, frozenset(), []
        found = self.decisions.among(examples)
        removed = self.removed.intersection(found)
        notes = [*self.decisions.notes, *(self.decisions.missing_note(found) if count_missing else ())]
        if removed:
            notes.append(f"{len(removed)} examples are left out: a person removed them when checking labels")
        return {name: self.labels[name] for name in found if name not in removed}, removed, notes


def read_checked_labels(path: str | Path, classes: Sequence[str]) -> CheckedLabels:
    """Read labels that a person checked: a file for `read_clean_labels`, or decisions of a review."""
    table = read_checked_table(path, "the file of checked labels")
    if not holds_decisions(table):
        return CheckedLabels(_labels_in(table, classes))
    decisions = decisions_in(table, classes)
    index = {name: i for i, name in enumerate(classes)}
    kept = {name: own.label for name, own in decisions.by_id.items() if own.label}
    return CheckedLabels({name: index[label] for name, label in kept.items()}, decisions)


def read_clean_labels(path: str | Path, classes: Sequence[str]) -> dict[str, int]:
    """Read {id: class index} from a table with the columns id and clean_label, true_label or label.

    Rows with an empty label have not been checked and are left out. DataError is raised for labels that no
    person checked, and for decisions on suspected label errors.
    """
    table = read_checked_table(path, "the file of clean labels")
    if holds_decisions(table):
        raise DataError(
            f"{path} holds decisions on suspected label errors, which are no random sample of the examples; "
            "give labels of examples that were drawn at random"
        )
    return _labels_in(table, classes)


def _labels_in(table: CsvTable, classes: Sequence[str]) -> dict[str, int]:
    """Return {id: class index} of a table of checked labels."""
    column = next((name for name in CHECKED_COLUMNS if name in table), None)
    if "id" not in table or column is None:
        got = listed(table.columns)
        raise DataError(f"{table.name} needs a column 'id' and one of {listed(CHECKED_COLUMNS)}; got {got}")
    _refuse_unchecked(table, column)
    index = {name: i for i, name in enumerate(classes)}
    found: dict[str, int] = {}
    for at, (example, cell) in enumerate(zip(table.cells("id"), table.cells(column), strict=True)):
        name, row = cell.strip(), table.row(at)
        if is_missing(name, index):
            continue
        if name not in index:
            raise unknown_name(f"class in {table.name}, row {row},", name, classes, DataError)
        if found.setdefault(example, index[name]) != index[name]:
            raise DataError(f"{table.name}, row {row}: example '{example}' has two different labels")
    if not found:
        raise DataError(f"{table.name} has no label in its column '{column}'; fill in those you have checked")
    return found


def _refuse_unchecked(table: CsvTable, column: str) -> None:
    """Raise DataError for the labels of a file that hesstune wrote and no person has checked."""
    source = column_named(table.columns, SOURCE)
    if column != "label" or source is None:
        return
    for at, cell in enumerate(table.cells(source)):
        if (said := cell.strip().lower()) in (GIVEN, *MODEL_SOURCES):
            raise DataError(
                f"{table.name}, row {table.row(at)}: the label was not checked, its column '{source}' says "
                f"'{said}'; write the labels that a person has checked into a column 'clean_label', or write "
                f"'{CHECKED}' there"
            )


def checked(task: Task, clean: CheckedLabels, partial: bool = False) -> Task:
    """Return the task with checked labels in place of noisy ones, marked as clean, without removed examples.

    DataError is raised if a checked id is no example's; `partial` accepts ids of examples left out by a
    limit. Of decisions, such ids are counted in the task's notes; at least one has to be an example's.
    """
    examples = {
        name: (given, content)
        for part in (task.train, task.val, task.test)
        for name, given, content in _as_given(part, task.classes)
    }
    strange, notes = [name for name in clean.labels if name not in examples], list[str]()
    if clean.decisions is not None:
        # Labels may be noise of an experiment: they are compared if contents are unknown.
        known = {name for name, own in clean.decisions.by_id.items() if own.content}
        examples |= {n: ("", content) for n, (_, content) in examples.items() if content and n in known}
        notes = clean.among(examples, not partial)[2]
    elif strange and (not partial or len(strange) == len(clean.labels)):
        raise DataError(
            f"{len(strange)} of the {len(clean.labels)} clean labels are of no example of the data, such as "
            f"'{strange[0]}'; ids are those in labels.csv, such as '{task.train.ids[0]}'"
        )
    train, val, test = (_checked(part, clean) for part in (task.train, task.val, task.test))
    return replace(task, train=train, val=val, test=test, notes=[*task.notes, *notes])


def _as_given(part: Examples, classes: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield the id, the label as given and the digest of the content of a part's examples; "" if unknown."""
    labels, read = part.labels if part.true is None else part.true, getattr(part.source, "digests", None)
    given = [""] * len(part) if labels is None else [classes[label] for label in labels.tolist()]
    digests = [""] * len(part) if read is None else [row.tobytes().hex() for row in read(part.rows, False)]
    yield from zip(part.ids, given, digests, strict=True)


def _checked(part: Examples, clean: CheckedLabels) -> Examples:
    if clean.removed:
        part = part.take([at for at, name in enumerate(part.ids) if name not in clean.removed])
    mask = np.array([i in clean.labels for i in part.ids], dtype=bool)
    if part.labels is None or not mask.any():
        return part
    labels = part.labels.copy()
    labels[mask] = [clean.labels[i] for i in part.ids if i in clean.labels]
    soft = None if part.soft is None else part.soft.copy()
    if soft is not None:
        soft[mask] = np.eye(soft.shape[1])[labels[mask]]
    by_chance = clean.decisions is None
    return replace(
        part, labels=labels, given=part.labels, clean=mask, soft=soft, given_soft=part.soft,
        clean_by_chance=by_chance,
    )  # fmt: skip


# -- labels given in Python


def label_columns(labels: Any) -> tuple[dict[str, list[str]], list[str]]:
    """Return labels given in Python as columns of cells, and notes: `label`, and p_CLASS of soft labels.

    They are (N,) or (N, 1) names or numbers; or (N, K) one-hot or soft labels, which sum to 1. Rows of zeros
    or with NaN are missing labels. A DataFrame's columns name the classes. Other labels, such as the targets
    of several classes at once, raise DataError.

    Example:
        >>> label_columns([[0.9, 0.1], [0.3, 0.7]])[0]
        {'label': ['0', '1'], 'p_0': ['0.9', '0.3'], 'p_1': ['0.1', '0.7']}
    """
    names = [str(name) for name in labels.columns] if hasattr(labels, "columns") else None
    if hasattr(labels, "toarray"):
        labels = labels.toarray()
    if hasattr(labels, "detach"):
        labels = labels.detach().cpu()
    if not hasattr(labels, "ndim"):
        labels = list(labels)
    depth = getattr(labels, "ndim", 1 + any(np.ndim(row) for row in labels[:1]))
    if depth == 1:
        return {"label": [as_cell(value) for value in getattr(labels, "tolist", lambda: labels)()]}, []
    try:
        table = np.asarray(labels)
        if table.ndim == 2 and table.shape[1] == 1:
            return {"label": [as_cell(value) for value in table[:, 0].tolist()]}, []
        soft = table.astype(np.float64)
    except (TypeError, ValueError):
        soft = np.zeros(0)
    if soft.ndim != 2:
        raise DataError(
            "y must be (N,), one label per example, or (N, K), numbers that are one-hot or soft labels (no "
            "multi-label targets)"
        )
    return _soft_columns(soft, names)


def _soft_columns(
    soft: NDArray[np.float64], names: list[str] | None
) -> tuple[dict[str, list[str]], list[str]]:
    """Return the columns of one-hot or soft labels, (N, K), and notes; see `label_columns`."""
    names = [str(k) for k in range(soft.shape[1])] if names is None else names
    missing = ~np.isfinite(soft).all(axis=1) | (soft == 0).all(axis=1)
    sums = soft.sum(axis=1)
    wrong = np.flatnonzero(~missing & ((soft < 0).any(axis=1) | (abs(sums - 1) > ROW_SUM_TOLERANCE)))
    if len(wrong):
        row = wrong[0]
        raise DataError(
            f"y is {soft.shape}: each row must be one-hot, or probabilities that sum to 1 (no multi-label "
            f"targets); row {row} is {cut(soft[row].tolist(), 60)}"
        )
    most = np.where(missing, 0, soft.argmax(axis=1))
    cells = {"label": ["" if gone else names[k] for gone, k in zip(missing, most, strict=True)]}
    if np.isin(soft[~missing], (0, 1)).all():
        return cells, []
    notes = ["y holds soft labels: the label of an example is its most probable class"]
    kept = np.isin(np.arange(len(names)), most[~missing])
    if not kept.all():
        absent = [name for name, is_kept in zip(names, kept, strict=True) if not is_kept]
        notes.append(
            f"classes that are most probable in no example left out, their probability shared by the others: "
            f"{listed(absent)}"
        )
    soft = np.where(missing[:, None], 1.0, soft)[:, kept]
    soft /= soft.sum(axis=1, keepdims=True)
    shown = [name for name, is_kept in zip(names, kept, strict=True) if is_kept]
    own = zip(shown, soft.T.tolist(), strict=True)
    return {**cells, **{f"{SOFT_PREFIX}{name}": [repr(p) for p in column] for name, column in own}}, notes
