"""Data sets that are Python objects: frames, arrays, lists, map-style data sets, those of datasets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.checks import expanded
from hesstune.data.arrays import as_images, scaled
from hesstune.data.class_labels import with_labels
from hesstune.data.contents import Digests, image_digests
from hesstune.data.csv_listing import USUAL, listing_of
from hesstune.data.examples import Listing
from hesstune.data.hub import hub_listing
from hesstune.data.images import readable_suffixes
from hesstune.data.pictures import decode_pictures
from hesstune.data.reading import Columns, Reading
from hesstune.errors import DataError, cut, plain
from hesstune.storage.tables import Column, CsvTable, as_cell

WANTED = (
    "a string such as digits or csv:PATH, a pandas DataFrame, (X, y), a map-style data set of (input, label) "
    "or a datasets.Dataset"
)


@dataclass
class _Found:
    """What an object holds: one of texts, image files and decoded images; and other columns, as text."""

    name: str
    texts: list[str] | None = None
    paths: list[str] | None = None
    array: torch.Tensor | None = None
    digests: Digests | None = None
    columns: dict[str, list[str]] = field(default_factory=dict)
    classes: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    bad: dict[int, str] = field(default_factory=dict)
    # The number of the first row, as its user counts.
    first: int = 0

    def __len__(self) -> int:
        return len(next(x for x in (self.texts, self.paths, self.array) if x is not None))


@dataclass(frozen=True)
class _To:
    """What images are brought to."""

    size: int
    background: tuple[int, int, int]


def listing_of_object(data: Any, size: int, labelled: bool = True, how: Reading | None = None) -> Listing:
    """List the examples that an object holds.

    Args:
        data: A pandas DataFrame (columns as of `csv:` data; `image` may also hold PIL images or arrays); a
            pair (X, y) of inputs and labels; a map-style data set of (input, label); or a Dataset or
            DatasetDict of the library datasets. Inputs are texts, image files (paths, or strings that all
            end as image files do), PIL images, or arrays of images: (N, H, W), (N, H, W, C) or
            (N, C, H, W), integers 0 … 255 or floats 0 … 1. Labels are class names, or indices from 0.
            Where no labels are needed, inputs alone will do.
        size: Side in pixels that images are brought to: files and PIL images cut to a square, arrays as
            they are.
        labelled: Whether labels are needed.
        how: Which columns hold what, how votes become labels, and what lies behind transparent images.

    Raises:
        DataError: If it is something else, or cannot be used, with what is needed.
    """
    how = how or Reading()
    if isinstance(data, Listing):
        return data
    if _from(data, "datasets") and (hasattr(data, "column_names") or isinstance(data, dict)):
        return hub_listing(data, "the data set", size, labelled, how)
    found = _found(data, _To(size, how.background), labelled, how.columns)
    if not len(found):
        raise DataError(f"{found.name} holds no examples")
    return _listed(found, labelled, how)


def _from(given: object, package: str) -> bool:
    """Tell whether an object's class is of a package, without importing it."""
    return type(given).__module__.partition(".")[0] == package


def _found(data: Any, to: _To, labelled: bool, columns: Columns) -> _Found:
    if _is_frame(data):
        return _frame(data, to, columns)
    if columns.demanded:
        raise DataError(f"{columns.demanded[0]}_column names a column, and this data has none; leave it out")
    if isinstance(data, tuple) and len(data) == 2:
        return _pair(*data, to)
    if _is_inputs(data) and not _holds_pairs(data):
        if labelled:
            raise DataError(f"data holds inputs without labels; give (X, y). Data is {WANTED}")
        return _inputs(data, to, "data")
    sized = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if sized and not isinstance(data, Mapping | str | bytes):
        return _map_style(data, to, labelled)
    lacks = "" if sized or not hasattr(data, "__iter__") else "; an iterable must be read into a list first"
    raise DataError(f"data must be {WANTED}; got {type(data).__name__}{lacks}")


def _is_frame(given: object) -> bool:
    return _from(given, "pandas") and hasattr(given, "columns")


def _is_inputs(given: object) -> bool:
    """Tell whether an object holds inputs alone: an array, a tensor, a list, a column of a frame."""
    return isinstance(given, np.ndarray | torch.Tensor | list) or _from(given, "pandas")


def _holds_pairs(given: Any) -> bool:
    first = given[0] if isinstance(given, list) and given else None
    return isinstance(first, tuple) and len(first) == 2


