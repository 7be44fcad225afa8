"""The answers of an export: which of them count, and which are left out."""

from __future__ import annotations

import ast
import datetime as dt
import functools
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from hesstune.checks import parse_number, parse_rate
from hesstune.errors import DataError, cut, listed
from hesstune.storage.columns import CsvTable, is_missing, json_cell
from hesstune.storage.files import is_file

Record = Mapping[str, Any]
TEXT_KEYS = ("text", "data", "sentence", "document", "content")
IMAGE_KEYS = ("image", "image_url", "img", "filename", "file_name", "url", "path")
# Who answers, if an export names nobody.
NOBODY = "annotator"
# A number below this many seconds, in 1973, is a duration and no time stamp; one above it is in milliseconds.
FIRST_SECOND, LAST_SECOND = 1e8, 1e11
# Time zones that tools write as letters, in hours.
ZONES = {
    "UTC": 0, "GMT": 0, "EST": -5, "EDT": -4, "CST": -6, "CDT": -5, "MST": -7, "MDT": -6, "PST": -8,
    "PDT": -7,
}  # fmt: skip


@functools.lru_cache(maxsize=1 << 16)
def seconds_of(text: str) -> float | None:
    """Return a time stamp in seconds since 1970, or None if a text is none; without a zone, it is in UTC.

    Time stamps are those of ISO 8601, seconds or milliseconds since 1970, or dates as mail has them.
    """
    number = parse_number(text)
    if number is not None:
        if not FIRST_SECOND <= number < LAST_SECOND * 1000:
            return None
        return number if number < LAST_SECOND else number / 1000
    text = text.strip()
    if not 8 <= len(text) <= 64 or not re.search("[0-9]", text):
        return None
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError:
        from dateutil import parser  # type: ignore[import-untyped]

        try:
            found = parser.parse(text, tzinfos={name: hours * 3600 for name, hours in ZONES.items()})
        except (ValueError, OverflowError, TypeError):
            return None
    try:
        return (found if found.tzinfo else found.replace(tzinfo=dt.UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


class Answer(NamedTuple):
    """One answer of an annotator."""

    example: str  # the example's id
    annotator: str  # who answered: a person, a model or a labeling function
    label: str  # the class
    time: str = ""  # when, as the tool writes it; the newest answer of an annotator on an example counts
    confidence: float | None = None  # the probability that the annotator gave the class, or None
    against: bool = False  # whether the answer says that the example is not of this class


@dataclass
class Export:
    """What an export holds."""

    tool: str  # the tool's name
    # The answers that count, one for each annotator and example
    answers: list[Answer] = field(default_factory=list)
    # Ids of all examples, also of those without an answer, in their order
    examples: dict[str, None] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)  # {id: text}, if the export has texts
    # {id: path or address of the image}, if it has images
    images: dict[str, str] = field(default_factory=dict)
    # {id: name of the part}, if the export has parts, such as train and valid
    parts: dict[str, str] = field(default_factory=dict)
    # {id: class} of examples that the export marks as checked by a person (ground truth, golden)
    checked: dict[str, str] = field(default_factory=dict)
    true: dict[str, str] = field(default_factory=dict)  # {id: class}, for evaluation only
    # How many answers or examples do not count, by reason
    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)  # what was guessed, in sentences

    def add_example(self, example: str, inputs: Record) -> None:
        """Add an example and its text or image."""
        self.examples[example] = None
        for found, keys in ((self.texts, TEXT_KEYS), (self.images, IMAGE_KEYS)):
            value = next((inputs[key] for key in keys if isinstance(inputs.get(key), str)), None)
            if value:
                found[example] = value
                return

    def add(
        self,
        example: str,
        annotator: Any,
        label: Any,
        time: str = "",
        confidence: float | None = None,
        against: bool = False,
    ) -> None:
        """Add an answer; one without a class is counted as empty, and several classes raise DataError."""
        who = "" if annotator is None else cell(annotator)
        if isinstance(label, list | tuple):
            label = label[0] if len(label) == 1 else label or None
        if isinstance(label, list | tuple | dict):
            raise DataError(
                f"example '{cut(example)}' has several classes ({cut(json.dumps(label, default=str))}), and "
                "needs one; multiple choice is not supported: export a question that allows one choice"
            )
        text = cell(label)
        if is_missing(text):
            self.left_out["answers are empty"] += 1
        else:
            self.answers.append(Answer(example, who or NOBODY, text, time, confidence, against))

    def finish(self) -> Export:
        """Keep each annotator's newest answer on an example; use answers against a class if one is left."""
        kept: dict[tuple[str, str], Answer] = {}
        against: dict[tuple[str, str], set[str]] = {}
        replaced = 0
        for answer in self._by_time():
            self.examples.setdefault(answer.example)
            key = answer.example, answer.annotator
            before = kept.get(key)
            if answer.against:
                against.setdefault(key, set()).add(answer.label)
                if before is None or before.label != answer.label:
                    continue
                del kept[key]
            else:
                against.get(key, set()).discard(answer.label)
                kept[key] = answer
            replaced += before is not None
        self.left_out["answers are replaced by a newer one of the same annotator"] += replaced
        classes = {answer.label for answer in self.answers} | set(self.checked.values())
        if len(classes) == 1 and against:
            # Each answer of one class is a yes or a no.
            classes.add(f"not {next(iter(classes))}")
        for key, excluded in against.items():
            rest = classes - excluded
            if key not in kept and excluded and len(rest) == 1:
                kept[key] = Answer(*key, rest.pop())
            elif key not in kept:
                self.left_out["answers reject a class and leave none or several others"] += len(excluded)
        self.answers = list(kept.values())
        answered = {answer.example for answer in self.answers} | self.checked.keys()
        self.left_out["examples have no answer"] = len(self.examples.keys() - answered)
        self.left_out += Counter()  # drops zeros
        return self

    def _by_time(self) -> list[Answer]:
        """Return the answers, the newest of an annotator on an example last; else in their order."""
        of_one: dict[tuple[str, str], list[Answer]] = {}
        for answer in self.answers:
            of_one.setdefault((answer.example, answer.annotator), []).append(answer)
        for answers in of_one.values():
            if len(answers) > 1 and None not in map(seconds_of, (answer.time for answer in answers)):
                answers.sort(key=lambda answer: seconds_of(answer.time) or 0.0)
        return [answer for answers in of_one.values() for answer in answers]

    def examples_table(self, name: str) -> CsvTable:
        """Return the examples as a table: id, text or image if every example has one, true_label if known."""
        path = Path(name)
        ids, folder = list(self.examples), path if path.is_dir() else path.parent
        columns = {"id": ids}
        if self.texts.keys() == self.examples.keys():
            columns["text"] = [self.texts[example] for example in ids]
        elif self.images.keys() == self.examples.keys():
            images = [self.images[example] for example in ids]
            if all(is_file(folder / image) for image in images):
                columns["image"] = images
        if self.parts:
            columns["split"] = [self.parts.get(example, "train") for example in ids]
        if self.true:
            columns["true_label"] = [self.true.get(example, "") for example in ids]
        return CsvTable.of(columns, name, folder)

    def table(self, name: str) -> CsvTable:
        """Return the answers as a table with a row for each vote: columns task, worker, label, confidence."""
        if not self.answers:
            raise DataError(f"{name} has no answer that counts: {listed(self.sentences())}")
        columns = {
            "task": [answer.example for answer in self.answers],
            "worker": [answer.annotator for answer in self.answers],
            "label": [answer.label for answer in self.answers],
        }
        if any(answer.confidence is not None for answer in self.answers):
            columns["confidence"] = [
                "" if answer.confidence is None else str(answer.confidence) for answer in self.answers
            ]
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
        return [read, *self.notes, *(checked if self.checked else []), *left]


