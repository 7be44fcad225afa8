"""The review of suspected label errors: decisions applied to the data, and tasks for Label Studio."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from hesstune.data.decisions import (
    CHANGE,
    CONTENT,
    CONTROL,
    DECISION,
    EXAMPLE_ID,
    KEEP,
    REMOVE,
    REMOVE_CHOICE,
    decisions_in,
    read_checked_table,
)
from hesstune.data.examples import Texts
from hesstune.data.images import FileImages
from hesstune.data.labels import CHECKED, GIVEN, GIVEN_LABEL, SOURCE
from hesstune.errors import DataError, RunError, listed
from hesstune.labeling.sources import Target
from hesstune.storage.columns import CsvTable, as_cell
from hesstune.storage.files import made_folder, replace_files
from hesstune.storage.tables import write_csv
from hesstune.weak.vote_files import SOFT_PREFIX, in_order

if TYPE_CHECKING:
    from pandas import DataFrame

# The label before the review, in the data that `ReviewedLabels` writes.
BEFORE = "label_before_review"
# Columns that describe a label that a decision may have replaced.
ESTIMATES = ("likely_label", "wrong_probability", "clean_label", GIVEN_LABEL, SOURCE, BEFORE)
# The model that predictions for Label Studio are from, and the tag that shows a task's image or text.
MODEL_VERSION, SHOWN = "hesstune clean", "example"


class Suspect(NamedTuple):
    """A suspected label error."""

    at: int  # its index among the examples of `LabelIssues`
    id: str  # its id
    given: str  # the label as given
    suggested: str  # the most probable class if the given label is wrong
    p_wrong: float  # the probability that the given label is wrong
    p_suggested: float  # the probability of the suggested class
    content: str  # digest of its image or text, or ""


# Decisions applied


@dataclass(frozen=True)
class ReviewedLabels:
    """Examples with the labels that a person decided on, without the examples that were removed.

    Attributes:
        target: All examples, removed ones included.
        rows: (M,) indices of the examples that stay.
        labels: (M,) class names; "" if an example has no label.
        sources: (M,) where each label comes from: `checked` if a person kept or changed it.
        counts: How many labels were kept, changed, removed (with their examples) and undecided, and how many
            decisions are on examples that were not found.
        notes: What a reader should know, in sentences.
    """

    target: Target
    rows: NDArray[np.int64]
    labels: list[str]
    sources: list[str]
    counts: dict[str, int]
    notes: list[str]

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def ids(self) -> list[str]:
        """The ids of the examples that stay."""
        return [self.target.ids[n] for n in self.rows]

    def columns(self, folder: Path) -> dict[str, list[str]]:
        """Return the columns of a table in a folder, for `csv:`: the data's, with the labels decided on.

        Probabilities and other columns that `hesstune clean` wrote are left out: they are of labels before.
        """
        target, whole = self.target, dict[str, list[str]]()
        true = target.true or [""] * len(target)
        if target.table is None:
            whole = {"id": target.ids, **target.columns(folder, ())}
            whole |= {} if target.parts is None else {"split": target.parts}
        else:
            soft = {f"{SOFT_PREFIX}{name}" for name in true}
            written = {} if target.paths is None else {"image": target.columns(folder, ())["image"]}
            own = {name: target.table.cells(name) for name in target.table.columns}
            whole = {n: c for n, c in own.items() if n not in soft and n not in ESTIMATES} | written
            whole = whole if "id" in whole else {"id": target.ids, **whole}
        found = {name: [cells[n] for n in self.rows] for name, cells in whole.items()}
        before = [true[n] for n in self.rows]
        return found | {"label": self.labels, SOURCE: self.sources, BEFORE: before}

    def to_frame(self) -> DataFrame:
        """Return a pandas DataFrame with a row for each example that stays, in the order of the data."""
        from pandas import DataFrame

        return DataFrame(self.columns(Path()))

    def save(self, path: str | Path, overwrite: bool = False) -> int:
        """Write the examples to a CSV file for `csv:PATH`; return how many.

        Raises:
            RunError: If the file exists and `overwrite` is not set, it is the data itself, or it cannot be
                written.
        """
        path, table = Path(path), self.target.table
        check_outputs([path], [] if table is None else [Path(table.name)], overwrite)
        made_folder(path.parent)
        columns = self.columns(path.parent)
        write_csv(path, list(columns), zip(*columns.values(), strict=True))
        return len(self)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready summary."""
        return {"examples": len(self.target), **self.counts, "notes": self.notes}


