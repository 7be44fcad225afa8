"""Readers of annotation tools' exports: Label Studio, Argilla, Prodigy, doccano, CVAT, datumaro and Roboflow.

Each takes what a file holds, and the question that is asked for if there are several; it returns the answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from hesstune.errors import DataError, cut
from hesstune.storage.columns import is_missing
from hesstune.weak.export_answers import (
    IMAGE_KEYS,
    TEXT_KEYS,
    Answer,
    Export,
    Record,
    cell,
    is_class_like,
    one_question,
    parsed,
    probability,
)

# Label Studio

# Kinds of answers that are one class.
CLASS_KINDS = ("choices", "rating", "number")
# Columns of JSON-MIN, CSV and TSV that Label Studio writes itself.
STUDIO = frozenset({
    "id", "annotator", "annotation_id", "annotation id", "created_at", "updated_at", "lead_time", "agreement",
    "inner_id", "ground_truth", "was_cancelled", "created_username", "completed_by", "project",
})  # fmt: skip


def label_studio(records: Sequence[Record], asked: str | None) -> Export:
    """Read JSON: tasks with annotations by people and predictions of models."""
    export = Export("Label Studio")
    rows: list[tuple[str, str, Any, Answer]] = []  # control, the class or classes, and the answer
    for at, task in enumerate(records):
        example = cell(task.get("id", at))
        export.add_example(example, task.get("data") or {})
        export.left_out["answers are drafts"] += len(task.get("drafts") or [])
        for annotation in [*(task.get("annotations") or []), *(task.get("completions") or [])]:
            by = annotation.get("completed_by")
            by = (by.get("email") or by.get("id")) if isinstance(by, dict) else by
            if annotation.get("was_cancelled") or annotation.get("skipped"):
                export.left_out["answers were cancelled"] += 1
                continue
            choices = _choices(annotation)
            export.left_out["answers are empty"] += not choices
            time = str(annotation.get("updated_at") or annotation.get("created_at") or "")
            for control, label in choices.items():
                rows.append((control, label, by, Answer(example, "", "", time)))
                if annotation.get("ground_truth") and (asked or control) == control:
                    export.checked[example] = cell(label[0] if len(label) == 1 else "")
        for prediction in task.get("predictions") or []:
            if not isinstance(prediction, dict):
                export.left_out["predictions are exported by their number only"] += 1
                continue
            time = str(prediction.get("updated_at") or prediction.get("created_at") or "")
            by = prediction.get("model_version") or "prediction"
            answer = Answer(example, "", "", time, probability(prediction.get("score")))
            rows += [(control, label, by, answer) for control, label in _choices(prediction).items()]
    control = one_question(dict.fromkeys(row[0] for row in rows), asked, "control")
    for own, label, by, answer in rows:
        if own == control:
            export.add(answer.example, by, label, time=answer.time, confidence=answer.confidence)
    return export


def _choices(annotation: Record) -> dict[str, Any]:
    """Return {control: class} of an annotation; several classes of one control stay a list."""
    found: dict[str, Any] = {}
    for item in annotation.get("result") or []:
        value = item.get("value") or {}
        kind = next((kind for kind in CLASS_KINDS if value.get(kind) not in (None, [], "")), None)
        if kind is None:
            continue
        control = str(item.get("from_name"))
        labels = value[kind] if isinstance(value[kind], list) else [value[kind]]
        found[control] = [*found.get(control, []), *labels]
    return found


def label_studio_flat(records: Sequence[Record], asked: str | None) -> Export:
    """Read JSON-MIN, CSV and TSV: one row for each annotation, and one for each task without any."""
    export = Export("Label Studio")
    answered = [r for r in records if not is_missing(cell(r.get("annotation_id")))]
    control = _control(records, answered, asked)
    for record in records:
        export.add_example(cell(record.get("id")), record)
    for record in answered:
        if cell(record.get("was_cancelled")).lower() in ("true", "1"):
            export.left_out["answers were cancelled"] += 1
            continue
        value = parsed(record.get(control))
        if isinstance(value, dict):
            value = value.get("choices", value)
        time = cell(record.get("updated_at") or record.get("created_at"))
        by = record.get("annotator") or record.get("created_username") or record.get("completed_by")
        by = (by.get("email") or by.get("id")) if isinstance(by, dict) else by
        export.add(cell(record.get("id")), by, value, time=time)
        if cell(record.get("ground_truth")).lower() in ("true", "1"):
            export.checked[cell(record.get("id"))] = cell(value)
    return export


def _control(records: Sequence[Record], answered: Sequence[Record], asked: str | None) -> str:
    """Return the column of answers: few classes, which tasks without an annotation do not have."""
    rest = [r for r in records if is_missing(cell(r.get("annotation_id")))]
    names = dict.fromkeys(key for record in answered for key in record if key not in STUDIO)
    if asked in names:
        return str(asked)
    controls: dict[str, set[str]] = {}
    for name in names:
        values = {own for r in answered if not is_missing(own := _cell_or_json(r.get(name)))}
        if not any(cell(r.get(name)) for r in rest) and is_class_like(values, len(answered)):
            controls[name] = values
    for key in TEXT_KEYS + IMAGE_KEYS:
        if len(controls) > 1:
            controls.pop(key, None)
    named = [name for name in ("choice", "sentiment", "label") if name in controls]
    if asked is None and len(controls) > 1 and len(named) == 1:
        controls = {named[0]: controls[named[0]]}
    return one_question(controls, asked, "column of answers")


def _cell_or_json(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else cell(value)


# Argilla


def argilla(records: Sequence[Record], asked: str | None) -> Export:
    """Read records of Argilla 2 (nested and flat), of the FeedbackDataset of 1, and of version 0."""
    export = Export("Argilla")
    rows: list[tuple[str, str, Any, Any, Any]] = []  # question, example, annotator, label, status
    models: list[tuple[str, str, Any, Any, Any]] = []  # question, example, model, label, score
    for at, record in enumerate(records):
        example = cell(record.get("id") or record.get("external_id") or record.get("_server_id") or at)
        export.add_example(example, record.get("fields") or record.get("inputs") or record)
        for question, by, label, status in _argilla_responses(record):
            rows.append((question, example, by, label, status))
        for question, by, label, score in _argilla_suggestions(record):
            models.append((question, example, by, label, score))
    question = one_question({row[0]: None for row in [*rows, *models]}, asked, "question")
    unknown = 0
    for own, example, by, label, status in rows:
        if own != question:
            continue
        if status in ("submitted", "Validated", None):
            export.add(example, by, label)
            unknown += status is None
        else:
            export.left_out[f"answers have the status {cut(status).lower()}"] += 1
    for own, example, by, label, score in models:
        if own == question:
            export.add(example, by, label, confidence=probability(score))
    if unknown:
        export.notes.append(
            f"the export does not say whether {unknown:,} responses were submitted, so all of them count; "
            "Argilla writes this if records are flattened: records.to_list(flatten=True), to_datasets()"
        )
    return export


def _argilla_responses(record: Record) -> Iterable[tuple[str, Any, Any, Any]]:
    """Yield (question, annotator, value, status) of a record."""
    if "annotation_agent" in record:
        if record.get("annotation") is not None:
            yield "annotation", record.get("annotation_agent"), record["annotation"], record.get("status")
        return
    responses = parsed(record.get("responses"))
    for question, cells in (responses if isinstance(responses, dict) else record).items():
        answers = parsed(cells)
        if isinstance(answers, dict) and {"user_id", "value"} <= answers.keys():  # a column of lists
            count = len(answers["value"])
            status = answers.get("status") or [None] * count
            for by, value, own in zip(answers["user_id"], answers["value"], status, strict=True):
                yield question, by, value, own
        elif isinstance(answers, list) and all(isinstance(a, dict) and "value" in a for a in answers):
            for answer in answers:
                yield question, answer.get("user_id"), _argilla_value(answer["value"]), answer.get("status")
        elif question.endswith(".responses") and isinstance(answers, list):
            users = parsed(record.get(f"{question}.users")) or [None] * len(answers)
            status = parsed(record.get(f"{question}.status")) or [None] * len(answers)
            for by, value, own in zip(users, answers, status, strict=True):
                yield question.removesuffix(".responses"), by, value, own


def _argilla_value(value: Any) -> Any:
    """Return the class of a response: version 1 also writes {"value": class}."""
    return value.get("value", value) if isinstance(value, dict) else value


def _argilla_suggestions(record: Record) -> Iterable[tuple[str, Any, Any, Any]]:
    """Yield (question, model, value, score) of a record."""
    if record.get("prediction") and "prediction_agent" in record:
        best = max(parsed(record["prediction"]), key=lambda p: p.get("score") or 0)
        yield "annotation", record["prediction_agent"] or "prediction", best.get("label"), best.get("score")
    suggestions = parsed(record.get("suggestions"))
    if isinstance(suggestions, dict):
        for question, own in suggestions.items():
            if isinstance(own, dict) and own.get("value") is not None:
                yield question, own.get("agent") or "suggestion", own["value"], own.get("score")
    for key, value in record.items():
        for suffix in (".suggestion", "-suggestion"):
            if key.endswith(suffix) and not is_missing(cell(value)):
                more = parsed(record.get(f"{key}-metadata")) or {}
                agent = record.get(f"{key}.agent") or more.get("agent") or "suggestion"
                yield key.removesuffix(suffix), agent, value, record.get(f"{key}.score", more.get("score"))


# Prodigy, doccano

PRODIGY_ANSWERS = frozenset({"accept", "reject", "ignore"})


def prodigy(records: Sequence[Record], asked: str | None) -> Export:
    """Read binary questions (a label to accept or reject) and choices (`options`, those accepted)."""
    export = Export("Prodigy")
    for at, record in enumerate(records):
        meta: Record = record.get("meta") or {}
        named = (record.get("id"), meta.get("id"), record.get("_input_hash"))
        example = next((cell(name) for name in named if name is not None), _inputs_of(record) or str(at))
        export.add_example(example, record)
        by = record.get("_annotator_id") or record.get("_session_id")
        time = cell(record.get("_timestamp"))
        if record["answer"] == "ignore":
            export.left_out["answers are 'ignore'"] += 1
        elif "options" in record or isinstance(record.get("accept"), list):
            if record["answer"] == "reject":
                export.left_out["answers reject a choice"] += 1
            else:
                export.add(example, by, record.get("accept") or [], time=time)
        else:
            export.add(example, by, record.get("label"), time=time, against=record["answer"] == "reject")
    return export


def _inputs_of(record: Record) -> str | None:
    return next((record[key] for key in TEXT_KEYS + IMAGE_KEYS if isinstance(record.get(key), str)), None)


def doccano(records: Sequence[Record], asked: str | None) -> Export:
    """Read JSON, JSON Lines and CSV: several labels are a list, or joined by #."""
    export = Export("doccano")
    for at, record in enumerate(records):
        example = cell(record.get("id", at))
        export.add_example(example, record)
        labels = record.get("label", record.get("labels"))
        if isinstance(labels, str) and "#" in labels:
            labels = labels.split("#")
        export.add(example, record.get("user") or record.get("annotator"), labels)
    return export


