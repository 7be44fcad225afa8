"""Where votes come from: trained labelers, functions, and files with a row an example or a row a vote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hesstune.errors import ConfigError, DataError, listed
from hesstune.labeling.domain_labelers import TrainedLabelers
from hesstune.labeling.labeling_target import Target, read_target, target_of
from hesstune.labeling.options import LabelOptions
from hesstune.labeling.soft_sources import read_soft, read_vote_file
from hesstune.storage.csv_table import CsvTable
from hesstune.storage.json_lines import Nested
from hesstune.weak.functions import Answers, call_functions, load_functions, names_in, votes_of_answers
from hesstune.weak.long_votes import LongColumns, classes_in, long_columns, long_votes
from hesstune.weak.soft_columns import SoftVotes
from hesstune.weak.vote_columns import other_columns, vote_columns, voted, votes_in
from hesstune.weak.vote_values import classes_named
from hesstune.weak.votes import ABSTAIN, Votes, beside

__all__ = ["VoteSources", "read_sources"]


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
        examples = _examples(table, soft, long, nested)
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


def _examples(table: CsvTable, soft: SoftVotes | None, long: LongColumns | None, nested: Nested) -> Target:
    """Return the examples that a file of votes names."""
    if long is not None:
        return Target(list(dict.fromkeys(table.cells(long.task))))
    if soft is not None and (nested or len(soft.ids) < len(table)):
        return Target(soft.ids)
    return target_of(table)


def _columns(
    table: CsvTable | None, asked: LabelOptions, soft: SoftVotes | None
) -> tuple[list[str], list[str]]:
    """Return the columns of votes, and how they were told from others."""
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
