"""Data sets of the library datasets: `hf:NAME_OR_PATH`, from a folder made by save_to_disk or the hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hesstune.data.class_labels import with_labels
from hesstune.data.examples import Listing, Text
from hesstune.data.groups import possible_groups
from hesstune.data.label_sources import GIVEN_LABEL, SOURCE, column_named, read_sources
from hesstune.data.parts import parts_note, parts_of
from hesstune.data.pictures import decode_pictures
from hesstune.data.reading import Columns, Reading
from hesstune.errors import DataError, MissingExtraError, cut, listed, unknown_name
from hesstune.storage.files import reading
from hesstune.storage.tables import Column, as_cell

# What columns are called where nobody says otherwise.
USUAL = {
    "text": ("text", "sentence", "sentence1", "premise", "question"),
    "text2": ("text2", "sentence2", "hypothesis"),
    "image": ("image", "img"),
    "label": ("label", "labels"),
    "id": ("id",),
}
# How the types of columns begin whose values may be names or ids.
WRITTEN = ("string", "large_string", "int", "uint")


def read_hub(name: str, size: int, labelled: bool, how: Reading | None = None) -> Listing:
    """List the examples of a data set: a text (or pair) or an image column, and a label column.

    Args:
        name: A folder made by `save_to_disk`, or a name on the hub, perhaps `NAME/CONFIGURATION` such as
            `glue/sst2`.
        size: Side that images are brought to.
        labelled: Whether labels are needed. Rows labelled −1 or None (hidden test labels) are left out.
        how: Which columns hold what, and what lies behind transparent images.

    Raises:
        MissingExtraError: If the library datasets is not installed.
        DataError: If the data set cannot be loaded or has no such columns.
    """
    found = _loaded(name)
    with reading(f"hf:{name}", "a data set", DataError):
        return hub_listing(found, f"hf:{name}", size, labelled, how)


def hub_listing(found: Any, what: str, size: int, labelled: bool, how: Reading | None = None) -> Listing:
    """List the examples of a Dataset or DatasetDict in memory; see `read_hub`.

    Args:
        found: The data set; of a dictionary the parts train, validation (dev, val) and test count, others
            where no labels are needed.
        what: What messages call it.
        size: Side that images are brought to.
        labelled: Whether labels are needed.
        how: Which columns hold what, and what lies behind transparent images.
    """
    how = how or Reading()
    splits, parts, notes = _splits(found, what, labelled)
    roles, more = _roles(splits, how.columns, what, labelled)
    rows = [f"{split}/{i}" for split, own in splits.items() for i in range(len(own))]
    plain = rows if len(splits) > 1 else [str(i) for i in range(len(rows))]
    ids, told = _ids(splits, roles, plain, what, how.columns)
    given = [parts[s] for s, own in splits.items() for _ in own] if len(splits) > 1 else None
    kept = _told(splits, how.told, what)
    made = Listing(ids, None, [], parts=given, notes=[*notes, *more, *told], told=kept)
    if "text" in roles:
        second = roles.get("text2")
        seconds = [None] * len(rows) if second is None else list(_texts(splits, second, what))
        texts: list[Text] = list(zip(_texts(splits, roles["text"], what), seconds, strict=True))
        made = replace(made, texts=texts)
    else:
        raw = _raw_images(splits, roles["image"])
        array, digests, bad, more = decode_pictures(raw, size, how.background, ids)
        made = replace(made, array=array, digests=digests, bad=bad, notes=[*made.notes, *more])
    if "label" not in roles:
        return made
    names = getattr(next(iter(splits.values())).features.get(roles["label"]), "names", None)
    cells = [as_cell(_plain(v, roles["label"], what)) for v in _values(splits, roles["label"])]
    column = Column(cells, names=plain)
    if not labelled:
        return with_labels(made, column, what, labelled, names and [str(n) for n in names], hidden=True)
    others = {name: Column(list(_texts(splits, name, what))) for name in _others(splits, roles)}
    shown = cells if names is None else _shown(cells, names)
    given, said = (
        None if (own := column_named(others, name)) is None else others[own].cells()
        for name in (GIVEN_LABEL, SOURCE)
    )
    made = replace(made, label_sources=read_sources(shown, given, said))
    made = with_labels(made, column, what, labelled, names and [str(n) for n in names], hidden=True)
    return replace(made, groups=possible_groups(others, made.classes))


def _loaded(name: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("datasets", "transformers", "data hf:NAME") from None
    datasets.disable_progress_bars()
    path = Path(name)
    try:
        if path.is_dir() and ((path / "dataset_dict.json").is_file() or (path / "state.json").is_file()):
            return _sound(datasets.load_from_disk(str(path)))
        base, _, configuration = name.partition("/")
        if base in ("glue", "super_glue") and configuration:
            return datasets.load_dataset(base, configuration)
        return datasets.load_dataset(name)
    except Exception as error:  # the hub, the files and the library each raise their own kinds
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(f"datasets cannot load '{name}': {reason}") from error


def _sound(found: Any) -> Any:
    """Return a data set from files; raise where its offsets lead outside: reading such ends the process."""
    for rows in found.values() if isinstance(found, dict) else (found,):
        for kept in (rows.data, getattr(rows, "_indices", None)):
            if kept is not None:
                kept.table.validate(full=True)
    return found


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


def _roles(
    splits: dict[str, Any], columns: Columns, what: str, labelled: bool
) -> tuple[dict[str, str], list[str]]:
    """Return {role: column}, and what was guessed."""
    names = next(iter(splits.values())).column_names
    roles, notes = columns.found(names, USUAL, what)
    if labelled and "label" not in roles:
        raise DataError(
            f"{what} needs a column 'label'; got the columns {listed(names)}; another is told by "
            "--label-column"
        )
    if ("text" in roles) == ("image" in roles):
        raise DataError(
            f"{what} needs either a text column ({listed(USUAL['text'], 9)}) or an image column "
            f"({listed(USUAL['image'])}); got {listed(names)}; say which by --text-column or --image-column"
        )
    needed = roles.get("text", roles.get("image", ""))
    if short := [split for split, rows in splits.items() if needed not in rows.column_names]:
        raise DataError(f"the split '{cut(short[0])}' of {what} has no column '{needed}'; take it out")
    return roles, notes


def _others(splits: dict[str, Any], roles: dict[str, str]) -> list[str]:
    """Return the columns of texts and integers that are read as nothing else."""
    features = next(iter(splits.values())).features
    kinds = {name: str(getattr(feature, "dtype", "")) for name, feature in features.items()}
    return [n for n, kind in kinds.items() if n not in roles.values() and kind.startswith(WRITTEN)]


def _shown(cells: list[str], names: Sequence[str]) -> list[str]:
    """Return labels that are indices into names as names."""
    index = {str(at): str(name) for at, name in enumerate(names)}
    return [index.get(cell, cell) for cell in cells]


def _values(splits: dict[str, Any], column: str) -> Iterator[Any]:
    """Yield a column's values, None in splits that lack it."""
    for rows in splits.values():
        yield from rows[column] if column in rows.column_names else [None] * len(rows)