def _frame(frame: Any, to: _To, columns: Columns) -> _Found:
    names = [str(name) for name in frame.columns]
    values = {name: list(frame.iloc[:, at]) for at, name in enumerate(names)}
    if len(values) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"the DataFrame has two columns called '{cut(twice)}'; give each a name of its own")
    name = "the DataFrame (its header being row 1)"
    roles, notes = columns.found(names, USUAL, "the DataFrame")
    kinds = [role for role in ("image", "text") if role in roles]
    if len(kinds) != 1:
        raise DataError(
            "the DataFrame needs either a column 'image' or a column 'text'; got "
            + ("both" if kinds else ", ".join(map(cut, names)) or "no column")
            + "; --text-column or --image-column names another"
        )
    own = values[roles[kinds[0]]]
    if kinds == ["text"]:
        found = _Found(name, texts=_cells(own))
    elif own and isinstance(own[0], str):
        found = _Found(name, paths=[row if isinstance(row, str) else as_cell(row) for row in own])
    else:
        found = _inputs(own, to, name)
    rest = {n: n for n in names if n not in roles and n not in roles.values()}
    found.columns |= {
        role: _cells(values[column]) for role, column in (roles | rest).items() if role != kinds[0]
    }
    found.first = 2
    found.notes = [*notes, *found.notes]
    if "id" not in found.columns and (ids := _index(frame)) is not None:
        found.columns["id"] = ids
        found.notes.append("the ids are the DataFrame's index")
    for at, level in enumerate(frame.index.names):
        # A named index that repeats values may group the rows: it is a column like others.
        if level is not None and str(level) not in found.columns and str(level) not in names:
            found.columns[str(level)] = _cells(frame.index.get_level_values(at))
    return found


def _index(frame: Any) -> list[str] | None:
    """Return a frame's index as ids, where it says more than the rows' numbers and tells them apart."""
    ids = _cells(frame.index)
    numbered = ids == [str(i) for i in range(len(ids))]
    return None if numbered or not all(ids) or len(set(ids)) < len(ids) else ids


def _pair(inputs: Any, labels: Any, to: _To) -> _Found:
    if isinstance(inputs, str | bytes):
        raise DataError("of (X, y), X holds the inputs of all examples; got one text: give lists, ([X], [y])")
    found = _frame(inputs, to, Columns()) if _is_frame(inputs) else _inputs(inputs, to, "X")
    if labels is None:
        return found
    if getattr(labels, "ndim", 1) != 1:
        raise DataError(
            f"y must be one label an example, (N,); got the shape {tuple(labels.shape)}. Multi-label targets "
            "are not supported"
        )
    cells = _cells(labels)
    if len(cells) != len(found):
        raise DataError(f"X has {len(found)} examples, but y has {len(cells)} labels")
    if _from(inputs, "pandas") and _from(labels, "pandas") and not inputs.index.equals(labels.index):
        raise DataError(
            "X and y have different indices, so it is not sure which label is whose: give y.loc[X.index], or "
            "y.to_numpy() to match them by position"
        )
    found.columns["label"] = cells
    return found


def _map_style(data: Any, to: _To, labelled: bool) -> _Found:
    """Read a data set of (input, label) once, in order; one that draws at random is read as it falls."""
    items = list(islice((data[i] for i in range(len(data))), len(data)))
    what = type(data).__name__
    pairs = [isinstance(item, tuple | list) and len(item) == 2 for item in items]
    if labelled and not all(pairs):
        odd = pairs.index(False)
        raise DataError(f"items of {what} must be (input, label); got {type(items[odd]).__name__} at {odd}")
    if not items:
        return _Found(what, texts=[])
    if not all(pairs):
        return _inputs(items, to, what)
    found = _inputs([x for x, _ in items], to, what)
    found.columns["label"] = _cells([y for _, y in items])
    classes = getattr(data, "classes", None)
    if isinstance(classes, Sequence) and not isinstance(classes, str):
        found.classes = [str(name) for name in classes]
    return found


def _cells(values: Any) -> list[str]:
    """Return values as cells of a table."""
    return [as_cell(value) for value in (values.tolist() if hasattr(values, "tolist") else values)]


