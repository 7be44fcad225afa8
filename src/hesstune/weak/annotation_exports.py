"""Exports of annotation tools and crowds, read as votes: one annotator, one example, one class.

Every tool has a reader below. It is chosen by the columns or keys that only this tool writes. It returns the
answers that count, and counts the others.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from hesstune.checks import parse_number, readable_file
from hesstune.errors import DataError, cut, listed
from hesstune.storage.files import one_line, reading
from hesstune.storage.tables import JSON_LINES, CsvTable, is_missing, json_cell

Record = Mapping[str, Any]
TEXT_KEYS = ("text", "data", "sentence", "document", "content")
# So many records show which tool wrote an export.
SHOWN = 200
IMAGE_KEYS = ("image", "image_url", "img", "filename", "file_name", "url", "path")


class Answer(NamedTuple):
    """One answer of an annotator.

    Attributes:
        example: The example's id.
        annotator: Who answered: a person, a model or a labeling function.
        label: The class.
        time: When, as the tool writes it; the newest answer of an annotator on an example counts.
        confidence: The probability that the annotator gave the class, or None.
        against: Whether the answer says that the example is not of this class.
    """

    example: str
    annotator: str
    label: str
    time: str = ""
    confidence: float | None = None
    against: bool = False


@dataclass
class Export:
    """What an export holds.

    Attributes:
        tool: The tool's name.
        answers: The answers that count, one for each annotator and example.
        examples: Ids of all examples, also of those without an answer, in their order.
        texts: {id: text}, if the export has texts.
        images: {id: path or address of the image}, if it has images.
        checked: {id: class} of examples that the export marks as checked by a person (ground truth, golden).
        true: {id: class}, for evaluation only.
        left_out: How many answers or examples do not count, by reason.
    """

    tool: str
    answers: list[Answer] = field(default_factory=list)
    examples: dict[str, None] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)
    checked: dict[str, str] = field(default_factory=dict)
    true: dict[str, str] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)

    def add_example(self, example: str, inputs: Record) -> None:
        """Add an example and its text or image."""
        self.examples[example] = None
        for found, keys in ((self.texts, TEXT_KEYS), (self.images, IMAGE_KEYS)):
            value = next((inputs[key] for key in keys if isinstance(inputs.get(key), str)), None)
            if value:
                found[example] = value
                return

    def add(self, example: str, annotator: Any, label: Any, **more: Any) -> None:
        """Add an answer; one without a class is counted as empty."""
        who = "" if annotator is None else str(annotator)
        if isinstance(label, list | dict):
            raise DataError(
                f"example '{cut(example)}' has several classes ({cut(json.dumps(label))}), and needs one; "
                "export a question that allows one choice"
            )
        text = _cell(label)
        if is_missing(text):
            self.left_out["answers are empty"] += 1
        else:
            self.answers.append(Answer(example, who or "annotator", text, **more))

    def finish(self) -> Export:
        """Keep each annotator's newest answer on an example; use answers against a class if one is left."""
        newest: dict[tuple[str, str], Answer] = {}
        given = 0
        against: dict[tuple[str, str], set[str]] = {}
        for answer in self.answers:
            self.examples.setdefault(answer.example)
            key = answer.example, answer.annotator
            if answer.against:
                against.setdefault(key, set()).add(answer.label)
                continue
            given += 1
            if key not in newest or answer.time >= newest[key].time:
                newest[key] = answer
        self.left_out["answers are replaced by a newer one of the same annotator"] = given - len(newest)
        classes = {answer.label for answer in self.answers} | set(self.checked.values())
        for key, excluded in against.items():
            rest = classes - excluded
            if key not in newest and len(rest) == 1:
                newest[key] = Answer(*key, rest.pop())
            elif key not in newest:
                self.left_out["answers reject a class and leave none or several others"] += len(excluded)
        self.answers = list(newest.values())
        answered = {answer.example for answer in self.answers}
        self.left_out["examples have no answer"] = len(self.examples.keys() - answered - self.checked.keys())
        self.left_out += Counter()  # drops zeros
        return self

    def examples_table(self, name: str) -> CsvTable:
        """Return the examples as a table: id, text or image if every example has one, true_label if known."""
        ids, folder = list(self.examples), Path(name).parent
        columns = {"id": ids}
        if self.texts.keys() == self.examples.keys():
            columns["text"] = [self.texts[example] for example in ids]
        elif self.images.keys() == self.examples.keys():
            images = [self.images[example] for example in ids]
            if all((folder / image).is_file() for image in images):
                columns["image"] = images
        if self.true:
            columns["true_label"] = [self.true.get(example, "") for example in ids]
        return CsvTable.of(columns, name, folder)

    def table(self, name: str) -> CsvTable:
        """Return the answers as a table with a row for each vote: columns task, worker, label."""
        rows = [(answer.example, answer.annotator, answer.label) for answer in self.answers]
        if not rows:
            raise DataError(f"{name} has no answer that counts: {listed(self.sentences())}")
        columns = dict(zip(("task", "worker", "label"), map(list, zip(*rows, strict=True)), strict=True))
        return replace(CsvTable.of(columns, name, Path(name).parent), notes=tuple(self.sentences()))

    def sentences(self) -> list[str]:
        """Say how the export was read, and what was left out."""
        annotators = {answer.annotator for answer in self.answers}
        read = (
            f"read as an export of {self.tool}: {len(self.answers):,} votes of {len(annotators):,} "
            f"annotators on {len(self.examples):,} examples"
        )
        checked = [f"{len(self.checked)} examples are marked as checked: their labels count as true"]
        left = [f"{count:,} {reason}; they are left out" for reason, count in self.left_out.items()]
        unused = sum(answer.confidence is not None for answer in self.answers)
        left += [f"the confidences of {unused:,} votes are not used"] if unused else []
        return [read, *(checked if self.checked else []), *left]


