"""Readers of the exports of annotation tools, crowds and benchmarks.

A reader yields a `Row` for each answer. `Tool` says which records are a tool's, and `read_tool` keeps the
answers to one question.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from hesstune.checks import parse_number
from hesstune.errors import DataError, cut, listed
from hesstune.storage.columns import is_missing
from hesstune.weak.export_answers import (
    IMAGE_KEYS,
    NOBODY,
    TEXT_KEYS,
    Export,
    Record,
    cell,
    parsed,
    probability,
)

# So many records show which tool wrote an export.
SHOWN = 200


class Row(NamedTuple):
    """An answer to a question; `left` says why it does not count, "" if it does."""

    question: str
    example: str
    annotator: Any
    label: Any
    time: str = ""
    confidence: float | None = None
    against: bool = False
    left: str = ""


Rows = Iterable[Row]


@dataclass(frozen=True)
class Tool:
    """A tool: its name, whether records with these keys are its own, their reader, the name of a question."""

    name: str
    fits: Callable[[Any, set[str]], bool]
    read: Callable[[Export, Any, str | None], Rows]
    question: str = ""


def tool_of(content: Any) -> Tool | None:
    """Return the tool that wrote a list of objects or one object; None for a plain table."""
    if isinstance(content, dict):
        return next((tool for tool in DOCUMENTS if tool.fits(content, set(content))), None)
    if not content or not isinstance(content, list) or not all(isinstance(own, Mapping) for own in content):
        return None
    shown = content[:SHOWN]
    keys = {str(key) for record in shown for key in record}
    return next((tool for tool in TOOLS if tool.fits(shown, keys)), None)


def read_tool(tool: Tool, content: Any, asked: str | None) -> Export:
    """Return the answers that count, to the only question or the one that is asked for."""
    export = Export(tool.name)
    rows = list(tool.read(export, content, asked))
    question = (
        one_question({row.question: None for row in rows}, asked, tool.question) if tool.question else ""
    )
    for row in rows:
        if row.question == question and row.left:
            export.left_out[row.left] += 1
        elif row.question == question:
            export.add(row.example, row.annotator, row.label, row.time, row.confidence, row.against)
    return export.finish()


def one_question(found: Mapping[str, Any], asked: str | None, what: str) -> str:
    """Return the question that is asked for, or the only one; DataError if there are several, or none."""
    if asked is not None:
        if asked not in found:
            raise DataError(f"there is no {what} '{cut(asked)}'; there are {listed(found) or 'none'}")
        return asked
    if len(found) != 1:
        has = f"several {what}s ({listed(found)})" if found else f"no {what} with one class an example"
        raise DataError(f"the export has {has}; name one with --label-column")
    return next(iter(found))


def _is_class_like(values: set[str], rows: int) -> bool:
    return bool(values) and len(values) <= max(2, rows // 2)


def _without_prefix(asked: str | None, prefix: str) -> str | None:
    return asked.removeprefix(prefix) if asked else None


def _class_like(records: Sequence[Record], prefix: str, names: Iterable[str]) -> list[str]:
    """Return the questions whose answers can be classes: they have few values."""
    values = {name: {cell(record.get(prefix + name)) for record in records} - {""} for name in names}
    return [name for name, own in values.items() if _is_class_like(own, len(records))]


# Label Studio

# Kinds of answers that are one class.
CLASS_KINDS = ("choices", "rating", "number")
# Columns of JSON-MIN, CSV and TSV that Label Studio writes itself.
STUDIO = frozenset({
    "id", "annotator", "annotation_id", "annotation id", "created_at", "updated_at", "lead_time", "agreement",
    "inner_id", "ground_truth", "was_cancelled", "created_username", "completed_by", "project",
})  # fmt: skip


def _annotator_of(by: Any) -> Any:
    return (by.get("email") or by.get("id")) if isinstance(by, dict) else by


def _time_of_change(record: Record) -> str:
    return cell(record.get("updated_at") or record.get("created_at"))


def label_studio(export: Export, tasks: Sequence[Record], asked: str | None) -> Rows:
    """Read JSON: tasks with annotations by people and predictions of models."""
    for at, task in enumerate(tasks):
        example = cell(task.get("id", at))
        export.add_example(example, task.get("data") or {})
        export.left_out["answers are drafts"] += len(task.get("drafts") or [])
        for annotation in [*(task.get("annotations") or []), *(task.get("completions") or [])]:
            if annotation.get("was_cancelled") or annotation.get("skipped"):
                export.left_out["answers were cancelled"] += 1
                continue
            choices = _choices(annotation)
            export.left_out["answers are empty"] += not choices
            for control, label in choices.items():
                yield Row(
                    control,
                    example,
                    _annotator_of(annotation.get("completed_by")),
                    label,
                    _time_of_change(annotation),
                )
                if annotation.get("ground_truth") and (asked or control) == control:
                    export.checked[example] = cell(label[0] if len(label) == 1 else "")
        for prediction in task.get("predictions") or []:
            if not isinstance(prediction, dict):
                export.left_out["predictions are exported by their number only"] += 1
                continue
            by, score = prediction.get("model_version") or "prediction", probability(prediction.get("score"))
            for control, label in _choices(prediction).items():
                yield Row(control, example, by, label, _time_of_change(prediction), score)


def _choices(annotation: Record) -> dict[str, list[Any]]:
    """Return {control: classes} of an annotation."""
    found: dict[str, list[Any]] = {}
    for item in annotation.get("result") or []:
        value = item.get("value") or {}
        kind = next((kind for kind in CLASS_KINDS if value.get(kind) not in (None, [], "")), None)
        if kind is not None:
            labels = value[kind] if isinstance(value[kind], list) else [value[kind]]
            found.setdefault(str(item.get("from_name")), []).extend(labels)
    return found


def label_studio_flat(export: Export, records: Sequence[Record], asked: str | None) -> Rows:
    """Read JSON-MIN, CSV and TSV: one row for each annotation, and one for each task without any."""
    is_answer = [not is_missing(cell(record.get("annotation_id"))) for record in records]
    control = _control(records, is_answer, asked)
    for record, answered in zip(records, is_answer, strict=True):
        example = cell(record.get("id"))
        export.add_example(example, record)
        if not answered:
            continue
        if cell(record.get("was_cancelled")).lower() in ("true", "1"):
            export.left_out["answers were cancelled"] += 1
            continue
        value = parsed(record.get(control))
        if isinstance(value, dict):
            value = value.get("choices", value)
        by = record.get("annotator") or record.get("created_username") or record.get("completed_by")
        yield Row("", example, _annotator_of(by), value, _time_of_change(record))
        if cell(record.get("ground_truth")).lower() in ("true", "1"):
            export.checked[example] = cell(value)


def _control(records: Sequence[Record], is_answer: Sequence[bool], asked: str | None) -> str:
    """Return the column of answers: few classes, which tasks without an annotation do not have."""
    answered = [record for record, own in zip(records, is_answer, strict=True) if own]
    rest = [record for record, own in zip(records, is_answer, strict=True) if not own]
    names = dict.fromkeys(key for record in answered for key in record if key not in STUDIO)
    if asked in names:
        return str(asked)
    controls: dict[str, set[str]] = {}
    for name in names:
        cells = (json.dumps(v) if isinstance(v := r.get(name), dict | list) else cell(v) for r in answered)
        values = {own for own in cells if not is_missing(own)}
        if not any(cell(r.get(name)) for r in rest) and _is_class_like(values, len(answered)):
            controls[name] = values
    for key in TEXT_KEYS + IMAGE_KEYS:
        if len(controls) > 1:
            controls.pop(key, None)
    named = [name for name in ("choice", "sentiment", "label") if name in controls]
    if asked is None and len(controls) > 1 and len(named) == 1:
        return named[0]
    return one_question(controls, asked, "column of answers")


# Argilla


def argilla(export: Export, records: Sequence[Record], asked: str | None) -> Rows:
    """Read records of Argilla 2 (nested and flat), of the FeedbackDataset of 1, and of version 0."""
    unknown: dict[str, int] = {}
    models: list[Row] = []
    for at, record in enumerate(records):
        example = cell(record.get("id") or record.get("external_id") or record.get("_server_id") or at)
        export.add_example(example, record.get("fields") or record.get("inputs") or record)
        for question, by, label, status in _argilla_responses(record):
            counts = status in ("submitted", "Validated", None)
            left = "" if counts else f"answers have the status {cut(status).lower()}"
            yield Row(question, example, by, label, left=left)
            unknown[question] = unknown.get(question, 0) + (status is None)
        for question, by, label, score in _argilla_suggestions(record):
            models.append(Row(question, example, by, label, confidence=probability(score)))
    yield from models
    if count := unknown.get(asked, 0) if asked else max(unknown.values(), default=0):
        export.notes.append(
            f"the export does not say whether {count:,} responses were submitted, so all of them count; "
            "Argilla writes this if records are flattened: records.to_list(flatten=True), to_datasets()"
        )


def _argilla_responses(record: Record) -> Iterator[tuple[str, Any, Any, Any]]:
    """Yield (question, annotator, value, status) of a record."""
    if "annotation_agent" in record:
        if record.get("annotation") is not None:
            yield "annotation", record.get("annotation_agent"), record["annotation"], record.get("status")
        return
    responses = parsed(record.get("responses"))
    for question, cells in (responses if isinstance(responses, dict) else record).items():
        answers = parsed(cells)
        if isinstance(answers, dict) and {"user_id", "value"} <= answers.keys():  # a column of lists
            status = answers.get("status") or [None] * len(answers["value"])
            for by, value, own in zip(answers["user_id"], answers["value"], status, strict=True):
                yield question, by, value, own
        elif isinstance(answers, list) and all(isinstance(a, dict) and "value" in a for a in answers):
            for answer in answers:
                value = answer["value"]  # version 1 also writes {"value": class}
                value = value.get("value", value) if isinstance(value, dict) else value
                yield question, answer.get("user_id"), value, answer.get("status")
        elif question.endswith(".responses") and isinstance(answers, list):
            users = parsed(record.get(f"{question}.users")) or [None] * len(answers)
            status = parsed(record.get(f"{question}.status")) or [None] * len(answers)
            for by, value, own in zip(users, answers, status, strict=True):
                yield question.removesuffix(".responses"), by, value, own


def _argilla_suggestions(record: Record) -> Iterator[tuple[str, Any, Any, Any]]:
    """Yield (question, model, value, score) of a record."""
    if record.get("prediction") and "prediction_agent" in record:
        best = max(parsed(record["prediction"]), key=lambda p: p.get("score") or 0)
        yield "annotation", record["prediction_agent"] or "prediction", best.get("label"), best.get("score")
    suggestions = parsed(record.get("suggestions"))
    for question, own in suggestions.items() if isinstance(suggestions, dict) else ():
        if isinstance(own, dict) and own.get("value") is not None:
            yield question, own.get("agent") or "suggestion", own["value"], own.get("score")
    for key, value in record.items():
        if key.endswith((".suggestion", "-suggestion")) and not is_missing(cell(value)):
            more = parsed(record.get(f"{key}-metadata")) or {}
            agent = record.get(f"{key}.agent") or more.get("agent") or "suggestion"
            score = record.get(f"{key}.score", more.get("score"))
            yield key[: -len(".suggestion")], agent, value, score


def _is_argilla(records: Sequence[Record], keys: set[str]) -> bool:
    def of_users(value: Any) -> bool:
        if isinstance(value, str) and "user_id" not in value:
            return False
        value = parsed(value)
        answers = value if isinstance(value, list) else [value]
        return any(isinstance(v, dict) and {"user_id", "value"} <= v.keys() for v in answers)

    nested = {"fields", "responses"} <= keys or {"annotation", "annotation_agent", "prediction"} <= keys
    flat = any(key.endswith((".responses.users", ".responses.status")) for key in keys)
    return nested or flat or any(of_users(value) for record in records for value in record.values())


# Prodigy, doccano


def prodigy(export: Export, records: Sequence[Record], asked: str | None) -> Rows:
    """Read binary questions (a label to accept or reject) and choices (`options`, those accepted)."""
    for at, record in enumerate(records):
        named = (record.get("id"), (record.get("meta") or {}).get("id"), record.get("_input_hash"))
        inputs = (record[key] for key in TEXT_KEYS + IMAGE_KEYS if isinstance(record.get(key), str))
        example = next((cell(name) for name in named if name is not None), next(inputs, None) or str(at))
        export.add_example(example, record)
        by = record.get("_annotator_id") or record.get("_session_id")
        is_choice = "options" in record or isinstance(record.get("accept"), list)
        rejects = record["answer"] == "reject"
        left = "answers reject a choice" if is_choice and rejects else ""
        left = "answers are 'ignore'" if record["answer"] == "ignore" else left
        label = (record.get("accept") or []) if is_choice else record.get("label")
        yield Row("", example, by, label, cell(record.get("_timestamp")), None, rejects, left)


def _is_prodigy(records: Sequence[Record], keys: set[str]) -> bool:
    known = "answer" in keys and keys & {"label", "options", "accept", "_input_hash"}
    return bool(known) and {cell(r.get("answer")) for r in records} <= {"accept", "reject", "ignore"}


def doccano(export: Export, records: Sequence[Record], asked: str | None) -> Rows:
    """Read JSON, JSON Lines and CSV: several labels are a list, or joined by #."""
    for at, record in enumerate(records):
        example, labels = cell(record.get("id", at)), record.get("label", record.get("labels"))
        export.add_example(example, record)
        if isinstance(labels, str) and "#" in labels:
            labels = labels.split("#")
        yield Row("", example, record.get("user") or record.get("annotator"), labels)


