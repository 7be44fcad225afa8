"""Readers of crowds' exports and of benchmarks: Mechanical Turk, Toloka, Open Images, WRENCH, peerannot.

See `tool_exports`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hesstune.checks import parse_number
from hesstune.errors import DataError, cut
from hesstune.weak.export_answers import (
    NOBODY,
    Answer,
    Export,
    Record,
    cell,
    is_class_like,
    one_question,
    parsed,
    probability,
)


def mechanical_turk(records: Sequence[Record], asked: str | None) -> Export:
    """Read a batch's results: `Answer.…`, also radio buttons in one column for each class, and JSON."""
    export = Export("Amazon Mechanical Turk")
    records = [{**record, **_task_answers(record)} for record in records]
    columns = dict.fromkeys(key for record in records for key in record)
    answers = [key.removeprefix("Answer.") for key in columns if key.startswith("Answer.")]
    # A radio button is one column for each class, true or false.
    groups: dict[str, list[str]] = {}
    for name in answers:
        cells = {cell(record.get(f"Answer.{name}")).lower() for record in records}
        if "." in name and cells <= {"true", "false", ""}:
            groups.setdefault(name.rpartition(".")[0], []).append(name)
    single = [name for name in answers if not any(name in own for own in groups.values())]
    questions = dict.fromkeys([*single, *groups])
    if asked is None and len(questions) > 1:
        few = _class_like(records, "Answer.", single)
        questions = dict.fromkeys([*few, *groups]) or questions
    question = one_question(questions, asked.removeprefix("Answer.") if asked else None, "answer")
    for record in records:
        given = {key.removeprefix("Input."): record[key] for key in record if key.startswith("Input.")}
        example = cell(given.get("id") or record["HITId"])
        export.add_example(example, given)
        if cell(record["AssignmentStatus"]).lower() == "rejected" or cell(record.get("Reject")):
            export.left_out["answers were rejected"] += 1
            continue
        label: Any = record.get(f"Answer.{question}")
        if question in groups:
            own = {name: cell(record.get(f"Answer.{name}")).lower() for name in groups[question]}
            label = [name.rpartition(".")[2] for name in own if own[name] == "true"]
        export.add(example, record["WorkerId"], label, time=cell(record.get("SubmitTime")))
    return export


def _task_answers(record: Record) -> dict[str, str]:
    """Return the answers that Mechanical Turk's own form elements write as JSON, as columns."""
    answers = parsed(record.get("Answer.taskAnswers"))
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        return {}
    found = {"Answer.taskAnswers": ""}

    def add(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                add(name if key in ("label", "labels") else f"{name}.{key}", inner)
        else:
            found[f"Answer.{name}"] = cell(value)

    for answer in answers:
        for name, value in answer.items():
            add(str(name), value)
    return found


def _class_like(records: Sequence[Record], prefix: str, names: Iterable[str]) -> list[str]:
    """Return the questions whose answers can be classes."""
    values = {name: {cell(record.get(prefix + name)) for record in records} - {""} for name in names}
    return [name for name, own in values.items() if is_class_like(own, len(records))]


def toloka(records: Sequence[Record], asked: str | None) -> Export:
    """Read assignments: `OUTPUT:…`, and `GOLDEN:…` as checked labels."""
    export = Export("Toloka")
    columns = list(records[0])
    outputs = [key.removeprefix("OUTPUT:") for key in columns if key.startswith("OUTPUT:")]
    if asked is None and len(outputs) > 1:
        outputs = _class_like(records, "OUTPUT:", outputs) or outputs
    question = one_question(
        dict.fromkeys(outputs), asked.removeprefix("OUTPUT:") if asked else None, "output"
    )
    inputs = [key for key in columns if key.startswith("INPUT:")]
    ids: dict[tuple[str, ...], str] = {}
    for at, record in enumerate(records):
        given = {key.removeprefix("INPUT:"): record[key] for key in inputs}
        own = cell(given.get("id") or record.get("ASSIGNMENT:task_id") or at)
        example = ids.setdefault(tuple(map(cell, given.values())), own) if given else own
        export.add_example(example, given)
        golden = cell(record.get(f"GOLDEN:{question}"))
        if golden:
            export.checked[example] = golden
        status = cell(record.get("ASSIGNMENT:status")).upper()
        if status in ("REJECTED", "SKIPPED", "EXPIRED", "ACTIVE"):
            export.left_out[f"answers were {status.lower()}"] += 1
            continue
        time = cell(record.get("ASSIGNMENT:submitted") or record.get("ASSIGNMENT:started"))
        confidence = _share(record.get(f"CONFIDENCE:{question}"))
        by = record.get("ASSIGNMENT:worker_id") or "aggregated"
        export.add(example, by, record.get(f"OUTPUT:{question}"), time=time, confidence=confidence)
    return export


def _share(value: Any) -> float | None:
    """Return a probability, which may be a percentage."""
    text = cell(value)
    if text.endswith("%"):
        number = parse_number(text[:-1])
        return None if number is None else probability(number / 100)
    return probability(text)


def open_images(records: Sequence[Record], asked: str | None) -> Export:
    """Read image-level labels: people verify a class as present (1) or absent (0); models give a rate."""
    export = Export("Open Images")
    present: dict[tuple[str, str], dict[str, float]] = {}
    for record in records:
        image, by = cell(record["ImageID"]), cell(record.get("Source")) or NOBODY
        name = cell(record["LabelName"])
        export.add_example(image, {"image": f"{image}.jpg"})
        confidence = parse_number(cell(record["Confidence"]))
        if confidence is None or not 0 <= confidence <= 1:
            raise DataError(
                f"image '{cut(image)}': the Confidence '{cut(record['Confidence'])}' is not in [0, 1]"
            )
        if confidence == 0:
            export.answers.append(Answer(image, by, name, against=True))
        else:
            present.setdefault((image, by), {})[name] = confidence
    for (image, by), found in present.items():
        best = max(found.values())
        most = [name for name, confidence in found.items() if confidence == best]
        if len(most) > 1:
            export.left_out["answers name several classes of one image"] += 1
        else:
            export.add(image, by, most[0], confidence=best if best < 1 else None)
    return export


def wrench(document: Record, asked: str | None) -> Export:
    """Read WRENCH's JSON: `weak_labels` of labeling functions, −1 for none; `label` is the true class."""
    export = Export("WRENCH")
    for example, record in document.items():
        export.add_example(example, record.get("data") or {})
        if record.get("label") is not None:
            export.true[example] = cell(record["label"])
        for j, label in enumerate(record["weak_labels"]):
            if cell(label) != "-1":
                export.add(example, f"function{j}", label)
    return export


def peerannot(document: Record, asked: str | None) -> Export:
    """Read peerannot's answers: {example: {annotator: class}}."""
    export = Export("peerannot")
    for example, votes in document.items():
        export.examples[example] = None
        for annotator, label in votes.items():
            export.add(example, annotator, None if cell(label) == "-1" else label)
    return export
