"""Probabilities that labelers give, such as several prompts or language models, and how files write them.

A CSV file has columns p_LABELER_CLASS in a row an example, or p_CLASS in a row a vote; JSON lines have an
object of probabilities a labeler in a line an example, or one object in a line a vote.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hesstune.checks import parse_rate
from hesstune.errors import DataError, cut, listed
from hesstune.storage.cells import is_missing
from hesstune.storage.csv_table import CsvTable
from hesstune.weak.long_votes import labelers_in
from hesstune.weak.vote_columns import ROW_SUM_TOLERANCE, SOFT_PREFIX
from hesstune.weak.vote_values import class_index
from hesstune.weak.votes import ABSTAIN, MOST_CELLS, Votes

__all__ = ["SoftColumns", "SoftVotes", "soft_by_example", "soft_by_vote", "soft_columns"]

SoftColumns = dict[str, dict[str, str]]
"""{labeler: {class: column}}."""


@dataclass(frozen=True)
class SoftVotes:
    """Probabilities of m labelers on N examples.

    Attributes:
        ids: One id an example.
        names: The labelers' names.
        classes: What the columns or objects call the classes, K.
        p: (N, m, K) that sum to 1, or all 0 where a labeler abstains.
        notes: What was changed when they were read, in sentences.
    """

    ids: list[str]
    names: list[str]
    classes: list[str]
    p: NDArray[np.float64]
    notes: tuple[str, ...] = ()

    def votes(self, classes: Sequence[str], where: str) -> Votes:
        """Return them as votes for the likeliest class, among all classes in their order.

        Raises:
            DataError: If one of theirs is no class.
        """
        index = class_index(classes)
        strange = [name for name in self.classes if name not in index]
        if strange:
            raise DataError(
                f"{where} has probabilities of '{cut(strange[0])}', which is no class; the classes are "
                f"{listed(classes)}"
            )
        soft = np.zeros((*self.p.shape[:2], len(classes)))
        soft[:, :, [index[name] for name in self.classes]] = self.p
        table = np.where(soft.any(axis=2), soft.argmax(axis=2), ABSTAIN)
        return Votes(table, len(classes), self.names, soft)


def soft_columns(table: CsvTable, known: Collection[str] = ()) -> SoftColumns:
    """Return the columns p_LABELER_CLASS; columns p_CLASS, soft labels, are none of them.

    Where classes are known, a column's name ends in one of them. Else the names are split at their last
    underscores, or all at their first ones, such that every labeler has the same two classes at least.

    Args:
        table: The table.
        known: Names of classes, where they are known.

    Raises:
        DataError: If a labeler has columns for some classes only.

    Example:
        >>> cells = {name: ["1"] for name in ("p_gpt_yes", "p_gpt_no", "p_llama_yes", "p_llama_no")}
        >>> sorted(soft_columns(CsvTable.of(cells, "the table")))
        ['gpt', 'llama']
    """
    bodies = [n.removeprefix(SOFT_PREFIX) for n in table.columns if n.startswith(SOFT_PREFIX)]
    if not known:
        for found in (_grouped(bodies, str.rpartition), _grouped(bodies, str.partition)):
            if found and len({frozenset(own) for own in found.values()}) == 1 and _several(found):
                return found
        return {}

    def by_class(body: str, _: str) -> tuple[str, str, str]:
        fitting = [name for name in known if body.endswith(f"_{name}")]
        name = max(fitting, key=len, default="")
        return ("", "", "") if body in known or not name else (body.removesuffix(f"_{name}"), "_", name)

    found = _grouped(bodies, by_class)
    every = {name for own in found.values() for name in own}
    if any(
        body in known for body in bodies
    ):  # soft labels, perhaps of a class that ends as another is called
        return {labeler: own for labeler, own in found.items() if own.keys() >= set(known)}
    for labeler, own in found.items():
        if missing := sorted(every - own.keys()) or (sorted(set(known) - every) if len(every) < 2 else []):
            raise DataError(
                f"{table.name} has no column '{SOFT_PREFIX}{labeler}_{missing[0]}', but "
                f"{listed(own.values())}; a labeler needs one for every class"
            )
    return found


def _grouped(bodies: Sequence[str], split: Callable[[str, str], tuple[str, str, str]]) -> SoftColumns:
    found: SoftColumns = {}
    for body in bodies:
        labeler, _, name = split(body, "_")
        if labeler and name:
            found.setdefault(labeler, {})[name] = SOFT_PREFIX + body
    return found


def _several(found: SoftColumns) -> bool:
    return len(next(iter(found.values()))) >= 2


def soft_by_example(
    table: CsvTable, ids: Sequence[str], cells: Mapping[str, Mapping[str, Sequence[str]]]
) -> SoftVotes:
    """Return probabilities written a row an example.

    Args:
        table: The table, for the rows that messages name.
        ids: The examples' ids.
        cells: {labeler: {class: its cells}}, every labeler of the same classes.

    Raises:
        DataError: If a cell is no probability, by its row.
    """
    classes = list(dict.fromkeys(name for own in cells.values() for name in own))
    found, notes = [], list[str]()
    for labeler, own in cells.items():
        p, more = _probabilities(table, labeler, {name: own[name] for name in classes})
        found.append(p)
        notes += more
    return SoftVotes(list(ids), list(cells), classes, np.stack(found, axis=1), tuple(notes))


def soft_by_vote(table: CsvTable, task: str, worker: str, cells: Mapping[str, Sequence[str]]) -> SoftVotes:
    """Return probabilities written a row a vote; where a labeler votes twice, the last vote counts.

    Args:
        table: The table.
        task: Its column of examples' ids.
        worker: Its column of labelers.
        cells: {class: its cells}.

    Raises:
        DataError: If a cell is no probability, by its row, or there are too many labelers.
    """
    example, ids = table.columns[task].coded()
    labeler, names = labelers_in(table, worker)
    if len(ids) * len(names) * len(cells) > MOST_CELLS:
        raise DataError(
            f"{table.name} has probabilities of {len(names):,} labelers on {len(ids):,} examples, too many "
            "for a table; give their votes alone"
        )
    p, notes = _probabilities(table, "", cells)
    whole = np.zeros((len(ids), len(names), len(cells)))
    whole[example, labeler] = p
    twice = len(example) - len(np.unique(example.astype(np.int64) * len(names) + labeler))
    if twice:
        notes.append(
            f"{twice} votes are followed by another of the same labeler on the same example: it counts"
        )
    if silent := int((~p.any(axis=1)).sum()):
        notes.append(f"{silent} votes give no probabilities; they are left out")
    return SoftVotes(ids, names, list(cells), whole, tuple(notes))


def _probabilities(
    table: CsvTable, labeler: str, cells: Mapping[str, Sequence[str]]
) -> tuple[NDArray[np.float64], list[str]]:
    """Return (N, K) probabilities that sum to 1, or to 0 where all cells are empty."""
    of = f" of {labeler}" if labeler else ""
    p = np.stack([_numbers(table, f"{name}{of}", own) for name, own in cells.items()], axis=1)
    empty = np.isnan(p)
    some = np.flatnonzero(empty.any(axis=1) & ~empty.all(axis=1))
    if len(some):
        raise DataError(
            f"{table.name}, row {table.row(int(some[0]))}: some probabilities{of} are there, and some are "
            "missing; give all of them, or none to abstain"
        )
    p[empty] = 0.0
    outside = np.argwhere((p < 0) | (p > 1 + ROW_SUM_TOLERANCE) | ~np.isfinite(p))
    if len(outside):
        n, c = outside[0].tolist()
        hint = "percentages are divided by 100, logarithms exponentiated, first"
        raise DataError(
            f"{table.name}, row {table.row(n)}: the probability {p[n, c]:g} of {list(cells)[c]}{of} is not "
            f"in [0, 1]; {hint}"
        )
    total = p.sum(axis=1, keepdims=True)
    odd = int(((total > 0) & (abs(total - 1) > ROW_SUM_TOLERANCE)).sum())
    notes = (
        [f"probabilities{of} of {odd} examples did not sum to 1; they were divided by their sum"]
        if odd
        else []
    )
    return np.divide(p, total, out=np.zeros_like(p), where=total > 0), notes


def _numbers(table: CsvTable, what: str, cells: Sequence[str]) -> NDArray[np.float64]:
    found = np.full(len(cells), np.nan)
    for n, cell in enumerate(cells):
        if not is_missing(cell):
            number = parse_rate(cell)
            if number is None:
                raise DataError(
                    f"{table.name}, row {table.row(n)}: the probability of {what} is '{cut(cell)}', no number"
                )
            found[n] = number
    return found
