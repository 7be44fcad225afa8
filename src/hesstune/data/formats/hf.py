"""Data sets of the library datasets: `hf:NAME_OR_PATH`, and those in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hesstune.data.examples import Listing
from hesstune.data.formats._base import DataFormat
from hesstune.data.images import decode_objects
from hesstune.data.reading import Reading
from hesstune.data.tables import listing_of, parts_note, parts_of
from hesstune.errors import DataError, MissingExtraError, cut, listed
from hesstune.resizing import Size
from hesstune.storage.columns import Column, CsvTable, as_cell
from hesstune.storage.files import reading

# {role: the usual names of its column, in order of preference}.
USUAL = {
    "text": ("text", "sentence", "sentence1", "premise", "question"),
    "text2": ("text2", "sentence2", "hypothesis"),
    "image": ("image", "img"),
    "label": ("label", "labels"),
    "id": ("id",),
}
# What `save_to_disk` writes beside the examples.
SAVED = ("dataset_dict.json", "state.json")
# The name, which no column has, of the column of the splits' parts.
PART = "\0part"
# How the types of columns begin that are read beside those with a role.
WRITTEN = ("string", "large_string", "int", "uint")


class HuggingFace(DataFormat):
    """A data set of the library datasets, from a folder made by `save_to_disk` or the hub."""

    written = "hf:NAME_OR_PATH"
    summary = "A data set of the library datasets, on the hub or in a folder made by its `save_to_disk`."
    has_columns = True

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return path.is_dir() and any((path / name).is_file() for name in SAVED)

    @classmethod
    def read(cls, path: str, size: Size, labelled: bool, how: Reading) -> Listing:
        found = _load(path)
        with reading(f"hf:{path}", "a data set", DataError):
            return read_data_set(found, f"hf:{path}", size, labelled, how)


def _load(name: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("datasets", "transformers", "data hf:NAME") from None
    datasets.disable_progress_bars()
    path = Path(name)
    if path.is_file():
        raise DataError(
            f"hf:{name} names a file that is no table; give the folder that save_to_disk wrote, or a table "
            "such as csv:PATH"
        )
    if path.is_absolute() and not path.exists():
        raise DataError(f"datasets cannot load '{name}': there is no such folder")
    try:
        if HuggingFace.recognises(path):
            found = datasets.load_from_disk(str(path))
            # Offsets that lead outside of a damaged file would end the process on reading.
            for rows in found.values() if isinstance(found, dict) else (found,):
                for kept in (rows.data, getattr(rows, "_indices", None)):
                    if kept is not None:
                        kept.table.validate(full=True)
            return found
        base, _, configuration = name.partition("/")
        if base in ("glue", "super_glue") and configuration:
            return datasets.load_dataset(base, configuration)
        return datasets.load_dataset(name)
    except Exception as error:  # the hub, the files and the library each raise their own kinds
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(f"datasets cannot load '{name}': {reason}") from error


def read_data_set(found: Any, what: str, size: Size, labelled: bool, how: Reading) -> Listing:
    """List the examples of a Dataset or DatasetDict, `what` in messages; see `DataFormat.read`.

    Splits of a dictionary that are named like parts are read, or all splits if no labels are required. Rows
    labelled −1 or None (hidden test labels) are left out.
    """
    splits, parts, notes = _splits(found, what, labelled)
    first = next(iter(splits.values()))
    roles, guessed = how.columns.find(first.column_names, USUAL, what)
    notes += guessed
    inputs = roles.get("text", roles.get("image", ""))
    if short := [split for split, rows in splits.items() if inputs not in rows.column_names]:
        raise DataError(f"the split '{cut(short[0])}' of {what} has no column '{inputs}'; take it out")
    own = {"split", "text2"} - set(roles.values())  # not read as tables are
    cells = {
        name: [_cell(value, name, what, name == roles.get("label")) for value in _values(splits, name)]
        for name, feature in first.features.items()
        if name != roles.get("image")
        and (name in (*roles.values(), how.split_column) or (_is_written(feature) and name not in own))
    }
    if "id" in roles and "id" not in how.columns.demanded:
        ids = cells[roles["id"]]
        if not all(ids) or len(set(ids)) < len(ids):
            del cells[roles["id"]]
            notes.append(
                f"the column '{roles.pop('id')}' of {what} repeats some ids, or leaves some out: rows are "
                "numbered instead"
            )
    rows = [f"{split}/{i}" for split, part in splits.items() for i in range(len(part))]
    ids = rows if len(splits) > 1 else [str(i) for i in range(len(rows))]
    columns = {name: Column(values, names=ids) for name, values in cells.items()}
    if len(splits) > 1:
        columns[PART] = Column([parts[split] for split, part in splits.items() for _ in range(len(part))])
        roles = {**roles, "split": PART}
    images = None
    if "image" in roles:
        shown = cells.get(roles.get("id", ""), ids)
        images = decode_objects(_raw_images(splits, roles.pop("image")), size, how.background, shown)
    return listing_of(
        CsvTable(what, Path(), columns),
        roles,
        how,
        labelled,
        images=images,
        names=_class_names(first.features.get(roles.get("label"))),
        ids=ids,
        notes=notes,
    )


def _splits(found: Any, what: str, labelled: bool) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Return {split: rows} of what is read, {split: part}, and what was guessed or left out."""
    splits = dict(found) if isinstance(found, dict) else {"train": found}
    if not all(hasattr(rows, "__len__") for rows in splits.values()):
        raise DataError(f"{what} is streamed; load it whole, without streaming=True")
    splits = {split: rows for split, rows in splits.items() if len(rows)}
    parts, others = parts_of(splits)
    if not splits:
        raise DataError(f"{what} holds no examples")
    if not labelled:
        return splits, {split: parts.get(split, "") for split in splits}, []
    if "train" not in parts.values():
        raise DataError(f"{what} needs a split 'train'; got {listed(list(splits))}")
    left = [f"{cut(split)} ({len(splits[split])} rows)" for split in others]
    notes = [f"splits that are no part's by their names left out: {listed(left)}"] if left else []
    return {split: splits[split] for split in parts}, parts, [*parts_note(parts), *notes]


def _is_written(feature: Any) -> bool:
    return str(getattr(feature, "dtype", "")).startswith(WRITTEN)


def _class_names(feature: Any) -> list[str] | None:
    """Return the names of a column of class labels, or of lists of them."""
    names = getattr(getattr(feature, "feature", feature), "names", None)
    return names and [str(name) for name in names]


def _values(splits: dict[str, Any], column: str) -> Iterator[Any]:
    """Yield a column's values, None in splits that lack it."""
    for rows in splits.values():
        yield from rows[column] if column in rows.column_names else [None] * len(rows)


def _cell(value: Any, column: str, what: str, is_label: bool) -> str:
    """Return a value as a cell; labels may be lists, which are read as several classes."""
    if is_label and isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list | dict | tuple | bytes):
        raise DataError(
            f"the column '{column}' of {what} holds {type(value).__name__}, not one text or label an example"
        )
    return as_cell(value)


def _raw_images(splits: dict[str, Any], column: str) -> Iterator[Any]:
    """Yield images as they are stored, not decoded by the library."""
    import datasets

    for rows in splits.values():
        alone = rows.select_columns([column])
        if isinstance(rows.features.get(column), datasets.Image):
            alone = alone.cast_column(column, datasets.Image(decode=False))
        for row in alone:
            yield row[column]


FORMAT = HuggingFace
