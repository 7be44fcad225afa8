"""Checks that examples are those that a run was made from."""

from __future__ import annotations

from collections.abc import Mapping

from hesstune.data.examples import PARTS, Examples, Task
from hesstune.errors import ChangedDataError, RunError
from hesstune.runs.data_record import DataRecord
from hesstune.runs.read_records import Records
from hesstune.runs.records import DATA, LABELS

__all__ = ["check_data", "check_labels_file"]


def check_data(run: Records, now: DataRecord) -> None:
    """Check that examples are those that a run was made from: ids, contents and labels of every part.

    Args:
        run: The records of the run's folder.
        now: The record of the examples as they are now.

    Raises:
        ChangedDataError: If an example differs, naming the first ones.
        RunError: If the run's folder does not say what it was made from.
    """
    then, found = run.facts.checksums, now.checksums()
    if missing := [name for name in found if name not in then]:
        raise RunError(
            f"run.json in {run.path} has no checksum of its {missing[0]} examples, so whether its data has "
            "changed cannot be checked; train again with --overwrite"
        )
    if all(then[name] == value for name, value in found.items()):
        return
    raise ChangedDataError(
        f"the data {run.config.data} is no longer what the run in {run.path} was made from: "
        f"{_difference(run, now, found)}; restore the data, or train again with --overwrite"
    )


def _difference(run: Records, now: DataRecord, found: Mapping[str, str]) -> str:
    """Say what differs, by example where the record of the run's examples is whole."""
    then = run.facts.checksums
    try:
        before = DataRecord.load(run.path / DATA)
        if before.checksums() == {name: then[name] for name in found}:
            return before.difference(now)
        why = "is of another run"
    except RunError:
        why = "is missing or damaged"
    parts = ", ".join(name for name in (*PARTS, "classes") if then[name] != found[name])
    return f"{parts} differ ({DATA}, which would tell the examples, {why})"


def check_labels_file(run: Records, task: Task) -> None:
    """Check that labels.csv, which reports are made from, has the labels that the run was trained on.

    Raises:
        ChangedDataError: If it was changed.
    """
    rows = [(row["id"], row["part"], row["label"]) for row in run.labels]
    now = [
        (example, name, label)
        for name in PARTS
        for example, label in zip(*_named_labels(getattr(task, name), task.classes), strict=True)
    ]
    if rows != now:
        raise ChangedDataError(
            f"{run.path / LABELS} is not as training wrote it; restore it, or train again with --overwrite"
        )


def _named_labels(part: Examples, classes: list[str]) -> tuple[list[str], list[str]]:
    labels = [""] * len(part) if part.labels is None else [classes[at] for at in part.labels]
    return part.ids, labels
