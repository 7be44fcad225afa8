"""What is labelled, and the votes on it: labeling functions and files."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from hesstune.data.examples import Examples, Listing, Text, Texts, Vectors
from hesstune.data.formats import is_table, listing, resolved
from hesstune.data.formats.csv import with_roles
from hesstune.data.formats.memory import read_object
from hesstune.data.images import DecodedImages, decode_all
from hesstune.data.labels import GIVEN_LABEL, label_sources, labels_as_written
from hesstune.data.reading import Reading
from hesstune.data.tables import examples_of, possible_groups
from hesstune.errors import ConfigError, DataError
from hesstune.labeling.options import LabelOptions, how_read
from hesstune.resizing import Size
from hesstune.storage.columns import CsvTable
from hesstune.storage.files import is_file
from hesstune.storage.table_files import JSON_LINES, SUFFIXES
from hesstune.storage.tables import frame_table, is_frame, read_table
from hesstune.weak.annotation_exports import read_export
from hesstune.weak.export_answers import Export
from hesstune.weak.vote_files import soft_classes, vote_columns, voted, written_vote
from hesstune.weak.vote_matrices import MATRIX_FILES, read_matrix, table_of_votes
from hesstune.weak.vote_sources import (
    Nested,
    RoleColumns,
    WrittenVotes,
    call_functions,
    load_functions,
    named_functions,
    probabilities,
    read_vote_file,
    votes_by_column,
    votes_by_row,
)
from hesstune.weak.votes import Votes, beside

TRUTHS = ("true_label", "label")
# Columns that a row for each vote repeats in each row of an example.
REPEATED = ("text", "text2", "image", "true_label", "split")


@dataclass(frozen=True)
class Target:
    """Examples to be labelled."""

    ids: list[str]  # one id an example
    true: list[str] | None = None  # true labels by name, "" where unknown; None if the data has none
    parts: list[str] | None = None  # `train`, `val` or `test` for each example, or None
    paths: list[Path] | None = None  # image files, or None
    texts: list[Text] | None = None  # texts, or None
    table: CsvTable | None = None  # the CSV file, or None
    notes: tuple[str, ...] = ()  # what was left out, changed or guessed when they were read, in sentences
    # Where each of the true labels comes from, as the column `label_source` says, or None
    sources: list[str] | None = None
    # {id: class} of examples that the data marks as checked by a person
    checked: dict[str, str] = field(default_factory=dict)
    # The rows of a data frame, as labeling functions get them, or None
    records: list[dict[str, Any]] | None = None
    column_names: list[str] = field(default_factory=list)  # of a table
    vectors: Vectors | None = None  # feature vectors, or None
    images: DecodedImages | None = None  # decoded images that are in no files, or None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def has_inputs(self) -> bool:
        """Whether the examples are images, texts or feature vectors."""
        inputs = (self.paths, self.texts, self.vectors, self.images)
        return any(own is not None for own in inputs)

    @property
    def is_in_table(self) -> bool:
        """Whether a table can hold the examples: texts, or images in files."""
        return self.paths is not None or self.texts is not None

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """Yield each example as labeling functions get it: a table's row; `id`, `path` and texts."""
        written: Any = repeat({}, len(self)) if self.table is None else self.table.rows()
        written = written if self.records is None else self.records
        for n, (example, cells) in enumerate(zip(self.ids, written, strict=True)):
            row: dict[str, Any] = {"id": example, **cells}
            if self.paths is not None:
                row["path"] = str(self.paths[n])
            if self.texts is not None and self.table is None:
                row["text"] = self.texts[n][0]
                row["text2"] = self.texts[n][1] or ""
            yield row

    def examples(self, size: Size) -> Examples:
        """Return the examples as inputs of a network; images are decoded, or DataError is raised."""
        every = np.arange(len(self))
        texts = None if self.texts is None else Texts(self.texts)
        for given in (self.vectors, self.images, texts):
            if given is not None:
                return Examples(given, every, self.ids, None)
        assert self.paths is not None
        source, bad, _ = decode_all(self.paths, size, cache_mib=1024)
        if bad:
            raise DataError(f"{next(iter(bad.values()))}; take the file out of the data first")
        return Examples(source, every, self.ids, None)

    def columns(self, folder: Path, classes: Sequence[str], used: Sequence[str] = ()) -> dict[str, list[str]]:
        """Return the columns of a file in a folder by which `csv:` finds the examples, and their groups."""
        found: dict[str, list[str]] = {}
        if self.texts is not None:
            found["text"] = [first for first, _ in self.texts]
            if any(second is not None for _, second in self.texts):
                found["text2"] = [second or "" for _, second in self.texts]
        elif self.paths is not None:
            base, absolute = folder.resolve(), [Path(p).absolute() for p in self.paths]
            shown = [p.relative_to(base) if p.is_relative_to(base) else p for p in absolute]
            found["image"] = [p.as_posix() for p in shown]
        if self.table is not None:
            groups = possible_groups(self.table.columns, classes, used)
            found |= {name: self.table.cells(name) for name in groups}
        return found