def _is_doccano(records: Sequence[Record], keys: set[str]) -> bool:
    lists = any(isinstance(record.get(key), list) for record in records for key in ("label", "labels"))
    return "id" in keys and (lists or {"data", "label"} <= keys)


# Images

SHAPES = "annotations are boxes, masks or other shapes"


def datumaro(export: Export, document: Record, asked: str | None) -> Rows:
    """Read the JSON of datumaro, which CVAT exports: annotations of type `label`."""
    names = [entry["name"] for entry in document["categories"]["label"]["labels"]]
    for item in document["items"]:
        example = cell(item["id"])
        path = (item.get("image") or item.get("media") or {}).get("path") or item["id"]
        export.add_example(example, {"image": path})
        annotations = item.get("annotations") or []
        found = [a["label_id"] for a in annotations if a.get("type") == "label"]
        export.left_out[SHAPES] += len(annotations) - len(found)
        if wrong := [i for i in found if not isinstance(i, int) or not 0 <= i < len(names)]:
            raise DataError(f"item '{cut(example)}': there is no category {wrong[0]} among {len(names)}")
        if found:
            yield Row("", example, None, list(dict.fromkeys(names[i] for i in found)))


def _is_cvat(root: ElementTree.Element, keys: set[str]) -> bool:
    return root.tag == "annotations"


