"""Labels that a person has checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from hesstune.data.examples import MODEL_SOURCES, Examples, Task
from hesstune.data.label_sources import CHECKED, GIVEN, SOURCE, column_named
from hesstune.errors import DataError, listed, unknown_name
from hesstune.storage.tables import CsvTable, is_missing, read_table

# The report's list of doubtful labels has a column true_label for a person to fill in.
COLUMNS = ("clean_label", "true_label", "label")


def read_clean_labels(path: str | Path, classes: Sequence[str]) -> dict[str, int]:
    """Read {id: class index} from a CSV file with the columns id and clean_label, true_label or label.

    Rows whose label is empty have not been checked and are left out.

    Raises:
        DataError: If the file or a column is missing, a label is no class, no label is given, or the file
            says that no person has checked a label.
    """
    table = read_table(path, "the file of clean labels")
    column = next((name for name in COLUMNS if name in table), None)
    if "id" not in table or column is None:
        raise DataError(
            f"{path} needs a column 'id' and one of {listed(COLUMNS)}; got {listed(table.columns)}"
        )
    _refuse_unchecked(table, column)
    index = {name: i for i, name in enumerate(classes)}
    found: dict[str, int] = {}
    for at, (example, cell) in enumerate(zip(table.cells("id"), table.cells(column), strict=True)):
        name, number = cell.strip(), table.row(at)
        if is_missing(name, index):
            continue
        if name not in index:
            raise unknown_name(f"class in {path}, row {number},", name, classes, DataError)
        if found.get(example, index[name]) != index[name]:
            raise DataError(f"{path}, row {number}: example '{example}' has two different labels")
        found[example] = index[name]
    if not found:
        raise DataError(f"{path} has no label in its column '{column}'; fill in those you have checked")
    return found


def _refuse_unchecked(table: CsvTable, column: str) -> None:
    """Raise DataError if labels are those of a file that hesstune wrote, which no person has checked."""
    source = column_named(table.columns, SOURCE)
    if column != "label" or source is None:
        return
    for at, cell in enumerate(table.cells(source)):
        if (said := cell.strip().lower()) in (GIVEN, *MODEL_SOURCES):
            raise DataError(
                f"{table.name}, row {table.row(at)}: the label is no checked one, its column '{source}' says "
                f"'{said}'; write the labels that a person has checked into a column 'clean_label', or write "
                f"'{CHECKED}' there"
            )


def checked(task: Task, clean: Mapping[str, int], partial: bool = False) -> Task:
    """Return the task with clean labels in place of the noisy ones, and marked as clean.

    Args:
        task: The task, noisy labels and all.
        clean: {id: class index}.
        partial: Whether ids of examples that are not in the task (left out by a limit) are accepted.

    Raises:
        DataError: If an id is no example's.
    """
    known = {i for part in (task.train, task.val, task.test) for i in part.ids}
    strange = [i for i in clean if i not in known]
    if strange and (not partial or len(strange) == len(clean)):
        raise DataError(
            f"{len(strange)} of the {len(clean)} clean labels are of no example of the data, such as "
            f"'{strange[0]}'; ids are those in labels.csv, such as '{task.train.ids[0]}'"
        )
    train, val, test = (_checked(part, clean) for part in (task.train, task.val, task.test))
    return replace(task, train=train, val=val, test=test)


def _checked(part: Examples, clean: Mapping[str, int]) -> Examples:
    mask = np.array([i in clean for i in part.ids], dtype=bool)
    if part.labels is None or not mask.any():
        return part
    labels = part.labels.copy()
    labels[mask] = [clean[i] for i in part.ids if i in clean]
    soft = None if part.soft is None else part.soft.copy()
    if soft is not None:
        soft[mask] = np.eye(soft.shape[1])[labels[mask]]
    return replace(part, labels=labels, given=part.labels, clean=mask, soft=soft, given_soft=part.soft)