def apply_decisions(
    target: Target, decisions: str | Path | DataFrame, contents: Mapping[str, str] | None = None
) -> ReviewedLabels:
    """Apply the decisions of a review to the labels of a data set.

    They are a file that the page of `hesstune clean` downloaded, an export of Label Studio, or a DataFrame
    with the same columns. `contents` are {id: digest}; default: computed from the data. DataError is raised
    if the data has no labels, or decisions are of other data or contradict each other.
    """
    if target.true is None:
        raise DataError("the data has no labels, so there is nothing that decisions could be applied to")
    table = _decisions_table(decisions)
    if DECISION not in table:
        raise DataError(
            f"{table.name} holds no decisions: it needs a column '{DECISION}', and has "
            f"{listed(table.columns)}; labels that a person filled in are for --checked-labels"
        )
    found = decisions_in(table, in_order({name for name in target.true if name}))
    place = {name: n for n, name in enumerate(target.ids)}
    known = [name for name in found.by_id if name in place]
    digests = contents_of(target, known) if contents is None else contents
    among = found.among({name: (target.true[place[name]], digests.get(name, "")) for name in known})
    labels = list(target.true)
    sources = [own or GIVEN for own in target.sources or [""] * len(target)]
    sources = [own if label else "" for own, label in zip(sources, labels, strict=True)]
    for name, own in among.items():
        labels[place[name]], sources[place[name]] = own.label, CHECKED
    rows = [n for n, name in enumerate(target.ids) if name not in among or name not in found.removed]
    decided = [own.decision for own in among.values()]
    counts = {
        "kept": decided.count(KEEP),
        "changed": decided.count(CHANGE),
        "removed": decided.count(REMOVE),
        "undecided": len(target) - len(among),
        "not_found": len(found.by_id) - len(among),
    }
    return ReviewedLabels(
        target,
        np.array(rows, dtype=np.int64),
        [labels[n] for n in rows],
        [sources[n] for n in rows],
        counts,
        [*target.notes, *found.notes, *found.missing_note(among)],
    )


def _decisions_table(decisions: str | Path | DataFrame) -> CsvTable:
    if isinstance(decisions, str | Path):
        return read_checked_table(decisions, "the file of decisions")
    cells = {str(name): [as_cell(cell) for cell in decisions[name].tolist()] for name in decisions.columns}
    return CsvTable.of(cells, "the DataFrame of decisions", first=0)


def contents_of(target: Target, names: Sequence[str]) -> dict[str, str]:
    """Return {id: digest} of some examples' images or texts, in hexadecimal digits; {} without either."""
    place = {name: n for n, name in enumerate(target.ids)}
    rows = [place[name] for name in names]
    if target.texts is not None:
        source: Texts | FileImages = Texts([target.texts[n] for n in rows])
    elif target.paths is not None:
        source = FileImages([target.paths[n] for n in rows], 8)
    else:
        return {}
    digests = source.digests(np.arange(len(rows)))
    return {name: row.tobytes().hex() for name, row in zip(names, digests, strict=True)}


def check_outputs(outputs: Iterable[Path], inputs: Iterable[Path], overwrite: bool) -> None:
    """Raise RunError if a file to write is a folder, is there already, is written twice, or is an input."""
    read, written = [path for path in inputs if path.exists()], set[str]()
    for path in outputs:
        if path.is_dir():
            raise RunError(f"{path} is a folder; give the path of a file")
        if str(path.absolute()) in written:
            raise RunError(f"{path} would be written twice; give each file a path of its own")
        written.add(str(path.absolute()))
        if not path.exists():
            continue
        if any(path.samefile(own) for own in read):
            raise RunError(f"{path} is read by this command and is not overwritten; choose another path")
        if not overwrite:
            raise RunError(f"{path} exists; choose another path or give --overwrite")


# Label Studio