def merged(exports: Mapping[str, Export]) -> Export:
    """Return the answers of several files of one tool, {path below a folder: what it holds}, as one export.

    Files that share examples are annotators, if they name none. Files that share none are parts of a data
    set, and the names of examples begin with the part's.
    """
    found = Export(next(iter(exports.values())).tool)
    counts = Counter(example for export in exports.values() for example in export.examples)
    names = _short_names(list(exports))
    are_parts = all(name.casefold() in PART_NAMES for name in names.values())
    is_shared = max(counts.values(), default=0) > 1 and not are_parts
    for path, export in exports.items():
        folder = Path(path).parent.as_posix()
        start = "" if folder == "." else f"{folder}/"
        ids = {e: e if is_shared else f"{names[path]}/{e}" for e in export.examples}
        found.examples |= dict.fromkeys(ids.values())
        found.texts |= {ids[e]: text for e, text in export.texts.items()}
        found.images |= {ids[e]: start + image for e, image in export.images.items()}
        found.checked |= {ids[e]: label for e, label in export.checked.items() if e in ids}
        found.true |= {ids[e]: label for e, label in export.true.items() if e in ids}
        if are_parts:
            found.parts |= dict.fromkeys(ids.values(), names[path])
        for answer in export.answers:
            who = names[path] if is_shared and answer.annotator == NOBODY else answer.annotator
            found.answers.append(answer._replace(example=ids[answer.example], annotator=who))
        found.left_out += export.left_out
    return found.finish()


# Names of files and folders that are parts of a data set.
PART_NAMES = frozenset({"train", "training", "valid", "val", "validation", "dev", "test", "testing"})


def _short_names(paths: list[str]) -> dict[str, str]:
    """Return a short name for each file: its stem, or its folder if stems repeat."""
    stems = [Path(path).stem for path in paths]
    if len(set(stems)) < len(paths):
        stems = [Path(path).parent.as_posix() for path in paths]
    if len(set(stems)) < len(paths):
        stems = paths
    return dict(zip(paths, stems, strict=True))


def cell(value: Any) -> str:
    """Return a value as the text of a cell, without spaces around."""
    return json_cell(value).strip()


def probability(value: Any) -> float | None:
    """Return a probability above 0, or None: tools write 0 if a model gave none."""
    number = parse_rate(cell(value))
    return number if number is not None and 0 < number <= 1 else None


def parsed(value: Any) -> Any:
    """Return the list or object that a text holds as JSON or as Python writes it; other values as they are.

    A list as numpy writes it, which does not separate its items, raises DataError.
    """
    text = value.strip() if isinstance(value, str) else ""
    if text[:1] not in ("[", "{") or text[-1:] not in ("]", "}"):
        return value
    if re.search(r"""['"]\s+['"]""", text):
        raise DataError(f"{cut(text)} is a list as numpy prints it; export lists as JSON, or JSON Lines")
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
        if isinstance(found, list | dict):
            return found
    return value
