"""Where labelers' probabilities are found: in a table of votes, or in JSON lines."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from hesstune.errors import DataError, listed
from hesstune.labeling.options import LabelOptions
from hesstune.storage.csv_table import CsvTable, read_table
from hesstune.storage.json_lines import JSON_LINES, Nested, read_json_lines
from hesstune.weak.long_votes import voters
from hesstune.weak.soft_columns import SoftVotes, soft_by_example, soft_by_vote, soft_columns
from hesstune.weak.vote_columns import SOFT_PREFIX

__all__ = ["read_soft", "read_vote_file"]


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
            return soft_by_example(table, _ids(table, ids), cells)
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
    return soft_by_example(table, _ids(table, ids), own)


def _filled(nested: Nested) -> dict[str, dict[str, list[str]]]:
    """Return {key: {class: cells}}: a class that an object leaves out has no probability; none is no vote."""
    classes = dict.fromkeys(name for rows in nested.values() for row in rows for name in row)
    return {
        key: {name: [row.get(name, "0" if row else "") for row in rows] for name in classes}
        for key, rows in nested.items()
    }


def _ids(table: CsvTable, ids: Sequence[str] | None) -> Sequence[str]:
    if ids is not None:
        return ids
    if "id" not in table:
        raise DataError(f"{table.name} needs a column 'id', the examples' ids")
    return table.cells("id")