def cvat(export: Export, root: ElementTree.Element, asked: str | None) -> Rows:
    """Read CVAT's XML for images: tags of whole images."""
    for at, image in enumerate(root.iter("image")):
        example = image.get("name") or image.get("id") or str(at)
        export.add_example(example, {"image": example})
        tags = [tag.get("label") for tag in image.findall("tag")]
        export.left_out[SHAPES] += sum(child.tag != "tag" for child in image)
        if tags:
            yield Row("", example, None, list(dict.fromkeys(tags)))
    export.left_out["tracks of videos have no class of an image"] += len(root.findall("track"))


CVAT = Tool("CVAT", _is_cvat, cvat)


def read_cvat(path: Path) -> Export | None:
    """Read XML; None if it is not CVAT's; DataError if it is no XML, or declares entities."""
    content = path.read_bytes()
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise DataError(f"{path} declares entities, which exports of CVAT do not; export it again")
    try:
        root = ElementTree.fromstring(content)  # noqa: S314 - entities are refused above
    except ElementTree.ParseError as error:
        raise DataError(f"{path} is no XML: {error}") from None
    return read_tool(CVAT, root, None) if CVAT.fits(root, set()) else None


# The name of Roboflow's file of classes, a column of 0 and 1 for each.
CLASSES_FILE = "_classes.csv"
BITS = {"0": False, "1": True, "0.0": False, "1.0": True, "": False, "false": False, "true": True}


