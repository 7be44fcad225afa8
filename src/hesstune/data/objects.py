"""Data sets that are Python objects: frames, arrays, lists, map-style data sets, those of datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.data.arrays import as_images, scaled, square_pixels
from hesstune.data.csv_listing import Voting, listing_of
from hesstune.data.examples import Listing
from hesstune.data.hub import hub_listing
from hesstune.data.images import SUFFIXES
from hesstune.errors import DataError, cut
from hesstune.storage.csv_table import Column, CsvTable

__all__ = ["listing_of_object"]

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
    columns: dict[str, list[str]] = field(default_factory=dict)
    classes: list[str] | None = None

    def __len__(self) -> int:
        return len(next(x for x in (self.texts, self.paths, self.array) if x is not None))


def listing_of_object(data: Any, size: int, labelled: bool = True, voting: Voting | None = None) -> Listing:
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
        voting: How votes in a DataFrame's columns become labels.

    Raises:
        DataError: If it is something else, or cannot be used, with what is needed.
    """
    if isinstance(data, Listing):
        return data
    if _from(data, "datasets") and (hasattr(data, "column_names") or isinstance(data, dict)):
        return hub_listing(data, "the data set", size, labelled)
    found = _found(data, size, labelled)
    if not len(found):
        raise DataError(f"{found.name} holds no examples")
    return _listed(found, labelled, voting)


def _from(given: object, package: str) -> bool:
    """Tell whether an object's class is of a package, without importing it."""
    return type(given).__module__.partition(".")[0] == package


def _found(data: Any, size: int, labelled: bool) -> _Found:
    if _is_frame(data):
        return _frame(data, size)
    if isinstance(data, tuple) and len(data) == 2:
        return _pair(*data, size)
    if _is_inputs(data) and not _holds_pairs(data):
        if labelled:
            raise DataError(f"data holds inputs without labels; give (X, y). Data is {WANTED}")
        return _inputs(data, size, "data")
    sized = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if sized and not isinstance(data, Mapping | str | bytes):
        return _map_style(data, size, labelled)
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


def _frame(frame: Any, size: int) -> _Found:
    columns = [str(name) for name in frame.columns]
    kinds = [name for name in ("image", "text") if name in columns]
    if len(kinds) != 1:
        raise DataError(
            "the DataFrame needs either a column 'image' or a column 'text'; got "
            + ("both" if kinds else ", ".join(map(cut, columns)) or "no column")
        )
    values = {name: list(frame.iloc[:, at]) for at, name in enumerate(columns)}
    if len(values) < len(columns):
        raise DataError("the DataFrame has two columns of one name; give each a name of its own")
    own = values.pop(kinds[0])
    name = "the DataFrame (its header being row 1)"
    if kinds == ["text"]:
        found = _Found(name, texts=_cells(own))
    elif own and isinstance(own[0], str):
        found = _Found(name, paths=_cells(own))
    else:
        found = _inputs(own, size, name)
    found.columns |= {column: _cells(cells) for column, cells in values.items()}
    return found


def _pair(inputs: Any, labels: Any, size: int) -> _Found:
    if isinstance(inputs, str | bytes):
        raise DataError("of (X, y), X holds the inputs of all examples; got one text: give lists, ([X], [y])")
    found = _frame(inputs, size) if _is_frame(inputs) else _inputs(inputs, size, "X")
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
    found.columns["label"] = cells
    return found


def _map_style(data: Any, size: int, labelled: bool) -> _Found:
    """Read a data set of (input, label) once, in order; one that draws at random is read as it falls."""
    items = list(islice((data[i] for i in range(len(data))), len(data)))
    what = type(data).__name__
    pairs = [isinstance(item, tuple | list) and len(item) == 2 for item in items]
    if labelled and not all(pairs):
        odd = items[pairs.index(False)]
        raise DataError(f"items of {what} must be (input, label); got {type(odd).__name__}")
    if not items:
        return _Found(what, texts=[])
    if not all(pairs):
        return _inputs(items, size, what)
    found = _inputs([x for x, _ in items], size, what)
    found.columns["label"] = _cells([y for _, y in items])
    classes = getattr(data, "classes", None)
    if isinstance(classes, Sequence) and not isinstance(classes, str):
        found.classes = [str(name) for name in classes]
    return found