def _plain(value: Any, column: str, what: str) -> Any:
    if isinstance(value, list | dict | tuple | bytes):
        raise DataError(
            f"the column '{column}' of {what} holds {type(value).__name__}, not one text or label an example"
        )
    return value


def _told(splits: dict[str, Any], column: str | None, what: str) -> list[str] | None:
    """Return the column that the data is split by, where there is one to be."""
    if column is None:
        return None
    names = next(iter(splits.values())).column_names
    if column not in names:
        raise unknown_name(f"column of {what} to split by,", column, list(names), DataError)
    return list(_texts(splits, column, what))


def _texts(splits: dict[str, Any], column: str, what: str) -> Iterator[str]:
    return (as_cell(_plain(value, column, what)) for value in _values(splits, column))


def _ids(
    splits: dict[str, Any], roles: dict[str, str], plain: list[str], what: str, columns: Columns
) -> tuple[list[str], list[str]]:
    """Return the examples' ids: of the column of ids where each has its own there, else split and row."""
    if "id" not in roles:
        return plain, []
    ids = list(_texts(splits, roles["id"], what))
    if all(ids) and len(set(ids)) == len(ids):
        return ids, []
    told = f"the column '{roles['id']}' of {what} repeats some ids, or leaves some out"
    if "id" in columns.demanded:
        raise DataError(f"{told}; each example needs its own: leave --id-column out to number the rows")
    return plain, [f"{told}: rows are numbered instead"]


def _raw_images(splits: dict[str, Any], column: str) -> Iterator[Any]:
    """Yield images as they are stored, not decoded by the library."""
    import datasets

    for rows in splits.values():
        alone = rows.select_columns([column])
        if isinstance(rows.features.get(column), datasets.Image):
            alone = alone.cast_column(column, datasets.Image(decode=False))
        for row in alone:
            yield row[column]
