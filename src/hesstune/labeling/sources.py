"""What is labelled, and the votes on it: labeling functions and files."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path

import numpy as np

from hesstune.data.examples import REWRITTEN, Examples, Listing, Text, Texts, Vectors
from hesstune.data.formats import is_table, listing
from hesstune.data.images import DecodedImages, decode_all
from hesstune.data.labels import GIVEN_LABEL, SOURCE, column_named
from hesstune.data.labels import read_sources as read_label_sources
from hesstune.data.tables import examples_of, possible_groups
from hesstune.errors import ConfigError, DataError
from hesstune.labeling.options import LabelOptions
from hesstune.resizing import Size
from hesstune.storage.tables import JSON_LINES, CsvTable, Nested, is_missing, read_table
from hesstune.weak.annotation_exports import Export, read_export
from hesstune.weak.vote_files import vote_columns, voted
from hesstune.weak.vote_sources import (
    RoleColumns,
    WrittenVotes,
    call_functions,
    load_functions,
    probabilities,
    read_vote_file,
    votes_by_column,
    votes_by_row,
)
from hesstune.weak.votes import Votes, beside

TRUTHS = ("true_label", "label")
# The columns of an export of an annotation tool.
EXPORTED = RoleColumns("task", "worker", "label")


@dataclass(frozen=True)
class Target:
    """Examples to be labelled.

    Attributes:
        ids: One id an example.
        true: True labels by name, "" where unknown; None if the data has none.
        parts: `train`, `val` or `test` for each example, or None.
        paths: Image files, or None.
        texts: Texts, or None.
        table: The CSV file, or None.
        notes: What was left out, changed or guessed when they were read, in sentences.
        sources: Where each of the true labels comes from, as the column `label_source` says, or None.
        checked: {id: class} of examples that the data marks as checked by a person.
        vectors: Feature vectors, or None.
        images: Decoded images that are in no files, or None.
    """

    ids: list[str]
    true: list[str] | None = None
    parts: list[str] | None = None
    paths: list[Path] | None = None
    texts: list[Text] | None = None
    table: CsvTable | None = None
    notes: tuple[str, ...] = ()
    sources: list[str] | None = None
    checked: dict[str, str] = field(default_factory=dict)
    vectors: Vectors | None = None
    images: DecodedImages | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def has_inputs(self) -> bool:
        """Whether the examples are images, texts or feature vectors."""
        inputs = (self.paths, self.texts, self.vectors, self.images)
        return any(own is not None for own in inputs)

    def rows(self) -> Iterator[Mapping[str, str]]:
        """Yield each example as labeling functions get it: a CSV file's row; `id`, `path` and texts."""
        written = repeat({}, len(self)) if self.table is None else self.table.rows()
        for n, (example, cells) in enumerate(zip(self.ids, written, strict=True)):
            row: dict[str, str] = {"id": example, **cells}
            if self.paths is not None:
                row["path"] = str(self.paths[n])
            if self.texts is not None and self.table is None:
                row["text"] = self.texts[n][0]
                row["text2"] = self.texts[n][1] or ""
            yield row

    def examples(self, size: Size) -> Examples:
        """Return the examples as inputs of a network; images are decoded.

        Raises:
            DataError: If an image cannot be decoded.
        """
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
        """Return the columns of a file in a folder by which `csv:` finds the examples, and their groups.

        Args:
            folder: The folder.
            classes: Class names.
            used: Columns of votes.
        """
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


def read_target(spec: str, known: Sequence[str] = TRUTHS) -> Target:
    """Read the examples that a data specification names; true labels are used for tables of accuracy alone.

    Args:
        spec: `folder:PATH`, a table like `csv:PATH` (columns `image` or `text`, perhaps `text2`, `id`,
            `split`, `true_label` or `label`, and votes) or `hf:NAME` with texts.
        known: Columns of a CSV file that may hold the examples' labels; the first that is there does.

    Raises:
        DataError: If the examples are no image files and no texts.
    """
    kind, _, path = spec.partition(":")
    if is_table(kind):
        return target_of(read_table(path), known)
    found = listing(spec, size=8, labelled=False)
    if found.array is not None:
        raise DataError(
            f"'{spec}' holds images without files, which labels.csv could not name; label folder:PATH or "
            "csv:PATH"
        )
    return target_of_listing(found)


def target_of_listing(found: Listing) -> Target:
    """Return the examples that were read without need of labels.

    Raises:
        DataError: If an image in memory cannot be decoded.
    """
    if found.bad:
        raise DataError(f"{next(iter(found.bad.values()))}; take the image out of the data first")
    parts = [p or "train" for p in found.parts] if found.parts else None
    images = None if found.array is None else DecodedImages(found.array, found.digests)
    notes = tuple(found.notes)
    return Target(
        found.ids, found.given, parts, found.paths, found.texts, None, notes, found.label_sources, {},
        found.vectors, images,
    )  # fmt: skip