def read_target(spec: str, known: Sequence[str] = TRUTHS, how: Reading | None = None) -> Target:
    """Read the examples that a data specification names, image files or texts.

    True labels are used for tables of accuracy alone. `known` are the columns of a table that may hold them,
    if none is named; the first that is there does.
    """
    how = how or Reading()
    kind, path, notes = resolved(spec)
    if is_table(kind):
        table, roles, more = with_roles(read_table(path, form=kind), how, needs_inputs=False)
        known = ("label",) if how.columns.label else known
        table = replace(table.renamed(roles), notes=(*notes, *table.notes, *more))
        return target_of(table, known, how.several)
    found = listing(spec, size=8, labelled=False, how=how)
    if found.array is not None:
        raise DataError(
            f"'{spec}' holds images without files, which labels.csv could not name; label folder:PATH or "
            "csv:PATH"
        )
    return target_of_listing(found)


def target_of_listing(found: Listing) -> Target:
    """Return the examples that were read without need of labels."""
    if found.bad:
        raise DataError(f"{next(iter(found.bad.values()))}; take the image out of the data first")
    parts = [p or "train" for p in found.parts] if found.parts else None
    true = found.given and [written_vote(name) for name in found.given]
    images = None if found.array is None else DecodedImages(found.array, found.digests)
    return Target(
        found.ids,
        true,
        parts,
        found.paths,
        found.texts,
        notes=tuple(found.notes),
        sources=found.label_sources,
        column_names=found.column_names,
        vectors=found.vectors,
        images=images,
    )


def target_of_object(data: Any) -> Target:
    """Return the examples of a data frame, texts, (X, y), a data set, or embeddings."""
    if is_frame(data):
        table = frame_table(data, "the DataFrame")
        columns = [str(name) for name in data.columns]
        values = [column.tolist() for _, column in data.items()]
        rows = zip(*values, strict=True)
        return replace(target_of(table), records=[dict(zip(columns, row, strict=True)) for row in rows])
    return target_of_listing(read_object(data, 8, False, Reading()))


def target_of(table: CsvTable, known: Sequence[str] = TRUTHS, several: str = "refuse") -> Target:
    """Return the examples that a table lists, a row each; see `read_target`."""
    column, true = next((name for name in known if name in table), None), None
    if column:
        own = table.columns[column]
        names = labels_as_written(own, table.name, own.class_names, several, soft_classes(table))
        true = [written_vote(name) if name else "" for name in names]
    found = examples_of(table)
    notes = (*table.notes, *found.notes)
    if column == "label" and GIVEN_LABEL in table:
        changed = sum(map(operator.ne, table.cells(column), table.cells(GIVEN_LABEL)))
        said = f"{changed} labels of {table.name} are not as given: hesstune clean rewrote them"
        notes = (*notes, said) if changed else notes
    sources = label_sources(table, column) if column in ("label", GIVEN_LABEL) else None
    return Target(
        found.ids,
        true,
        found.parts,
        found.paths,
        found.texts,
        table,
        notes,
        sources,
        column_names=list(table.columns),
    )