def _is_roboflow(records: Sequence[Record], keys: set[str]) -> bool:
    first, *names = [*records[0]] or [""]
    is_file = first.strip().lower() in ("filename", "file_name", "image") and len(names) > 1
    return is_file and all(cell(record.get(name)).lower() in BITS for record in records for name in names)


def roboflow(export: Export, records: Sequence[Record], asked: str | None) -> Rows:
    """Read `_classes.csv`: a column of 0 and 1 for each class."""
    file, *names = records[0]
    if len(names) < 2:
        raise DataError("there must be a column of file names, and one for each of two classes at least")
    for record in records:
        export.add_example(record[file], {"image": record[file]})
        cells = {name: cell(record[name]).lower() for name in names}
        if strange := next((name for name in names if cells[name] not in BITS), None):
            raise DataError(
                f"'{cut(record[file])}': '{cut(cells[strange])}' in the column '{cut(strange)}' is not 0 or 1"
            )
        yield Row("", record[file], None, [name.strip() for name in names if BITS[cells[name]]])


ROBOFLOW = Tool("Roboflow", _is_roboflow, roboflow)


# Crowds


def mechanical_turk(export: Export, records: Sequence[Record], asked: str | None) -> Rows:
    """Read a batch's results: `Answer.…`, also radio buttons in one column for each class, and JSON."""
    records = [{**record, **_task_answers(record)} for record in records]
    columns = dict.fromkeys(key for record in records for key in record)
    answers = [key.removeprefix("Answer.") for key in columns if key.startswith("Answer.")]
    groups: dict[str, list[str]] = {}  # of radio buttons: a column for each class, true or false
    for name in answers:
        cells = {cell(record.get(f"Answer.{name}")).lower() for record in records}
        if "." in name and cells <= {"true", "false", ""}:
            groups.setdefault(name.rpartition(".")[0], []).append(name)
    single = [name for name in answers if not any(name in own for own in groups.values())]
    questions = dict.fromkeys([*single, *groups])
    if asked is None and len(questions) > 1:
        questions = dict.fromkeys([*_class_like(records, "Answer.", single), *groups]) or questions
    question = one_question(questions, _without_prefix(asked, "Answer."), "answer")
    for record in records:
        given = {key.removeprefix("Input."): record[key] for key in record if key.startswith("Input.")}
        example = cell(given.get("id") or record["HITId"])
        export.add_example(example, given)
        is_rejected = cell(record["AssignmentStatus"]).lower() == "rejected" or cell(record.get("Reject"))
        label: Any = record.get(f"Answer.{question}")
        if question in groups:
            own = {name: cell(record.get(f"Answer.{name}")).lower() for name in groups[question]}
            label = [name.rpartition(".")[2] for name in own if own[name] == "true"]
        left = "answers were rejected" if is_rejected else ""
        yield Row("", example, record["WorkerId"], label, cell(record.get("SubmitTime")), left=left)