def _cells(values: Any) -> list[str]:
    """Return values as cells of a table: whole numbers without a point, what is missing empty."""
    return [_cell(value) for value in (values.tolist() if hasattr(values, "tolist") else values)]


def _cell(value: Any) -> str:
    if hasattr(value, "item") and getattr(value, "size", 1) != 0:
        value = value.item()
    if value is None or type(value).__name__ in ("NAType", "NaTType") or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _inputs(given: Any, size: int, what: str) -> _Found:
    """Tell texts, image files and images apart by the first of them."""
    if isinstance(given, torch.Tensor):
        given = given.detach().cpu().numpy()
    if isinstance(given, np.ndarray) and given.dtype.kind in "buifc":
        return _Found(what, array=scaled(_images(given, what), size))
    rows = list(given)
    first = rows[0] if rows else ""
    kinds = {_kind(row) for row in rows}
    if len(kinds) > 1:
        raise DataError(f"{what} mixes kinds of inputs: {', '.join(sorted(kinds))}; give one kind")
    if isinstance(first, Path) or (rows and isinstance(first, str) and _are_files(rows)):
        return _Found(what, paths=[str(row) for row in rows])
    if isinstance(first, str):
        return _Found(what, texts=[str(row) for row in rows])
    if isinstance(first, tuple):
        if not all(len(row) == 2 and all(isinstance(text, str) for text in row) for row in rows):
            raise DataError(f"{what} holds tuples; an input is a text, two texts, an image or its file")
        return _Found(what, texts=[a for a, _ in rows], columns={"text2": [b for _, b in rows]})
    return _Found(what, array=_stacked(rows, size, what))


def _kind(row: object) -> str:
    """Name the kind of an input."""
    if isinstance(row, str):
        return "str"
    if isinstance(row, Path):
        return "Path"
    return "image" if hasattr(row, "convert") else type(row).__name__


def _are_files(rows: list[str]) -> bool:
    return all(row.lower().endswith(SUFFIXES) for row in rows)


def _stacked(rows: list[Any], size: int, what: str) -> torch.Tensor:
    """Bring images, one by one or all of one shape at once, to (N, 3, size, size) uint8."""
    if hasattr(rows[0], "convert"):
        return torch.cat([square_pixels(row, size) for row in rows])
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
        return scaled(_images(np.stack(arrays), what), size)
    return torch.cat([scaled(_images(array[None], what), size) for array in arrays])


def _images(array: NDArray[np.generic], what: str) -> NDArray[np.generic]:
    """Return images as (N, H, W, C); (N, C, H, W) is known by its 1 or 3 channels."""
    if array.ndim == 2:
        raise DataError(
            f"{what} must hold texts or images of the shape (N, H, W), (N, H, W, C) or (N, C, H, W); got a "
            f"table of numbers, {array.shape}: no network here reads one"
        )
    if array.ndim == 4 and array.shape[1] in (1, 3) and array.shape[3] not in (1, 3):
        array = array.transpose(0, 2, 3, 1)
    return as_images(array, what)


def _listed(found: _Found, labelled: bool, voting: Voting | None) -> Listing:
    """Read the columns as those of a table of texts or image files, and put decoded images in place."""
    columns = dict(found.columns)
    if found.paths is not None:
        columns["image"] = [str(Path(path).absolute()) for path in found.paths]
        if "id" not in columns and len(set(found.paths)) == len(found.paths):
            columns["id"] = found.paths
    else:
        # The row's number stands for a decoded image.
        columns["text"] = [str(i) for i in range(len(found))] if found.texts is None else found.texts
    given = None if labelled else columns.pop("label", None)
    made = listing_of(CsvTable.of(columns, found.name), labelled, voting)
    if given is not None and all(given):  # to compare with: any labels, of whatever classes
        codes, classes = Column(given).coded()
        made = replace(made, labels=codes.astype(np.int64), classes=classes)
    if found.classes is not None and made.classes == [str(i) for i in range(len(made.classes))]:
        # Indices into the data set's own names; a Subset may lack the last ones.
        made = replace(made, classes=[*found.classes, *made.classes][: len(made.classes)])
    if found.array is None:
        return made
    assert made.texts is not None
    return replace(made, texts=None, array=found.array[[int(row) for row, _ in made.texts]])