def _cell(value: Any) -> str:
    return json_cell(value).strip()


def _number(value: Any) -> float | None:
    """Return a probability, or None."""
    number = parse_number(_cell(value))
    return number if number is not None and 0 <= number <= 1 else None


def _one_question(found: Mapping[str, Any], asked: str | None, what: str) -> str:
    """Return the only question of an export, or the one that was asked for."""
    if asked is not None:
        if asked not in found:
            raise DataError(f"there is no {what} '{cut(asked)}'; there are {listed(found) or 'none'}")
        return asked
    if len(found) != 1:
        has = f"several {what}s ({listed(found)})" if found else f"no {what} with one class an example"
        raise DataError(f"the export has {has}; name one with --label-column")
    return next(iter(found))


# Label Studio


def _label_studio(records: Sequence[Record], asked: str | None) -> Export:
    export = Export("Label Studio")
    rows: list[tuple[str, Any, str, Any, str, bool]] = []
    for at, task in enumerate(records):
        example = _cell(task.get("id", at))
        export.add_example(example, task.get("data") or {})
        for annotation in [*(task.get("annotations") or []), *(task.get("completions") or [])]:
            by = annotation.get("completed_by")
            by = (by.get("email") or by.get("id")) if isinstance(by, dict) else by
            if annotation.get("was_cancelled"):
                export.left_out["answers were cancelled"] += 1
                continue
            time = str(annotation.get("updated_at") or annotation.get("created_at") or "")
            choices = _choices(annotation)
            export.left_out["answers are empty"] += not choices
            truth = bool(annotation.get("ground_truth"))
            rows += [(example, by, time, label, control, truth) for control, label in choices.items()]
        for prediction in task.get("predictions") or []:
            by = prediction.get("model_version") or "prediction"
            rows += [
                (example, by, "", label, control, False) for control, label in _choices(prediction).items()
            ]
    control = _one_question({row[4]: None for row in rows}, asked, "control")
    for example, by, time, label, own, truth in rows:
        if own == control:
            export.add(example, by, label, time=time)
            if truth:
                export.checked[example] = _cell(label)
    return export


def _choices(annotation: Record) -> dict[str, Any]:
    """Return {control: class} of an annotation; several classes of one control stay a list."""
    found = {}
    for item in annotation.get("result") or []:
        choices = (item.get("value") or {}).get("choices")
        if choices:
            found[str(item.get("from_name"))] = choices[0] if len(choices) == 1 else choices
    return found