@dataclass(frozen=True)
class Objects:
    """What a caller in Python gives in place of the text of an option; None if it is given as text."""

    target: Any = None  # the examples
    votes: Any = None  # a data frame, or an array (N, annotators)
    functions: Sequence[Callable[..., object]] | None = None  # labeling functions


@dataclass(frozen=True)
class _Given:
    """Votes that are given: a table, its objects, and the export it is from; `in_order` if it has no ids."""

    table: CsvTable
    nested: Nested = field(default_factory=Nested)
    export: Export | None = None
    in_order: bool = False


def read_sources(
    asked: LabelOptions, given: Objects | None = None
) -> tuple[Target, list[WrittenVotes], list[str]]:
    """Read examples and votes, call labeling functions, and return notes."""
    own = Objects() if given is None else given
    if asked.target is None and asked.votes is None:
        raise ConfigError("give --target, the data to be labelled, or --votes, a file of votes")
    target = None
    if asked.target is not None:
        target = (
            read_target(asked.target, how=how_read(asked))
            if own.target is None
            else target_of_object(own.target)
        )
    votes = None
    if asked.votes is not None:
        votes = _read_votes(asked.votes, asked.label_column) if own.votes is None else _of_object(own.votes)
    elif target is not None and target.table is not None:
        votes = _Given(target.table)
    found, notes = list[WrittenVotes](), list[str]()
    if votes is not None:
        notes += votes.table.notes if asked.votes is not None else ()
        found = _votes_of_table(votes, target, asked)
        target = _target_of_votes(votes, found, target)
    elif asked.vote_columns:
        raise ConfigError("--vote-columns are of csv data or of --votes, and there is neither")
    assert target is not None
    for source in found:
        notes += source.notes
    notes += [note for note in target.notes if note not in notes]
    if asked.functions:
        functions = (
            load_functions(asked.functions) if own.functions is None else named_functions(own.functions)
        )
        found = [call_functions(functions, target.rows()), *found]
    if not (found or asked.labelers):
        raise ConfigError(
            "there are no votes: give --labelers, --functions or --votes (or columns vote_… in csv data)"
        )
    return target, found, notes


def _read_votes(path: str, label_column: str | None) -> _Given:
    """Read a file of votes, or the export of an annotation tool as a table with a row for each vote."""
    suffix = Path(path).suffix.lower()
    if suffix in MATRIX_FILES:
        return _Given(read_matrix(path), in_order=True)
    is_read_first = suffix in (".json", ".xml", *SUFFIXES["parquet"], *JSON_LINES) or Path(path).is_dir()
    table, nested = (None, Nested()) if is_read_first else read_vote_file(path)
    export = read_export(path, label_column, table)
    if export is not None:
        return _Given(export.table(path), export=export)
    if suffix in (".json", ".xml"):
        raise DataError(f"{path} is no export of a known annotation tool; write votes as CSV or JSON Lines")
    if table is None:
        table, nested = read_vote_file(path)
    return _Given(table, nested)


def _of_object(votes: Any) -> _Given:
    """Return votes that are given in Python: a data frame, wide or long, or an array, (N, annotators)."""
    if is_frame(votes):
        table = frame_table(votes, "the DataFrame of votes")
        return _Given(table, in_order="id" not in table)
    if isinstance(votes, Votes):
        votes = votes.table
    if isinstance(votes, Mapping):
        names, columns = list(map(str, votes)), list(votes.values())
        if not columns or len({len(column) for column in columns}) > 1:
            raise DataError("votes by annotator, {name: (N,) votes}, must be of one length")
        array = np.array(columns, dtype=object).T
        return _Given(table_of_votes(array, "the votes", names), in_order=True)
    try:
        array = np.asarray(votes)
    except ValueError:
        raise DataError(
            "votes must be a data frame, or an array (N, annotators); rows differ in length"
        ) from None
    return _Given(table_of_votes(array, "the array of votes"), in_order=True)