# Images


def datumaro(document: Record, asked: str | None) -> Export:
    """Read the JSON of datumaro, which CVAT exports: annotations of type `label`."""
    export = Export("datumaro")
    names = [entry["name"] for entry in document["categories"]["label"]["labels"]]
    for item in document["items"]:
        path = (item.get("image") or item.get("media") or {}).get("path") or item["id"]
        example = cell(item["id"])
        export.add_example(example, {"image": path})
        annotations = item.get("annotations") or []
        found = [a["label_id"] for a in annotations if a.get("type") == "label"]
        export.left_out["annotations are boxes, masks or other shapes"] += len(annotations) - len(found)
        if wrong := [i for i in found if not isinstance(i, int) or not 0 <= i < len(names)]:
            raise DataError(f"item '{cut(example)}': there is no category {wrong[0]} among {len(names)}")
        if found:
            export.add(example, None, list(dict.fromkeys(names[i] for i in found)))
    return export


def cvat(path: Path) -> Export | None:
    """Read CVAT's XML for images: tags of whole images; None if the file is other XML.

    Raises:
        DataError: If it is no XML, or declares entities, which CVAT does not.
    """
    content = path.read_bytes()
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise DataError(f"{path} declares entities, which exports of CVAT do not; export it again")
    try:
        root = ElementTree.fromstring(content)  # noqa: S314 - entities are refused above
    except ElementTree.ParseError as error:
        raise DataError(f"{path} is no XML: {error}") from None
    if root.tag != "annotations":
        return None
    export = Export("CVAT")
    for at, image in enumerate(root.iter("image")):
        example = image.get("name") or image.get("id") or str(at)
        export.add_example(example, {"image": example})
        tags = [tag.get("label") for tag in image.findall("tag")]
        shapes = sum(child.tag != "tag" for child in image)
        export.left_out["annotations are boxes, masks or other shapes"] += shapes
        if tags:
            export.add(example, None, list(dict.fromkeys(tags)))
    export.left_out["tracks of videos have no class of an image"] += len(root.findall("track"))
    return export.finish()


