"""Tables in files: `csv:PATH`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from hesstune.data.examples import Listing
from hesstune.data.formats._base import DataFormat
from hesstune.data.images import Pixels, decode_objects
from hesstune.data.reading import Reading
from hesstune.data.tables import USUAL, listing_of, parts_note, parts_of
from hesstune.errors import DataError, listed
from hesstune.resizing import Size
from hesstune.storage.columns import Column, CsvTable
from hesstune.storage.table_files import SUFFIXES, form_of, shards_of, sheet_of
from hesstune.storage.tables import read_table


class Csv(DataFormat):
    """A table: a file, or the files in a folder or of a pattern, one after another."""

    written = "csv:PATH"
    summary = (
        "A CSV file, or a .tsv file separated by tabs, with columns `text` (and `text2` for pairs) or "
        "`image` (a path), and `label`; perhaps `id` and `split`. Columns `vote_…`, one per annotator, "
        "replace `label`."
    )
    has_columns = True
    is_table = True
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES["csv"]

    @classmethod
    def recognises(cls, path: Path) -> bool:
        file = sheet_of(path)[0]
        if (shards := shards_of(file)) is not None:
            return any(each.suffix.lower() in cls.suffixes for each in shards.files)
        return file.is_file() and file.suffix.lower() in cls.suffixes

    @classmethod
    def read(cls, path: str, size: Size, labelled: bool, how: Reading) -> Listing:
        form = next(form for form, own in SUFFIXES.items() if own == cls.suffixes)
        table = read_table(path, form=form)
        notes = []
        if not table.shards and (own := form_of(sheet_of(path)[0]) or form) != form:
            notes.append(f"{path} is read as {own}:{path}")
        table, roles, more = with_roles(table, how)
        images, table = _stored_images(table, roles, size, how)
        if images is not None:
            roles = {role: column for role, column in roles.items() if role != "image"}
        return listing_of(table, roles, how, labelled, images=images, notes=[*notes, *more])


def with_roles(
    table: CsvTable, how: Reading, needs_inputs: bool = True
) -> tuple[CsvTable, dict[str, str], list[str]]:
    """Return a table, {role: column}, and notes; parts named by the names of its files are a column, too.

    DataError is raised if a named column is missing, or that of texts or images, if inputs are needed.
    """
    table, notes = _with_parts(table)
    roles, guessed = how.columns.find(list(table.columns), USUAL, table.name, needs_inputs)
    return table, roles, [*notes, *guessed]


def _with_parts(table: CsvTable) -> tuple[CsvTable, list[str]]:
    """Add a column `split` if the files of a table are named like parts: train-00000-of-00002.parquet."""
    if not table.shards or "split" in table:
        return table, []
    names = [Path(shard).parts for shard, _ in table.shards]
    stems = [next((p for p in (*own[:-1], Path(own[-1]).stem) if parts_of([p])[0]), "") for own in names]
    parts, _ = parts_of(stems)
    if "train" not in parts.values() or len(set(parts.values())) < 2:
        return table, []
    if strange := [shard for (shard, _), stem in zip(table.shards, stems, strict=True) if stem not in parts]:
        raise DataError(
            f"some files of {table.name} are named like parts of the data and others are not: "
            f"{listed(strange, 3)}; name one file, or a pattern such as train*"
        )
    cells, start = list[str](), 0
    for (_, end), stem in zip(table.shards, stems, strict=True):
        cells += [parts[stem]] * (end - start)
        start = end
    like = next(iter(table.columns.values()))
    return replace(table, columns={**table.columns, "split": like.like(cells)}), parts_note(parts)


def _stored_images(
    table: CsvTable, roles: Mapping[str, str], size: Size, how: Reading
) -> tuple[Pixels | None, CsvTable]:
    """Return the images whose bytes a table holds, or None, and the table without their column."""
    column = table.columns.get(roles.get("image", ""))
    if column is None or column.objects is None:
        return None, table
    ids: Sequence[str] | None = table.cells(roles["id"]) if "id" in roles else None
    images = decode_objects(column.objects, size, how.background, ids)
    others: dict[str, Column] = {name: own for name, own in table.columns.items() if own is not column}
    if not others:
        raise DataError(f"{table.name} has no column beside its images")
    return images, replace(table, columns=others)


FORMAT = Csv