def _votes_of_table(given: _Given, target: Target | None, asked: LabelOptions) -> list[WrittenVotes]:
    """Return the votes of a table: a row for each vote; or columns of votes, of probabilities or of both."""
    table, is_apart = given.table, target is not None and asked.votes is not None
    if given.export is not None:
        confidence = "confidence" if "confidence" in table else None
        by_row = votes_by_row(table, RoleColumns("task", "worker", "label", confidence))
        return [] if by_row is None else [by_row]
    known = set(asked.classes)
    if not known:
        known = voted(table, vote_columns(table, asked.vote_columns))
        known |= set() if target is None else {name for name in target.true or () if name}
    named = RoleColumns(asked.task_column, asked.worker_column, asked.label_column, asked.confidence_column)
    soft = probabilities(
        table, given.nested, named, known, None if target is None or is_apart else target.ids
    )
    if asked.votes is not None and soft is None and (by_row := votes_by_row(table, named)) is not None:
        return [by_row]
    ids = None
    if is_apart:
        assert target is not None
        ids = _ids_of_votes(given, target)
    # Of the data itself, other columns than vote_… are no votes.
    guess = soft is None and asked.votes is not None
    hard = votes_by_column(table, asked.vote_columns, asked.classes, ids=ids, guess=guess)
    return [source for source in (hard, soft) if source is not None]


def _ids_of_votes(given: _Given, target: Target) -> list[str]:
    """Return the example of each row of votes that are apart from the examples, by id or in order."""
    if "id" in given.table:
        return given.table.cells("id")
    if not given.in_order:
        raise DataError(f"{given.table.name} needs a column 'id' with the ids of the target's examples")
    if len(given.table) != len(target):
        raise DataError(
            f"{given.table.name} has {len(given.table)} rows without ids, and the target {len(target)} "
            "examples; give as many rows, in the same order, or a column 'id'"
        )
    return target.ids


def _target_of_votes(given: _Given, found: Sequence[WrittenVotes], target: Target | None) -> Target:
    """Return the examples that are given, or those that a file of votes names."""
    table, export = given.table, given.export
    if export is not None:
        examples = target_of(export.examples_table(table.name)) if target is None else target
        return replace(examples, checked=export.checked)
    if target is not None:
        return target
    for source in found:
        if source.ids is not None and source.by_vote is not None:
            return _first_rows(table, source)
        if source.ids is not None and given.nested:
            return Target(list(source.ids))
    return target_of(table)


def _first_rows(table: CsvTable, source: WrittenVotes) -> Target:
    """Return the examples of a table with a row for each vote: texts and such that all rows of one share."""
    assert source.ids is not None
    ids = list(source.ids)
    codes = table.columns[source.by_vote].coded()[0] if source.by_vote else np.arange(len(table))
    first = np.unique(codes, return_index=True)[1]
    columns = {"id": ids}
    for name in REPEATED:
        if name not in table or (name == source.by_vote and name != "image"):
            continue
        own = table.columns[name].coded()[0]
        if (own == own[first][codes]).all():
            cells = table.cells(name)
            columns[name] = [cells[n] for n in first.tolist()]
    if "text" in columns or not all(is_file(table.folder / name) for name in columns.get("image", [])):
        columns.pop("image", None)
    return target_of(CsvTable.of(columns, table.name, table.folder))


def combined(
    sources: Sequence[WrittenVotes], classes: Sequence[str], target: Target
) -> tuple[Votes, list[str]]:
    """Return all votes side by side, on the target's examples in their order, and notes.

    DataError is raised if a vote is no class, or the ids of a source are repeated or unknown.
    """
    place = {example: n for n, example in enumerate(target.ids)}
    tables, notes = list[Votes](), list[str]()
    for source in sources:
        votes, more = source.votes(classes)
        if source.ids is not None:
            if len(set(source.ids)) < len(source.ids):
                raise DataError("the column 'id' of the file of votes repeats some ids; each needs one row")
            if strange := [example for example in source.ids if example not in place]:
                raise DataError(
                    f"{len(strange)} ids of the file of votes are no example's, such as '{strange[0]}'; ids "
                    f"of the target look like '{target.ids[0]}'"
                )
            rows = np.array([place[example] for example in source.ids], dtype=np.int64)
            votes = votes.spread(rows, len(target))
        tables.append(votes)
        notes += more
    every, differ = beside(tables)
    return every, [*notes, *differ]