# The name of Roboflow's file of classes, a column of 0 and 1 for each.
CLASSES_FILE = "_classes.csv"
BITS = {"0": False, "1": True, "0.0": False, "1.0": True, "": False, "false": False, "true": True}


def is_one_hot(records: Sequence[Record]) -> bool:
    """Return whether rows have a file name, and 0 or 1 in all other columns, two at least."""
    first = next(iter(records[0]), "")
    names = [key for key in records[0] if key != first]
    return (
        first.strip().lower() in ("filename", "file_name", "image")
        and len(names) > 1
        and all(cell(record[name]).lower() in BITS for record in records for name in names)
    )


def roboflow(records: Sequence[Record], asked: str | None) -> Export:
    """Read `_classes.csv`: a column of 0 and 1 for each class."""
    export = Export("Roboflow")
    file, *names = records[0]
    for record in records:
        export.add_example(record[file], {"image": record[file]})
        cells = {name: cell(record[name]).lower() for name in names}
        if strange := next((name for name in names if cells[name] not in BITS), None):
            raise DataError(
                f"'{cut(record[file])}': '{cut(cells[strange])}' in the column '{cut(strange)}' is not 0 or 1"
            )
        chosen = [name.strip() for name in names if BITS[cells[name]]]
        export.add(record[file], None, chosen)
    return export
