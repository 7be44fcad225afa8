"""Decisions of a person on suspected label errors: keep, change or remove.

They come from the page that `hesstune clean` writes, as CSV, or from Label Studio.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hesstune.checks import parse_number, readable_file
from hesstune.errors import DataError, cut, listed, unknown_name
from hesstune.storage.columns import Column, CsvTable, as_cell, is_missing, json_cell
from hesstune.storage.files import read_text, reading
from hesstune.storage.tables import read_table
from hesstune.weak.annotation_exports import read_records

KEEP, CHANGE, REMOVE = "keep", "change", "remove"
DECISIONS = (KEEP, CHANGE, REMOVE)
# Columns of a file of decisions; `content` is a digest of the example's image or text.
DECISION, CONTENT = "decision", "content"
COLUMNS = ("id", "given_label", DECISION, "label", CONTENT)
# What tasks for Label Studio hold: the example's id, since Label Studio gives tasks ids of its own; the
# control of the class; and the choice that removes an example.
EXAMPLE_ID, CONTROL, REMOVE_CHOICE = "hesstune_id", "label", "(remove this example)"


class Decision(NamedTuple):
    """What a person decided on one label."""

    where: str  # the file and row, for messages
    given: str  # the label as it was given
    decision: str  # one of DECISIONS
    label: str  # the label after the decision; "" if the example is removed
    content: str  # digest of the example's image or text, 32 hexadecimal digits; "" if unknown


@dataclass(frozen=True)
class Decisions:
    """The decisions of a file."""

    name: str  # the file
    by_id: dict[str, Decision]  # {id of an example: decision}
    notes: tuple[str, ...] = ()  # how the file was read, and what was left out, in sentences

    @property
    def removed(self) -> frozenset[str]:
        """Ids of the examples to remove."""
        return frozenset(name for name, own in self.by_id.items() if own.decision == REMOVE)

    def among(self, examples: Mapping[str, tuple[str, str]]) -> dict[str, Decision]:
        """Return the decisions on examples of the data: {id: (label as given, digest; "" if unknown)}.

        DataError is raised if no example has a decision, or if one was changed since: its content differs, or
        its label is neither that of then nor the one decided on.
        """
        found = {name: own for name, own in self.by_id.items() if name in examples}
        if not found:
            raise DataError(
                f"{self.name} holds decisions on other data: none of its {len(self.by_id)} ids is an "
                f"example's, such as '{cut(next(iter(self.by_id)))}'"
            )
        for name, own in found.items():
            given, content = examples[name]
            what = ""
            if content and own.content and content != own.content:
                what = "its image or text differs"
            elif given and own.given and given not in (own.given, own.label):
                what = f"its label was '{cut(own.given)}' and is '{cut(given)}'"
            if what:
                raise DataError(
                    f"{own.where}: example '{cut(name)}' is not as it was when it was reviewed ({what}); "
                    "give the data that the page was made from, or review it again"
                )
        return found

    def missing_note(self, found: Mapping[str, Decision]) -> list[str]:
        """Say how many decisions are on examples that the data does not have."""
        missing = [name for name in self.by_id if name not in found]
        said = f"{len(missing)} decisions of {self.name} are on examples that the data does not have"
        return [f"{said}: {listed(missing, 3)}"] if missing else []


def read_checked_table(path: str | Path, what: str) -> CsvTable:
    """Read a table of labels that a person checked, `what` in messages.

    An export of the tasks that `to_label_studio` wrote, JSON, JSON-MIN or CSV, becomes a table of decisions.
    """
    path = readable_file(path, what, DataError)
    if path.suffix.lower() == ".json":
        with reading(path, "JSON", DataError):
            records = json.loads(read_text(path))
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise DataError(f"{path} is no export of Label Studio, which is a list of tasks")
        return _of_label_studio(records, path)
    table = read_table(path, what)
    return _of_label_studio(list(table.rows()), path) if EXAMPLE_ID in table else table


def holds_decisions(table: CsvTable) -> bool:
    """Return whether a table holds decisions; a column `decision` of other words alone is not read."""
    if DECISION not in table or COLUMNS[1] in table:
        return DECISION in table
    return {cell.strip().lower() for cell in table.columns[DECISION].coded()[1]} <= {*DECISIONS, ""}


def decisions_in(table: CsvTable, classes: Sequence[str]) -> Decisions:
    """Return the decisions of a table with COLUMNS; rows with an empty decision are left out.

    DataError is raised if there is none, or if one is unknown, of an unknown class, repeated or
    contradictory.
    """
    if lacking := [name for name in COLUMNS[:-1] if name not in table]:
        raise DataError(
            f"{table.name} needs the columns {listed(COLUMNS)} of decisions; it lacks {listed(lacking)}"
        )
    index = {name: name for name in classes}
    contents = table.cells(CONTENT) if CONTENT in table else [""] * len(table)
    cells = zip(*(table.cells(name) for name in COLUMNS[:-1]), contents, strict=True)
    found: dict[str, Decision] = {}
    first: dict[str, str | int] = {}
    empty = 0
    for at, (example, given, decision, label, content) in enumerate(cells):
        row = table.row(at)
        where = f"{table.name}, row {row}"
        if example in first:
            raise DataError(
                f"{where}: example '{cut(example)}' has a second decision (the first is in row "
                f"{first[example]}); keep one row for each example"
            )
        first[example] = row
        chosen = decision.strip().lower()
        if not chosen:
            empty += 1
            continue
        if chosen not in DECISIONS:
            raise unknown_name(f"decision in {where},", decision, DECISIONS, DataError)
        before = _class(given, index) or given
        after = "" if is_missing(label, index) else _class(label, index)
        if after is None:
            raise unknown_name(f"class in {where},", label, classes, DataError)
        if chosen == KEEP and not after:
            after = before
        own = Decision(where, before, chosen, after, content.strip())
        if wrong := _contradiction(own, index):
            raise DataError(f"{where}: {wrong}")
        found[example] = own
    if not found:
        raise DataError(f"{table.name} has no decision; fill in the column '{DECISION}': {listed(DECISIONS)}")
    notes = [f"{empty} rows of {table.name} have no decision"] if empty else []
    return Decisions(table.name, found, (*table.notes, *notes))


def _contradiction(own: Decision, classes: Mapping[str, str]) -> str:
    """Say how a row contradicts itself, or return ""."""
    given, label = cut(own.given), cut(own.label)
    if own.decision == KEEP and own.label != own.given:
        return f"the decision is '{KEEP}', but the label '{label}' is not the one given, '{given}'"
    if own.decision == KEEP and own.label not in classes:
        return f"the label to keep, '{label}', is none of the classes {listed(classes)}"
    if own.decision == CHANGE and not own.label:
        return f"the decision is '{CHANGE}', but there is no label; write the class"
    if own.decision == CHANGE and own.label == own.given:
        return f"the decision is '{CHANGE}', but the label '{label}' is the one given"
    if own.decision == REMOVE and own.label:
        return f"the decision is '{REMOVE}', but there is a label, '{label}'; leave it empty"
    return ""


def _class(cell: str, classes: Mapping[str, str]) -> str | None:
    """Return the class that a cell names, with spaces around or as a number with a point; None if unknown."""
    number = parse_number(cell)
    forms = (cell, cell.strip(), *(() if number is None else (as_cell(number),)))
    return next((form for form in forms if form in classes), None)


# Label Studio


def _of_label_studio(records: Sequence[Mapping[str, Any]], path: Path) -> CsvTable:
    """Return the finished tasks of an export as a table of decisions, on which annotators agree."""
    inputs = {json_cell(record.get("id", at)).strip(): _data(record) for at, record in enumerate(records)}
    if not records or any(EXAMPLE_ID not in data for data in inputs.values()):
        raise DataError(
            f"{path} is no export of tasks for Label Studio that hesstune clean --label-studio wrote: their "
            f"data has '{EXAMPLE_ID}'"
        )
    # The predictions are hesstune's own.
    answered = [{name: own for name, own in record.items() if name != "predictions"} for record in records]
    export = read_records(answered, str(path), CONTROL) if any(map(_is_answered, records)) else None
    if export is None:
        raise DataError(f"{path} has no answers; export the project again when tasks are finished")
    labels: dict[str, str] = {}
    for answer in export.answers:
        if answer.example not in inputs:
            raise DataError(f"{path}: a task has no 'id'; export the project again")
        if labels.setdefault(answer.example, answer.label) != answer.label:
            both = f"'{cut(labels[answer.example])}' and '{cut(answer.label)}'"
            name = cut(json_cell(inputs[answer.example][EXAMPLE_ID]))
            raise DataError(f"{path}: annotators differ on the example '{name}' ({both}); choose one answer")
    rows = list(_rows_of_tasks(labels, inputs))
    columns = {
        name: Column([row[at] for row in rows], names=[f"of task {task}" for task in labels])
        for at, name in enumerate(COLUMNS)
    }
    open_tasks = len(inputs) - len(labels)
    left = Counter(export.left_out)
    del left["examples have no answer"]
    notes = [f"{path} is read as an export of Label Studio: {len(labels)} finished tasks"]
    notes += [f"{open_tasks} tasks have no answer"] if open_tasks else []
    notes += [f"{count} {reason}; they are left out" for reason, count in left.items()]
    return CsvTable(str(path), path.parent, columns, tuple(notes))


def _data(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the data of a task; JSON-MIN and CSV write it beside the answers."""
    data = record.get("data")
    return data if isinstance(data, dict) else record


def _is_answered(record: Mapping[str, Any]) -> bool:
    """Return whether a task has an answer, in JSON, or in JSON-MIN and CSV."""
    answers = record.get("annotations")
    if isinstance(answers, list):
        return any(isinstance(answer, dict) and answer.get("result") for answer in answers)
    return not is_missing(record.get(CONTROL))


def _rows_of_tasks(
    labels: Mapping[str, str], inputs: Mapping[str, Mapping[str, Any]]
) -> Iterable[tuple[str, str, str, str, str]]:
    """Yield the cells of COLUMNS of every finished task."""
    for task, label in labels.items():
        data = inputs[task]
        given, content = (json_cell(data.get(name)) for name in ("given_label", CONTENT))
        decision = REMOVE if label == REMOVE_CHOICE else KEEP if label == given.strip() else CHANGE
        after = {REMOVE: "", KEEP: given}.get(decision, label)
        yield json_cell(data[EXAMPLE_ID]), given, decision, after, content