def config_path(tasks: Path) -> Path:
    """Return the path of the labelling configuration beside a file of tasks."""
    return tasks.with_suffix(".xml")


def write_label_studio(
    path: Path, suspects: Sequence[Suspect], classes: Sequence[str], target: Target, overwrite: bool = False
) -> list[str]:
    """Write suspected label errors as tasks for Label Studio, and their configuration NAME.xml.

    A task has the example's text or image, its label as given, and a prediction: the suggested class, with
    its probability as score. How to import the tasks is returned, in sentences.

    Raises:
        DataError: If a class is named like the choice that removes.
        RunError: If a file exists and `overwrite` is not set, or cannot be written.
    """
    beside = config_path(path)
    if beside == path:
        raise RunError(f"{path} is the name of the labelling configuration; give tasks a name in .json")
    check_outputs([path, beside], [], overwrite)
    if REMOVE_CHOICE in classes:
        raise DataError(
            f"a class is named '{REMOVE_CHOICE}', which stands for removing; give it another name"
        )
    place = {name: n for n, name in enumerate(target.ids)}
    root = _common_folder(target, [place[own.id] for own in suspects])
    tasks = [
        {"data": _studio_data(own, target, place[own.id], root), "predictions": [_studio_prediction(own)]}
        for own in suspects
    ]
    made_folder(path.parent)
    replace_files(
        {
            path: lambda part: part.write_text(json.dumps(tasks, indent=1), encoding="utf-8"),
            beside: lambda part: part.write_text(labelling_config(target, classes), encoding="utf-8"),
        }
    )
    notes = [
        f"Label Studio: paste {beside} into the project's labelling interface (Code), then import {path}"
    ]
    if root is not None:
        notes.append(
            "Label Studio shows the images if it is started with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED="
            f"true and LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={root}, and the project has that folder as "
            "local storage"
        )
    return notes


def _common_folder(target: Target, rows: Sequence[int]) -> Path | None:
    """Return the folder below which all the images are; None if the examples are no image files."""
    if target.paths is None or not rows:
        return None
    return Path(os.path.commonpath([target.paths[n].absolute().parent for n in rows]))


def _studio_data(own: Suspect, target: Target, n: int, root: Path | None) -> dict[str, Any]:
    data: dict[str, Any] = {
        EXAMPLE_ID: own.id,
        GIVEN_LABEL: own.given,
        "wrong_probability": round(own.p_wrong, 6),
        CONTENT: own.content,
    }
    if target.texts is not None:
        text, second = target.texts[n]
        return data | {"text": text} | ({} if second is None else {"text2": second})
    if target.paths is not None and root is not None:
        relative = target.paths[n].absolute().relative_to(root).as_posix()
        return data | {"image": f"/data/local-files/?d={quote(relative)}"}
    return data


def _studio_prediction(own: Suspect) -> dict[str, Any]:
    score = round(own.p_suggested, 6)
    result = {
        "id": "suggested",
        "from_name": CONTROL,
        "to_name": SHOWN,
        "type": "choices",
        "score": score,
        "value": {"choices": [own.suggested]},
    }
    return {"model_version": MODEL_VERSION, "score": score, "result": [result]}


def labelling_config(target: Target, classes: Sequence[str]) -> str:
    """Return the labelling configuration of Label Studio, XML: the example, its label, and the choices."""
    shown = ["Text", "text"] if target.texts is not None else ["Image", "image"]
    if target.texts is None and target.paths is None:
        shown = ["Text", EXAMPLE_ID]
    lines = [f'<{shown[0]} name="{SHOWN}" value="${shown[1]}"/>']
    if target.texts is not None and any(second is not None for _, second in target.texts):
        lines.append('<Text name="second" value="$text2"/>')
    lines += ['<Header value="Label as given"/>', f'<Text name="given" value="${GIVEN_LABEL}"/>']
    lines.append(f'<Choices name="{CONTROL}" toName="{SHOWN}" choice="single" required="true">')
    lines += [f"  <Choice value={quoteattr(name)}/>" for name in (*classes, REMOVE_CHOICE)]
    return "\n".join(["<View>", *(f"  {line}" for line in [*lines, "</Choices>"]), "</View>", ""])
