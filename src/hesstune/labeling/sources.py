"""What is labelled, and where its votes come from: labeling functions, files and trained annotators."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np

from hesstune.data.examples import REWRITTEN, Examples, Text, Texts
from hesstune.data.formats import listing
from hesstune.data.images import decode_all
from hesstune.data.labels import GIVEN_LABEL, SOURCE, column_named
from hesstune.data.labels import read_sources as read_label_sources
from hesstune.data.tables import examples_of, possible_groups
from hesstune.errors import ConfigError, DataError, listed
from hesstune.labeling.domain_labelers import TrainedLabelers
from hesstune.labeling.options import LabelOptions
from hesstune.storage.tables import JSON_LINES, CsvTable, Nested, is_missing, read_json_lines, read_table
from hesstune.weak.functions import Answers, call_functions, load_functions, names_in, votes_of_answers
from hesstune.weak.vote_files import (
    SOFT_PREFIX,
    LongColumns,
    SoftVotes,
    classes_in,
    classes_named,
    long_columns,
    long_votes,
    other_columns,
    soft_by_example,
    soft_by_vote,
    soft_columns,
    vote_columns,
    voted,
    voters,
    votes_in,
)
from hesstune.weak.votes import ABSTAIN, Votes, beside

TRUTHS = ("true_label", "label")


@dataclass(frozen=True)
class Target:
    """Examples to be labelled.

    Attributes:
        ids: One id an example.
        true: True labels by name, "" where unknown; None where the data has none.
        parts: `train`, `val` or `test` for each example, or None.
        paths: Image files, or None.
        texts: Texts, or None.
        table: The CSV file, or None.
        notes: What was left out, changed or guessed when they were read, in sentences.
        sources: Where each of the true labels comes from, as the column `label_source` says, or None.
    """

    ids: list[str]
    true: list[str] | None = None
    parts: list[str] | None = None
    paths: list[Path] | None = None
    texts: list[Text] | None = None
    table: CsvTable | None = None
    notes: tuple[str, ...] = ()
    sources: list[str] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def has_inputs(self) -> bool:
        """Whether a network can look at the examples."""
        return self.paths is not None or self.texts is not None

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

    def examples(self, size: int) -> Examples:
        """Return what a network is fed; images are decoded.

        Raises:
            DataError: If an image cannot be decoded.
        """
        every = np.arange(len(self))
        if self.texts is not None:
            return Examples(Texts(self.texts), every, self.ids, None)
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
        groups = {} if self.table is None else possible_groups(self.table.columns, classes, used)
        kept = {} if self.table is None else {name: self.table.cells(name) for name in groups}
        return {**self._inputs(folder), **kept}

    def _inputs(self, folder: Path) -> dict[str, list[str]]:
        """Return the columns of texts or images."""
        if self.texts is not None:
            found = {"text": [first for first, _ in self.texts]}
            if any(second is not None for _, second in self.texts):
                found["text2"] = [second or "" for _, second in self.texts]
            return found
        if self.paths is None:
            return {}
        base = folder.resolve()
        absolute = [Path(p).absolute() for p in self.paths]
        return {
            "image": [
                p.relative_to(base).as_posix() if p.is_relative_to(base) else p.as_posix() for p in absolute
            ]
        }


def read_target(spec: str, known: Sequence[str] = TRUTHS) -> Target:
    """Read the examples that a data specification names; true labels are used for tables alone.

    Args:
        spec: `folder:PATH`, `csv:PATH` (columns `image` or `text`, perhaps `text2`, `id`, `split`,
            `true_label` or `label`, and votes) or `hf:NAME` with texts.
        known: Columns of a CSV file that may hold the examples' labels; the first that is there does.

    Raises:
        DataError: If the examples are no image files and no texts.
    """
    if spec.startswith("csv:"):
        return target_of(read_table(spec.removeprefix("csv:")), known)
    found = listing(spec, size=8, labelled=False)
    if found.paths is None and found.texts is None:
        raise DataError(
            f"'{spec}' holds images without files, which labels.csv could not name; label folder:PATH or "
            "csv:PATH"
        )
    parts = [p or "train" for p in found.parts] if found.parts else None
    return Target(found.ids, found.given, parts, found.paths, found.texts, notes=tuple(found.notes))


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
    sources = None if column is None else _sources(table, column)
    return Target(found.ids, true, found.parts, found.paths, found.texts, table, notes, sources)


def _sources(table: CsvTable, column: str) -> list[str] | None:
    """Return where the labels in a column come from; those in GIVEN_LABEL were not rewritten."""
    if column not in ("label", GIVEN_LABEL):
        return None
    said = column_named(table.columns, SOURCE)
    sources = None if said is None else table.cells(said)
    if column == GIVEN_LABEL:
        found = read_label_sources(table.cells(column), None, sources)
        return found and ["" if source == REWRITTEN else source for source in found]
    given = column_named(table.columns, GIVEN_LABEL)
    return read_label_sources(table.cells(column), None if given is None else table.cells(given), sources)


def read_vote_file(path: Path) -> tuple[CsvTable, Nested]:
    """Read a file of votes, CSV or JSON lines; objects of probabilities apart."""
    if path.suffix.lower() in JSON_LINES:
        return read_json_lines(path, "the file of votes")
    return read_table(path, "the file of votes"), {}


def read_soft(
    table: CsvTable, nested: Nested, ids: Sequence[str] | None, known: Collection[str], asked: LabelOptions
) -> SoftVotes | None:
    """Return the probabilities that labelers give, or None where there are none.

    Args:
        table: The table of votes.
        nested: Its objects, where it comes from JSON lines.
        ids: The examples' ids; None: those of the column `id`.
        known: Names of classes, where they are known.
        asked: The columns that are named.

    Raises:
        DataError: If a probability is none, or ids are missing.
    """
    roles = voters(table, asked.task_column, asked.worker_column)
    if nested:
        cells = _filled(nested)
        if roles is None:
            return soft_by_example(table, _example_ids(table, ids), cells)
        key = asked.label_column or next(iter(cells))
        if key not in cells or (len(cells) > 1 and asked.label_column is None):
            raise DataError(
                f"{table.name} has a line a vote, and objects of probabilities called {listed(cells)}; name "
                "the one that counts by --label-column"
            )
        return soft_by_vote(table, *roles, cells[key])
    if asked.label_column is not None:  # its votes are asked for, not probabilities beside them
        return None
    plain = [n for n in table.columns if n.startswith(SOFT_PREFIX)]
    if roles is not None and len(plain) > 1 and len(table.columns[roles[0]].coded()[1]) < len(table):
        return soft_by_vote(table, *roles, {n.removeprefix(SOFT_PREFIX): table.cells(n) for n in plain})
    columns = soft_columns(table, known)
    if not columns:
        return None
    own = {name: {c: table.cells(n) for c, n in by.items()} for name, by in columns.items()}
    return soft_by_example(table, _example_ids(table, ids), own)


def _filled(nested: Nested) -> dict[str, dict[str, list[str]]]:
    """Return {key: {class: cells}}: a class that an object leaves out has no probability; none is no vote."""
    classes = dict.fromkeys(name for rows in nested.values() for row in rows for name in row)
    return {
        key: {name: [row.get(name, "0" if row else "") for row in rows] for name in classes}
        for key, rows in nested.items()
    }


def _example_ids(table: CsvTable, ids: Sequence[str] | None) -> Sequence[str]:
    if ids is not None:
        return ids
    if "id" not in table:
        raise DataError(f"{table.name} needs a column 'id', the examples' ids")
    return table.cells("id")


@dataclass(frozen=True)
class VoteSources:
    """Where votes come from.

    Attributes:
        table: A table of votes, or None.
        columns: Its columns of votes, a labeler each.
        long: Its columns where it has a row a vote; `columns` are then none.
        soft: Probabilities that it holds, or None.
        apart: Whether it is another table than the target's.
        functions: The labeling functions' names.
        answers: What they answered.
        trained: What trained labelers say.
        threshold: Below which these abstain.
        notes: How the table was read, in sentences.
    """

    table: CsvTable | None = None
    columns: tuple[str, ...] = ()
    long: LongColumns | None = None
    soft: SoftVotes | None = None
    apart: bool = False
    functions: tuple[str, ...] = ()
    answers: Answers | None = None
    trained: TrainedLabelers | None = None
    threshold: float = 0.0
    notes: tuple[str, ...] = ()

    def classes(self, target: Target) -> list[str]:
        """Return the classes that labelers, truth and votes name."""
        found = {name for own in self.trained.classes for name in own} if self.trained else set()
        found |= {name for name in target.true or () if name}
        given = names_in(self.answers) if self.answers else set()
        given |= set(self.soft.classes) if self.soft else set()
        if self.table is not None:
            given |= classes_in(self.table, self.long) if self.long else voted(self.table, self.columns)
        return classes_named(found, given, len(target), "the table of votes")

    def votes(self, target: Target, classes: list[str]) -> tuple[Votes, list[str]]:
        """Return all votes side by side, and what should be known of them."""
        tables: list[Votes] = []
        notes = list(self.notes)
        if self.trained is not None:
            tables.append(self.trained.votes(classes, self.threshold))
        if self.answers is not None:
            tables.append(votes_of_answers(self.answers, self.functions, classes, target.ids))
        if self.table is not None and self.long is not None:
            _, given, more = long_votes(self.table, self.long, classes, target.ids)
            tables.append(given)
            notes += more
        elif self.table is not None and self.columns:
            given = votes_in(self.table, self.columns, classes)
            ids = self.table.cells("id") if self.apart else target.ids
            tables.append(_aligned(given, ids, self.table.name, target))
        if self.table is not None and self.soft is not None:
            sure = self.soft.votes(classes, self.table.name)
            tables.append(_aligned(sure, self.soft.ids, self.table.name, target))
        every, differ = beside(tables)
        return every, [*notes, *differ]

    def own_accuracy(self) -> dict[str, float | None]:
        """Return the trained labelers' accuracy on their own domains."""
        if self.trained is None:
            return {}
        return dict(zip(self.trained.names, self.trained.own_accuracy, strict=True))