def _inputs(given: Any, to: _To, what: str) -> _Found:
    """Tell texts, image files and images apart by the first of them that is there."""
    if isinstance(given, torch.Tensor):
        given = given.detach().cpu().numpy()
    if isinstance(given, np.ndarray) and given.dtype.kind in "buifc":
        images, notes = _images(given, what, to)
        return _Found(what, array=scaled(images, to.size), digests=image_digests(images), notes=notes)
    rows = list(given)
    first = next((row for row in rows if not _is_none(row)), "")
    kinds = {_kind(row) for row in rows if not _is_none(row)}
    if len(kinds) > 1:
        raise DataError(f"{what} mixes kinds of inputs: {', '.join(sorted(kinds))}; give one kind")
    if (gone := [at for at, row in enumerate(rows) if _is_none(row)]) and not isinstance(first, str):
        raise DataError(f"{what} has no input at {gone[0]} ({len(gone)} in all); take such rows out")
    if isinstance(first, Path) or (rows and not gone and isinstance(first, str) and _are_files(rows)):
        return _Found(what, paths=[str(row) for row in rows])
    if isinstance(first, str):
        return _Found(what, texts=_cells(rows))
    if isinstance(first, tuple):
        if not all(len(row) == 2 and all(isinstance(text, str) for text in row) for row in rows):
            raise DataError(f"{what} holds tuples; an input is a text, two texts, an image or its file")
        return _Found(what, texts=[a for a, _ in rows], columns={"text2": [b for _, b in rows]})
    if hasattr(first, "convert"):
        array, digests, bad, notes = decode_pictures(rows, to.size, to.background)
        return _Found(what, array=array, digests=digests, bad=bad, notes=notes)
    array, digests, notes = _stacked(rows, to, what)
    return _Found(what, array=array, digests=digests, notes=notes)


def _is_none(row: object) -> bool:
    return row is None or (isinstance(row, float) and row != row) or type(row).__name__ == "NAType"


def _kind(row: object) -> str:
    """Name the kind of an input."""
    if isinstance(row, str):
        return "str"
    if isinstance(row, Path):
        return "Path"
    return "image" if hasattr(row, "convert") else type(row).__name__


def _are_files(rows: list[str]) -> bool:
    suffixes = readable_suffixes()
    return all(row.lower().endswith(suffixes) for row in rows)


def _stacked(rows: list[Any], to: _To, what: str) -> tuple[torch.Tensor, Digests, list[str]]:
    """Bring arrays of images, all of one shape at once or one by one, to (N, 3, size, size) uint8.

    Also return their digests, and what was changed.
    """
    try:
        arrays = [np.asarray(row.detach().cpu() if isinstance(row, torch.Tensor) else row) for row in rows]
    except (TypeError, ValueError, RuntimeError):
        arrays = []
    if not arrays or arrays[0].dtype.kind not in "buifc":
        raise DataError(
            f"inputs are texts, image files, PIL images or arrays of images; {what} holds "
            f"{type(rows[0]).__name__}"
        )
    if len({(array.shape, array.dtype) for array in arrays}) == 1:
        images, notes = _images(np.stack(arrays), what, to)
        return scaled(images, to.size), image_digests(images), notes
    made = [_images(array[None], f"{what}, row {at},", to) for at, array in enumerate(arrays)]
    told = Counter(note for _, notes in made for note in notes)
    array = torch.cat([scaled(images, to.size) for images, _ in made])
    digests = np.concatenate([image_digests(images) for images, _ in made])
    return array, digests, [f"{n} {t}" for t, n in told.items()]


def _images(array: NDArray[np.generic], what: str, to: _To) -> tuple[NDArray[np.generic], list[str]]:
    """Return images as (N, H, W, C); (N, C, H, W) is known by its 1, 3 or 4 channels."""
    if array.ndim == 2:
        raise DataError(
            f"{what} must hold texts or images of the shape (N, H, W), (N, H, W, C) or (N, C, H, W); got a "
            f"table of numbers, {array.shape}: no network here reads one"
        )
    if array.ndim == 4 and array.shape[1] in (1, 3, 4) and array.shape[3] not in (1, 3, 4):
        array = array.transpose(0, 2, 3, 1)
    return as_images(array, what, to.background)


def _listed(found: _Found, labelled: bool, how: Reading) -> Listing:
    """Read the columns as those of a table of texts or image files, and put decoded images in place."""
    columns = dict(found.columns)
    if found.paths is not None:
        columns["image"] = [str(expanded(path).absolute()) for path in found.paths]
        if "id" not in columns and len(set(found.paths)) == len(found.paths):
            columns["id"] = [plain(path) for path in found.paths]
    else:
        # The row's number stands for a decoded image.
        columns["text"] = [str(i) for i in range(len(found))] if found.texts is None else found.texts
    named = None if found.classes is None else columns.pop("label", None)
    table = CsvTable.of(columns, found.name, first=found.first)
    made = listing_of(table, labelled and named is None, replace(how, columns=Columns()))
    made = replace(made, notes=[*found.notes, *made.notes])
    if named is not None:
        made = with_labels(made, Column(named, found.first), found.name, labelled, found.classes)
    if found.array is None:
        return made
    assert made.texts is not None
    rows = [int(row) for row, _ in made.texts]
    bad = {at: found.bad[row] for at, row in enumerate(rows) if row in found.bad}
    digests = None if found.digests is None else found.digests[rows]
    return replace(made, texts=None, array=found.array[rows], bad=bad, digests=digests)
