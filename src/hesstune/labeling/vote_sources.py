"""Where votes come from: trained labelers, functions, and files with a row an example or a row a vote."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hesstune.errors import ConfigError, DataError, listed
from hesstune.labeling.domain_labelers import TrainedLabelers
from hesstune.labeling.labeling_target import Target, read_target
from hesstune.labeling.options import LabelOptions
from hesstune.storage.csv_table import CsvTable, read_table
from hesstune.weak.functions import Answers, call_functions, load_functions, names_in, votes_of_answers
from hesstune.weak.long_votes import LongColumns, classes_in, long_columns, long_votes
from hesstune.weak.vote_columns import other_columns, vote_columns, voted, votes_in
from hesstune.weak.vote_values import classes_named
from hesstune.weak.votes import ABSTAIN, Votes

__all__ = ["VoteSources", "read_sources"]


@dataclass(frozen=True)
class VoteSources:
    """Where votes come from.

    Attributes:
        table: A table of votes, or None.
        columns: Its columns of votes, a labeler each.
        long: Its columns where it has a row a vote; `columns` are then none.
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
        elif self.table is not None:
            given = votes_in(self.table, self.columns, classes)
            tables.append(_aligned(given, self.table, target) if self.apart else given)
        if len(tables) == 1:
            return tables[0], notes
        soft = None
        if any(t.soft is not None for t in tables):
            soft = np.concatenate([t.onehot if t.soft is None else t.soft for t in tables], axis=1)
        names = [name for t in tables for name in t.names]
        return Votes(np.concatenate([t.table for t in tables], axis=1), len(classes), names, soft), notes

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
    table, long, notes = None, None, list[str]()
    if votes is not None:
        table = read_table(votes, "the file of votes")
        long = long_columns(table, asked.task_column, asked.worker_column, asked.label_column)
        notes += table.notes
    if long is not None and table is not None:
        notes.append(long.note())
        ids = list(dict.fromkeys(table.cells(long.task)))
        examples = Target(ids) if target is None else read_target(target)
        columns: list[str] = []
    else:
        examples = read_target(target if target is not None else f"csv:{votes}")
        table = examples.table if table is None or target is None else table
        columns, more = _columns(table, asked)
        notes += more
    notes += [note for note in examples.notes if note not in notes]
    loaded = load_functions(asked.functions) if asked.functions else []
    if not (columns or long or loaded or asked.labelers):
        raise ConfigError(
            "nobody votes: give --labelers, --functions or --votes (or columns vote_… in csv data)"
        )
    answers = call_functions(loaded, examples.rows()) if loaded else None
    return examples, VoteSources(
        table if columns or long else None,
        tuple(columns),
        long,
        target is not None and votes is not None,
        tuple(name for name, _ in loaded),
        answers,
        notes=tuple(notes),
    )


def _columns(table: CsvTable | None, asked: LabelOptions) -> tuple[list[str], list[str]]:
    """Return the columns of votes, and how they were told from others."""
    if table is None:
        if asked.vote_columns:
            raise ConfigError("--vote-columns are of csv data or of --votes, and there is neither")
        return [], []
    if asked.target is not None and asked.votes is not None and "id" not in table:
        raise DataError(f"{asked.votes} needs a column 'id' with the ids of the target's examples")
    named = vote_columns(table, asked.vote_columns)
    if named or asked.votes is None:  # other columns of the data itself are no votes
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


def _aligned(votes: Votes, table: CsvTable, target: Target) -> Votes:
    """Bring a file's votes to the target's order; examples it does not name get none."""
    place = {example: n for n, example in enumerate(target.ids)}
    ids = table.cells("id")
    if len(set(ids)) < len(ids):
        raise DataError(f"the column 'id' of {table.name} repeats some ids; each example needs one row")
    rows = np.array([place.get(example, -1) for example in ids], dtype=np.int64)
    if (rows < 0).any():
        at = int(np.flatnonzero(rows < 0)[0])
        raise DataError(
            f"{int((rows < 0).sum())} ids of {table.name} are no example's, such as '{ids[at]}'; ids of the "
            f"target look like '{target.ids[0]}'"
        )
    aligned = np.full((len(target), votes.m), ABSTAIN)
    aligned[rows] = votes.table
    return Votes(aligned, votes.k, votes.names)