def read_sources(asked: LabelOptions) -> tuple[Target, VoteSources]:
    """Read examples and votes, and let labeling functions answer.

    Raises:
        ConfigError: If nobody votes, or on nothing.
        DataError: If a file cannot be read as it is said to be.
    """
    target, votes = asked.target, asked.votes
    if target is None and votes is None:
        raise ConfigError("give --target, the data to be labelled, or --votes, a CSV file of votes")
    table, nested, notes = None, Nested(), list[str]()
    if votes is not None:
        table, nested = read_vote_file(Path(votes))
        notes += table.notes
    apart = table is not None and target is not None
    examples = None if target is None else read_target(target)
    if table is None:
        assert examples is not None
        table = examples.table
    ids = examples.ids if examples is not None and not apart else None
    soft = None if table is None else read_soft(table, nested, ids, _known(table, examples, asked), asked)
    long = None
    if table is not None and votes is not None and soft is None:
        long = long_columns(table, asked.task_column, asked.worker_column, asked.label_column)
    if examples is None:
        assert table is not None
        examples = _examples_of(table, soft, long, nested)
    columns = list[str]()
    if long is not None:
        notes.append(long.note())
    else:
        columns, more = _columns(table, asked, soft)
        notes += more
    if soft is not None:
        notes += [f"probabilities are read of the labelers {listed(soft.names)}", *soft.notes]
    notes += [note for note in examples.notes if note not in notes]
    loaded = load_functions(asked.functions) if asked.functions else []
    if not (columns or long or soft or loaded or asked.labelers):
        raise ConfigError(
            "nobody votes: give --labelers, --functions or --votes (or columns vote_… in csv data)"
        )
    return examples, VoteSources(
        table if columns or long or soft else None,
        tuple(columns),
        long,
        soft,
        apart,
        tuple(name for name, _ in loaded),
        call_functions(loaded, examples.rows()) if loaded else None,
        notes=tuple(notes),
    )