STUDIO = {
    "id",
    "annotator",
    "annotation_id",
    "created_at",
    "updated_at",
    "lead_time",
    "agreement",
    "inner_id",
}


def _label_studio_flat(records: Sequence[Record], asked: str | None) -> Export:
    """Read JSON-MIN, CSV and TSV: one row for each annotation, and one for each task without any."""
    export = Export("Label Studio")
    answered = [r for r in records if not is_missing(_cell(r.get("annotation_id")))]
    rest = [r for r in records if is_missing(_cell(r.get("annotation_id")))]
    names = dict.fromkeys(key for record in answered for key in record if key not in STUDIO)
    # Answers are few classes, and tasks without an annotation have none.
    controls = {}
    for name in names:
        cells = [_cell_or_choices(r.get(name)) for r in answered]
        values = {cell for cell in cells if not is_missing(cell)}
        if not any(_cell(r.get(name)) for r in rest) and len(values) <= max(2, len(answered) // 2):
            controls[name] = values
    for key in TEXT_KEYS + IMAGE_KEYS:
        if len(controls) > 1:
            controls.pop(key, None)
    named = [name for name in ("choice", "sentiment", "label") if name in controls]
    if asked is None and len(controls) > 1 and len(named) == 1:
        controls = {named[0]: controls[named[0]]}
    control = asked if asked in names else _one_question(controls, asked, "column of answers")
    for record in records:
        export.add_example(_cell(record.get("id")), record)
    for record in answered:
        value = record.get(control)
        if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
            value = json.loads(value)
        if isinstance(value, dict):
            value = value.get("choices", value)
        time = _cell(record.get("updated_at") or record.get("created_at"))
        export.add(_cell(record.get("id")), _cell(record.get("annotator")), value, time=time)
    return export


def _cell_or_choices(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else _cell(value)


# Argilla


def _argilla(records: Sequence[Record], asked: str | None) -> Export:
    """Read records of Argilla 2 (nested and flat), of the FeedbackDataset of 1, and of version 0."""
    export = Export("Argilla")
    rows: list[tuple[str, str, Any, Any, Any]] = []  # question, example, annotator, label, status
    models: list[tuple[str, str, Any, Any, Any]] = []  # question, example, model, label, score
    for at, record in enumerate(records):
        example = _cell(record.get("id") or record.get("external_id") or record.get("_server_id") or at)
        export.add_example(example, record.get("fields") or record.get("inputs") or record)
        for question, by, label, status in _argilla_responses(record):
            rows.append((question, example, by, label, status))
        for question, by, label, score in _argilla_suggestions(record):
            models.append((question, example, by, label, score))
    question = _one_question({row[0]: None for row in [*rows, *models]}, asked, "question")
    for own, example, by, label, status in rows:
        if own != question:
            continue
        if status in ("submitted", "Validated", None):
            export.add(example, by, label)
        else:
            export.left_out[f"answers have the status {cut(status).lower()}"] += 1
    for own, example, by, label, score in models:
        if own == question:
            export.add(example, by, label, confidence=_number(score))
    return export


def _argilla_responses(record: Record) -> Iterable[tuple[str, Any, Any, Any]]:
    """Yield (question, annotator, value, status) of a record."""
    if "annotation_agent" in record:
        if record.get("annotation") is not None:
            yield "annotation", record.get("annotation_agent"), record["annotation"], record.get("status")
        return
    responses = record.get("responses")
    for question, answers in (responses if isinstance(responses, dict) else record).items():
        if isinstance(answers, dict) and {"user_id", "value"} <= answers.keys():  # a column of lists
            count = len(answers["value"])
            status = answers.get("status") or [None] * count
            for by, value, own in zip(answers["user_id"], answers["value"], status, strict=True):
                yield question, by, value, own
        elif isinstance(answers, list) and all(isinstance(a, dict) and "value" in a for a in answers):
            for answer in answers:
                yield question, answer.get("user_id"), answer["value"], answer.get("status")
        elif question.endswith(".responses") and isinstance(answers, list):
            users = record.get(f"{question}.users") or [None] * len(answers)
            status = record.get(f"{question}.status") or [None] * len(answers)
            for by, value, own in zip(users, answers, status, strict=True):
                yield question.removesuffix(".responses"), by, value, own


def _argilla_suggestions(record: Record) -> Iterable[tuple[str, Any, Any, Any]]:
    """Yield (question, model, value, score) of a record."""
    if record.get("prediction") and "prediction_agent" in record:
        best = max(record["prediction"], key=lambda p: p.get("score") or 0)
        yield "annotation", record["prediction_agent"] or "prediction", best.get("label"), best.get("score")
    suggestions = record.get("suggestions")
    if isinstance(suggestions, dict):
        for question, own in suggestions.items():
            if isinstance(own, dict) and own.get("value") is not None:
                yield question, own.get("agent") or "suggestion", own["value"], own.get("score")
    for key, value in record.items():
        for suffix in (".suggestion", "-suggestion"):
            if key.endswith(suffix) and value is not None:
                more = record.get(f"{key}-metadata") or {}
                agent = record.get(f"{key}.agent") or more.get("agent") or "suggestion"
                yield key.removesuffix(suffix), agent, value, record.get(f"{key}.score", more.get("score"))


# Prodigy, doccano


def _prodigy(records: Sequence[Record], asked: str | None) -> Export:
    export = Export("Prodigy")
    for record in records:
        meta: Record = record.get("meta") or {}
        example = _cell(record.get("id") or meta.get("id") or record.get("_input_hash"))
        export.add_example(example, record)
        by = record.get("_annotator_id") or record.get("_session_id")
        time = _cell(record.get("_timestamp"))
        time = time if parse_number(time) is None else time.rjust(20, "0")
        if record["answer"] == "ignore":
            export.left_out["answers are 'ignore'"] += 1
        elif "options" in record or isinstance(record.get("accept"), list):
            accepted = record.get("accept") or []
            if record["answer"] == "reject":
                export.left_out["answers reject a choice"] += 1
            else:
                export.add(example, by, accepted[0] if len(accepted) == 1 else accepted or None, time=time)
        else:
            export.add(example, by, record.get("label"), time=time, against=record["answer"] == "reject")
    return export


def _doccano(records: Sequence[Record], asked: str | None) -> Export:
    export = Export("doccano")
    for at, record in enumerate(records):
        example = _cell(record.get("id", at))
        export.add_example(example, record)
        labels = record.get("label", record.get("labels"))
        if isinstance(labels, str) and "#" in labels:
            labels = labels.split("#")
        if isinstance(labels, list):
            labels = (labels[0] if len(labels) == 1 else labels) if labels else None
        export.add(example, record.get("user"), labels)
    return export


# Crowds


def _mechanical_turk(records: Sequence[Record], asked: str | None) -> Export:
    export = Export("Amazon Mechanical Turk")
    answers = {key.removeprefix("Answer."): None for key in records[0] if key.startswith("Answer.")}
    # A radio button is written as one column for each class, true or false.
    groups: dict[str, list[str]] = {}
    for name in answers:
        cells = {_cell(r.get(f"Answer.{name}")).lower() for r in records}
        if "." in name and cells <= {"true", "false", ""}:
            groups.setdefault(name.rpartition(".")[0], []).append(name)
    questions = {n: None for n in answers if not any(n in own for own in groups.values())} | dict.fromkeys(
        groups
    )
    if asked is None and len(questions) > 1:
        few = {n: None for n in questions if n in groups or _is_class_like(records, f"Answer.{n}")}
        questions = few or questions
    question = _one_question(questions, asked.removeprefix("Answer.") if asked else None, "answer")
    inputs = [key for key in records[0] if key.startswith("Input.")]
    for record in records:
        given = {key.removeprefix("Input."): record[key] for key in inputs}
        example = _cell(given.get("id") or record["HITId"])
        export.add_example(example, given)
        if record["AssignmentStatus"].strip().lower() == "rejected":
            export.left_out["answers were rejected"] += 1
            continue
        label: Any = record.get(f"Answer.{question}")
        if question in groups:
            chosen = [
                n.rpartition(".")[2] for n in groups[question] if record[f"Answer.{n}"].lower() == "true"
            ]
            label = chosen[0] if len(chosen) == 1 else chosen or None
        export.add(example, record["WorkerId"], label, time=_cell(record.get("SubmitTime")))
    return export


def _is_class_like(records: Sequence[Record], key: str) -> bool:
    values = {_cell(record.get(key)) for record in records} - {""}
    return bool(values) and len(values) <= max(2, len(records) // 2)


def _toloka(records: Sequence[Record], asked: str | None) -> Export:
    export = Export("Toloka")
    columns = list(records[0])
    outputs = {key.removeprefix("OUTPUT:"): None for key in columns if key.startswith("OUTPUT:")}
    if asked is None and len(outputs) > 1:
        outputs = {n: None for n in outputs if _is_class_like(records, f"OUTPUT:{n}")} or outputs
    question = _one_question(outputs, asked.removeprefix("OUTPUT:") if asked else None, "output")
    inputs = [key for key in columns if key.startswith("INPUT:")]
    ids: dict[tuple[str, ...], str] = {}
    for at, record in enumerate(records):
        given = {key.removeprefix("INPUT:"): record[key] for key in inputs}
        own = _cell(given.get("id") or record.get("ASSIGNMENT:task_id") or at)
        example = ids.setdefault(tuple(given.values()), own) if given else own
        export.add_example(example, given)
        golden = _cell(record.get(f"GOLDEN:{question}"))
        if golden:
            export.checked[example] = golden
        status = _cell(record.get("ASSIGNMENT:status")).upper()
        if status in ("REJECTED", "SKIPPED", "EXPIRED", "ACTIVE"):
            export.left_out[f"answers were {status.lower()}"] += 1
            continue
        time = _cell(record.get("ASSIGNMENT:submitted") or record.get("ASSIGNMENT:started"))
        confidence = _number(record.get(f"CONFIDENCE:{question}"))
        by = record.get("ASSIGNMENT:worker_id") or "aggregated"
        export.add(example, by, record[f"OUTPUT:{question}"], time=time, confidence=confidence)
    return export


def _open_images(records: Sequence[Record], asked: str | None) -> Export:
    """Read image-level labels: people verify a class as present (1) or absent (0); models give a rate."""
    export = Export("Open Images")
    present: dict[tuple[str, str], dict[str, float]] = {}
    for record in records:
        image, by, name = record["ImageID"], record.get("Source") or "annotator", record["LabelName"]
        export.add_example(image, {"image": image})
        confidence = _number(record["Confidence"])
        if confidence is None:
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


# Documents


def _datumaro(document: Record, asked: str | None) -> Export:
    """Read the JSON of datumaro, which CVAT exports: annotations of type `label`."""
    export = Export("datumaro")
    names = [entry["name"] for entry in document["categories"]["label"]["labels"]]
    for item in document["items"]:
        path = (item.get("image") or item.get("media") or {}).get("path") or item["id"]
        export.add_example(item["id"], {"image": path})
        found = [a["label_id"] for a in item.get("annotations") or [] if a.get("type") == "label"]
        other = len(item.get("annotations") or []) - len(found)
        export.left_out["annotations are boxes, masks or other shapes"] += other
        labels = [names[i] for i in found]
        if labels:
            export.add(item["id"], None, labels[0] if len(labels) == 1 else labels)
    return export


def _wrench(document: Record, asked: str | None) -> Export:
    export = Export("WRENCH")
    for example, record in document.items():
        export.add_example(example, record.get("data") or {})
        if record.get("label") is not None:
            export.true[example] = _cell(record["label"])
        for j, label in enumerate(record["weak_labels"]):
            if label != -1:
                export.add(example, f"function{j}", label)
    return export


def _peerannot(document: Record, asked: str | None) -> Export:
    export = Export("peerannot")
    for example, votes in document.items():
        export.examples[example] = None
        for annotator, label in votes.items():
            export.add(example, annotator, None if label == -1 else label)
    return export


# Which reader

Reader = Callable[[Any, str | None], Export]


def _keys(records: Sequence[Record]) -> set[str]:
    return {key for record in records[:SHOWN] for key in record}


def _is_argilla(records: Sequence[Record], keys: set[str]) -> bool:
    def of_users(value: Any) -> bool:
        if isinstance(value, dict):
            return {"user_id", "value"} <= value.keys()
        return isinstance(value, list) and any(
            isinstance(v, dict) and {"user_id", "value"} <= v.keys() for v in value
        )

    nested = {"fields", "responses"} <= keys or {"annotation", "annotation_agent", "prediction"} <= keys
    flat = any(key.endswith((".responses.users", ".responses.status")) for key in keys)
    return nested or flat or any(of_users(value) for record in records[:SHOWN] for value in record.values())


def _reader_of_records(records: Sequence[Record]) -> Reader | None:
    """Return the reader of a list of objects or of a table's rows, or None for a plain table."""
    keys = _keys(records)
    if "data" in keys and keys & {"annotations", "completions"}:
        return _label_studio
    if "annotation_id" in keys and keys & {"annotator", "lead_time"}:
        return _label_studio_flat
    if "answer" in keys and keys & {"_input_hash", "_task_hash", "_session_id"}:
        return _prodigy
    if _is_argilla(records, keys):
        return _argilla
    if {"HITId", "WorkerId", "AssignmentStatus"} <= keys:
        return _mechanical_turk
    if any(key.startswith("OUTPUT:") for key in keys):
        return _toloka
    if {"ImageID", "LabelName", "Confidence"} <= keys:
        return _open_images
    lists = any(isinstance(r.get(key), list) for r in records[:SHOWN] for key in ("label", "labels"))
    joined = {"id", "data", "label"} <= keys
    return _doccano if "id" in keys and (lists or joined) else None


def _reader_of_document(document: Record) -> Reader | None:
    values = list(document.values())
    if {"items", "categories"} <= document.keys():
        return _datumaro
    if not values or not all(isinstance(value, dict) for value in values):
        return None
    if all("weak_labels" in value for value in values):
        return _wrench
    plain = all(isinstance(label, str | int) for value in values for label in value.values())
    return _peerannot if plain else None


def read_records(records: Any, where: str, label_column: str | None = None) -> Export | None:
    """Read a parsed export: a list of objects, or one object.

    Args:
        records: What the file holds.
        where: The file, for messages.
        label_column: The question, control or output that holds the class, if the export has several.

    Returns:
        The votes, or None if this is no export of a known tool.

    Raises:
        DataError: If an example has several classes, or the question is not clear.
    """
    if isinstance(records, dict):
        reader = _reader_of_document(records)
    elif records and isinstance(records, list) and all(isinstance(record, Mapping) for record in records):
        reader = _reader_of_records(records)
    else:
        reader = None
    if reader is None:
        return None
    try:
        return reader(records, label_column).finish()
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        tool = reader.__name__.removesuffix("_flat").strip("_").replace("_", " ")
        raise DataError(
            f"{where} looks like an export of {tool}, but cannot be read: {one_line(error)}"
        ) from error


def read_export(
    path: str | Path, label_column: str | None = None, table: CsvTable | None = None
) -> Export | None:
    """Read an export of an annotation tool from a file: JSON, JSON Lines, CSV or TSV.

    Args:
        path: The file.
        label_column: See `read_records`.
        table: The rows of a CSV or TSV file, which was read already.

    Returns:
        The votes, or None if this is no export of a known tool.

    Raises:
        DataError: If the file is no JSON; or see `read_records`.
    """
    path = readable_file(path, "the file of votes")
    if table is not None:
        known = _reader_of_records([dict.fromkeys(table.columns, "")])
        return read_records(list(table.rows()), str(path), label_column) if known else None
    with reading(path, "JSON", DataError), path.open(encoding="utf-8-sig") as file:
        if path.suffix.lower() not in JSON_LINES:
            return read_records(json.load(file), str(path), label_column)
        first = [json.loads(line) for line in islice(file, SHOWN) if line.strip()]
        if not all(isinstance(record, dict) for record in first) or _reader_of_records(first) is None:
            return None
        rest = [json.loads(line) for line in file if line.strip()]
        return read_records([*first, *rest], str(path), label_column)