def target_of(table: CsvTable, known: Sequence[str] = TRUTHS) -> Target:
    """Return the examples that a table lists, a row each; see `read_target`."""
    column = next((name for name in known if name in table), None)
    true = ["" if is_missing(cell) else cell.strip() for cell in table.cells(column)] if column else None
    found = examples_of(table)
    notes = (*table.notes, *found.notes)
    if column == "label" and GIVEN_LABEL in table:
        changed = sum(map(operator.ne, table.cells(column), table.cells(GIVEN_LABEL)))
        said = f"{changed} labels of {table.name} are not as given: hesstune clean rewrote them"
        notes = (*notes, said) if changed else notes
    sources = None if column is None else _label_sources(table, column)
    return Target(found.ids, true, found.parts, found.paths, found.texts, table, notes, sources)


def _label_sources(table: CsvTable, column: str) -> list[str] | None:
    """Return where the labels in a column come from; those in GIVEN_LABEL were not rewritten."""
    if column not in ("label", GIVEN_LABEL):
        return None
    said, given = column_named(table.columns, SOURCE), column_named(table.columns, GIVEN_LABEL)
    sources = None if said is None else table.cells(said)
    if column == GIVEN_LABEL:
        found = read_label_sources(table.cells(column), None, sources)
        return found and ["" if source == REWRITTEN else source for source in found]
    return read_label_sources(table.cells(column), None if given is None else table.cells(given), sources)


def read_sources(asked: LabelOptions) -> tuple[Target, list[WrittenVotes], list[str]]:
    """Read examples and votes, call labeling functions, and return notes.

    Raises:
        ConfigError: If there are no votes, or no examples.
        DataError: If a file cannot be read as its options say.
    """
    table, nested, target, notes = None, Nested(), None, list[str]()
    if asked.target is None and asked.votes is None:
        raise ConfigError("give --target, the data to be labelled, or --votes, a file of votes")
    export = None
    if asked.votes is not None:
        table, nested, export = _read_votes(asked.votes, asked.label_column)
        notes += table.notes
    if asked.target is not None:
        target = read_target(asked.target)
        table = target.table if table is None else table
    found = list[WrittenVotes]()
    if table is not None:
        found = _votes_of_table(table, nested, target, asked, export)
        target = _target_of_votes(table, nested, found, target, export)
    elif asked.vote_columns:
        raise ConfigError("--vote-columns are of csv data or of --votes, and there is neither")
    assert target is not None
    for source in found:
        notes += source.notes
    notes += [note for note in target.notes if note not in notes]
    if asked.functions:
        found = [call_functions(load_functions(asked.functions), target.rows()), *found]
    if not (found or asked.labelers):
        raise ConfigError(
            "there are no votes: give --labelers, --functions or --votes (or columns vote_… in csv data)"
        )
    return target, found, notes


def _read_votes(path: str, label_column: str | None) -> tuple[CsvTable, Nested, Export | None]:
    """Read a file of votes, or the export of an annotation tool as a table with a row for each vote."""
    is_json = Path(path).suffix.lower() in (".json", *JSON_LINES)
    table, nested = (None, Nested()) if is_json else read_vote_file(path)
    export = read_export(path, label_column, table)
    if export is not None:
        return export.table(path), Nested(), export
    if Path(path).suffix.lower() == ".json":
        raise DataError(f"{path} is no export of a known annotation tool; write votes as CSV or JSON Lines")
    if table is None:
        table, nested = read_vote_file(path)
    return table, nested, None


def _votes_of_table(
    table: CsvTable, nested: Nested, target: Target | None, asked: LabelOptions, export: Export | None
) -> list[WrittenVotes]:
    """Return the votes of a table: a row for each vote; or columns of votes, of probabilities or of both."""
    if export is not None:
        by_row = votes_by_row(table, EXPORTED)
        return [] if by_row is None else [by_row]
    is_apart = target is not None and asked.votes is not None
    known = set(asked.classes)
    if not known:
        known = voted(table, vote_columns(table, asked.vote_columns))
        known |= set() if target is None else {name for name in target.true or () if name}
    named = RoleColumns(asked.task_column, asked.worker_column, asked.label_column)
    soft = probabilities(table, nested, named, known, None if target is None or is_apart else target.ids)
    if asked.votes is not None and soft is None and (by_row := votes_by_row(table, named)) is not None:
        return [by_row]
    if is_apart and "id" not in table:
        raise DataError(f"{table.name} needs a column 'id' with the ids of the target's examples")
    # Of the data itself, other columns than vote_… are no votes.
    guess = soft is None and asked.votes is not None
    ids = table.cells("id") if is_apart else None
    hard = votes_by_column(table, asked.vote_columns, asked.classes, ids=ids, guess=guess)
    return [source for source in (hard, soft) if source is not None]


def _target_of_votes(
    table: CsvTable,
    nested: Nested,
    found: Sequence[WrittenVotes],
    target: Target | None,
    export: Export | None,
) -> Target:
    """Return the examples that are given, or those that a file of votes names."""
    if export is not None:
        examples = target_of(export.examples_table(table.name)) if target is None else target
        return replace(examples, checked=export.checked)
    if target is not None:
        return target
    for source in found:
        if source.ids is not None and (nested or source.is_by_vote):
            return Target(list(source.ids))
    return target_of(table)


def combined(
    sources: Sequence[WrittenVotes], classes: Sequence[str], target: Target
) -> tuple[Votes, list[str]]:
    """Return all votes side by side, on the target's examples in their order, and notes.

    Raises:
        DataError: If a vote is no class, or the ids of a source are repeated or unknown.
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