def _known(table: CsvTable, examples: Target | None, asked: LabelOptions) -> set[str]:
    """Return the classes that are known before any probability is read."""
    if asked.classes:
        return set(asked.classes)
    true = {name for name in examples.true or () if name} if examples is not None else set()
    return true | voted(table, vote_columns(table, asked.vote_columns))


def _examples_of(table: CsvTable, soft: SoftVotes | None, long: LongColumns | None, nested: Nested) -> Target:
    """Return the examples that a file of votes names."""
    if long is not None:
        return Target(list(dict.fromkeys(table.cells(long.task))))
    if soft is not None and (nested or len(soft.ids) < len(table)):
        return Target(soft.ids)
    return target_of(table)


def _columns(
    table: CsvTable | None, asked: LabelOptions, soft: SoftVotes | None
) -> tuple[list[str], list[str]]:
    """Return the columns of votes, and how they were recognised."""
    if table is None:
        if asked.vote_columns:
            raise ConfigError("--vote-columns are of csv data or of --votes, and there is neither")
        return [], []
    if asked.target is not None and asked.votes is not None and "id" not in table:
        raise DataError(f"{asked.votes} needs a column 'id' with the ids of the target's examples")
    named = vote_columns(table, asked.vote_columns)
    if named or soft is not None or asked.votes is None:  # other columns of the data itself are no votes
        return named, []
    taken, left = other_columns(table, asked.classes)
    if not taken:
        raise DataError(
            f"{table.name} has no columns vote_…, and none that look like votes among "
            f"{listed(left) or 'none'}: name them by --vote-columns, or, with a row a vote, by "
            "--task-column, --worker-column and --label-column"
        )
    notes = [f"columns taken for votes: {listed(taken)}"]
    if left:
        notes.append(f"columns left out, no votes by their values: {listed(left)}")
    return taken, notes


def _aligned(votes: Votes, ids: Sequence[str], name: str, target: Target) -> Votes:
    """Bring a file's votes to the target's order; examples it does not name get none."""
    if ids is target.ids:
        return votes
    place = {example: n for n, example in enumerate(target.ids)}
    if len(set(ids)) < len(ids):
        raise DataError(f"the column 'id' of {name} repeats some ids; each example needs one row")
    rows = np.array([place.get(example, -1) for example in ids], dtype=np.int64)
    if (rows < 0).any():
        at = int(np.flatnonzero(rows < 0)[0])
        raise DataError(
            f"{int((rows < 0).sum())} ids of {name} are no example's, such as '{ids[at]}'; ids of the "
            f"target look like '{target.ids[0]}'"
        )
    aligned = np.full((len(target), votes.m), ABSTAIN)
    aligned[rows] = votes.table
    soft = None
    if votes.soft is not None:
        soft = np.zeros((len(target), votes.m, votes.k))
        soft[rows] = votes.soft
    return Votes(aligned, votes.k, votes.names, soft)