def _task_answers(record: Record) -> dict[str, str]:
    """Return the answers that Mechanical Turk's own form elements write as JSON, as columns."""
    answers = parsed(record.get("Answer.taskAnswers"))
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        return {}
    found, open_items = {"Answer.taskAnswers": ""}, [item for answer in answers for item in answer.items()]
    while open_items:
        name, value = open_items.pop(0)
        if isinstance(value, dict):
            inner = (
                (name if key in ("label", "labels") else f"{name}.{key}", own) for key, own in value.items()
            )
            open_items[:0] = list(inner)
        else:
            found[f"Answer.{name}"] = cell(value)
    return found


def toloka(export: Export, records: Sequence[Record], asked: str | None) -> Rows:
    """Read assignments: `OUTPUT:…`, and `GOLDEN:…` as checked labels."""
    outputs = [key.removeprefix("OUTPUT:") for key in records[0] if key.startswith("OUTPUT:")]
    if asked is None and len(outputs) > 1:
        outputs = _class_like(records, "OUTPUT:", outputs) or outputs
    question = one_question(dict.fromkeys(outputs), _without_prefix(asked, "OUTPUT:"), "output")
    inputs = [key for key in records[0] if key.startswith("INPUT:")]
    ids: dict[tuple[str, ...], str] = {}
    for at, record in enumerate(records):
        given = {key.removeprefix("INPUT:"): record[key] for key in inputs}
        own = cell(given.get("id") or record.get("ASSIGNMENT:task_id") or at)
        example = ids.setdefault(tuple(map(cell, given.values())), own) if given else own
        export.add_example(example, given)
        if golden := cell(record.get(f"GOLDEN:{question}")):
            export.checked[example] = golden
        status = cell(record.get("ASSIGNMENT:status")).lower()
        left = f"answers were {status}" if status in ("rejected", "skipped", "expired", "active") else ""
        time = cell(record.get("ASSIGNMENT:submitted") or record.get("ASSIGNMENT:started"))
        confidence = probability(record.get(f"CONFIDENCE:{question}"))
        by = record.get("ASSIGNMENT:worker_id") or "aggregated"
        yield Row("", example, by, record.get(f"OUTPUT:{question}"), time, confidence, left=left)


