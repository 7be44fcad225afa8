"""The data that programmatic labels are made for: examples, perhaps votes, perhaps true labels."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np

from hesstune.data.csv_listing import examples_of
from hesstune.data.examples import REWRITTEN, Examples, Text, Texts
from hesstune.data.groups import possible_groups
from hesstune.data.images import decode_all
from hesstune.data.label_sources import GIVEN_LABEL, SOURCE, column_named, read_sources
from hesstune.data.sources import listing
from hesstune.errors import DataError
from hesstune.storage.cells import is_missing
from hesstune.storage.csv_table import CsvTable, read_table

__all__ = ["Target", "read_target", "target_of"]

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
        source, bad = decode_all(self.paths, size, cache_mib=1024)
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
        found = read_sources(table.cells(column), None, sources)
        return found and ["" if source == REWRITTEN else source for source in found]
    given = column_named(table.columns, GIVEN_LABEL)
    return read_sources(table.cells(column), None if given is None else table.cells(given), sources)