# Benchmarks


def open_images(export: Export, records: Sequence[Record], asked: str | None) -> Rows:
    """Read image-level labels: people verify a class as present (1) or absent (0); models give a rate."""
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
            yield Row("", image, by, name, against=True)
        else:
            present.setdefault((image, by), {})[name] = confidence
    for (image, by), found in present.items():
        best = max(found.values())
        most = [name for name, confidence in found.items() if confidence == best]
        left = "answers name several classes of one image" if len(most) > 1 else ""
        yield Row("", image, by, most[0], confidence=best if best < 1 else None, left=left)


def wrench(export: Export, document: Record, asked: str | None) -> Rows:
    """Read WRENCH's JSON: `weak_labels` of labeling functions, −1 for none; `label` is the true class."""
    for example, record in document.items():
        export.add_example(example, record.get("data") or {})
        if record.get("label") is not None:
            export.true[example] = cell(record["label"])
        for j, label in enumerate(record["weak_labels"]):
            if cell(label) != "-1":
                yield Row("", example, f"function{j}", label)


def peerannot(export: Export, document: Record, asked: str | None) -> Rows:
    """Read peerannot's answers: {example: {annotator: class}}."""
    for example, votes in document.items():
        export.examples[example] = None
        for annotator, label in votes.items():
            yield Row("", example, annotator, None if cell(label) == "-1" else label)


def _is_peerannot(document: Record, keys: set[str]) -> bool:
    values = list(document.values())
    return bool(values) and all(isinstance(value, dict) for value in values) and all(
        isinstance(label, str | int | float) for value in values for label in value.values()
    )  # fmt: skip


def _is_wrench(document: Record, keys: set[str]) -> bool:
    values = list(document.values())
    return bool(values) and all(isinstance(value, dict) and "weak_labels" in value for value in values)


def _has_keys(*needed: str, one_of: tuple[str, ...] = ()) -> Callable[[Any, set[str]], bool]:
    return lambda _, keys: keys.issuperset(needed) and not (one_of and keys.isdisjoint(one_of))


def _is_toloka(records: Sequence[Record], keys: set[str]) -> bool:
    return any(key.startswith("OUTPUT:") for key in keys)


# Of lists of objects or of tables, and of one object; the first that fits is taken.
TOOLS = (
    Tool("Label Studio", _has_keys("data", one_of=("annotations", "completions", "predictions")),
         label_studio, "control"),
    Tool("Label Studio", _has_keys("annotation_id", one_of=("annotator", "lead_time")), label_studio_flat),
    Tool("Prodigy", _is_prodigy, prodigy),
    Tool("Argilla", _is_argilla, argilla, "question"),
    Tool("Amazon Mechanical Turk", _has_keys("HITId", "WorkerId", "AssignmentStatus"), mechanical_turk),
    Tool("Toloka", _is_toloka, toloka),
    Tool("Open Images", _has_keys("ImageID", "LabelName", "Confidence"), open_images),
    ROBOFLOW,
    Tool("doccano", _is_doccano, doccano),
)  # fmt: skip
DOCUMENTS = (
    Tool("datumaro", _has_keys("items", "categories"), datumaro),
    Tool("WRENCH", _is_wrench, wrench),
    Tool("peerannot", _is_peerannot, peerannot),
)
