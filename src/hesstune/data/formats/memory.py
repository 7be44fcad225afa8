"""Objects given in Python: frames, arrays, lists, map-style data sets, data sets of the library datasets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.checks import expanded
from hesstune.data.examples import Listing, Vectors
from hesstune.data.formats._base import DataFormat
from hesstune.data.formats.hf import read_data_set
from hesstune.data.images import Pixels, decode_objects, pixels_of_array, readable_suffixes
from hesstune.data.labels import label_columns
from hesstune.data.reading import Columns, Reading
from hesstune.data.tables import USUAL, listing_of
from hesstune.data.vectors import (
    NAMES,
    dense,
    is_missing_cell,
    is_sparse,
    stacked,
    vector_column,
    vectors_of_array,
)
from hesstune.errors import DataError, cut, plain
from hesstune.resizing import Size
from hesstune.storage.columns import CsvTable, as_cell
from hesstune.storage.tables import frame_values, is_frame

WANTED = (
    "a string such as digits or csv:PATH, a pandas DataFrame, (X, y), a map-style data set of (input, label) "
    "or a datasets.Dataset"
)


# Columns with the inputs of networks other than feature vectors.
INPUTS = ("text", "text2", "image")


class Memory(DataFormat):
    """Objects; `memory` stands for them in the configuration of a run."""

    written = "memory"
    summary = "Objects given in Python, in the configuration of a run."
    has_columns = True

    @classmethod
    def read(cls, path: str, size: Size, labelled: bool, how: Reading) -> Listing:
        raise DataError(
            "the data 'memory' was objects given in Python, which no file holds: give them again, "
            "finetune(data=…), Run.load(path, data=…) or run.measure(data=…)"
        )


FORMAT = Memory


@dataclass
class _Inputs:
    """What an object holds: texts, paths of image files, images or vectors, and cells of other columns."""

    name: str
    values: list[str] | Pixels | Vectors
    are_files: bool = False
    columns: dict[str, list[str]] = field(default_factory=dict)
    classes: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    # The number of the first row, as the user counts.
    first: int = 0


def read_object(data: Any, size: Size, labelled: bool, how: Reading, what: str = "the DataFrame") -> Listing:
    """List the examples of an object; see `DataFormat.read`. Messages call a DataFrame `what`.

    Objects are: a pandas DataFrame (columns as of `csv:` data; `image` may also hold PIL images or arrays; or
    a column of feature vectors); a pair (X, y) of inputs and labels; a map-style data set of (input, label);
    a Dataset or DatasetDict of the library datasets; if no labels are required, inputs alone; and a Listing.

    Inputs are texts, image files (paths, or strings that all end as image files do), PIL images (cropped to a
    square), arrays of images (not cropped): (N, H, W), (N, H, W, C) or (N, C, H, W), integers in [0, 255]
    or floats in [0, 1]; or feature vectors, (N, D), dense or a sparse matrix. For labels see `label_columns`.
    """
    if isinstance(data, Listing):
        return data
    if _is_from(data, "datasets") and (hasattr(data, "column_names") or isinstance(data, dict)):
        return read_data_set(data, "the data set", size, labelled, how)
    reader = _Reader(size, how.background)
    if is_frame(data):
        found = reader.frame(data, how.columns, what)
    elif asked := how.columns.demanded:
        raise DataError(f"{asked[0]}_column names a column, and this data has none; leave it out")
    else:
        found = reader.other(data, labelled)
    columns, roles = dict(found.columns), dict[str, str]()
    if isinstance(found.values, list):
        if not found.values:
            raise DataError(f"{found.name} holds no examples")
        kind = "image" if found.are_files else "text"
        columns[kind], roles[kind] = found.values, kind
        if found.are_files:
            columns["image"] = [str(expanded(path).absolute()) for path in found.values]
            if "id" not in columns and len(set(found.values)) == len(found.values):
                columns["id"] = [plain(path) for path in found.values]
    made = listing_of(
        CsvTable.of(columns, found.name, first=found.first),
        roles,
        how,
        labelled,
        images=None if isinstance(found.values, list) else found.values,
        names=found.classes,
        ids=[str(row) for row in range(len(found.values))],
        notes=found.notes,
    )
    return replace(made, column_names=[str(name) for name in data.columns]) if is_frame(data) else made


def _is_from(given: object, package: str) -> bool:
    """Tell whether an object's class is of a package, without importing it."""
    return type(given).__module__.partition(".")[0] == package


def _has_inputs(names: Iterable[str]) -> bool:
    """Tell whether a column has the usual name of texts or images."""
    return any(name.strip().lower() in INPUTS for name in names)


def _is_numeric(frame: Any) -> bool:
    return all(getattr(kind, "kind", "O") in "buif" for kind in frame.dtypes)


def _as_array(tensor: torch.Tensor) -> NDArray[Any]:
    """Return a tensor as an array; numpy has no bfloat16."""
    dense_one = tensor.detach().to_dense().cpu()
    return np.asarray((dense_one.float() if dense_one.dtype == torch.bfloat16 else dense_one).numpy())


def _cells(values: Any) -> list[str]:
    return [as_cell(value) for value in (values.tolist() if hasattr(values, "tolist") else values)]


@dataclass(frozen=True)
class _Reader:
    """Reads objects; images are brought to one size on one background."""

    size: Size
    background: tuple[int, int, int]

    def frame(self, frame: Any, columns: Columns, what: str) -> _Inputs:
        values, ids = frame_values(frame, what)
        names = list(values)
        name = f"{what} (its header being row 1)"
        vector = None if columns.text or columns.image or _has_inputs(names) else vector_column(values, name)
        if vector is None:
            roles, notes = columns.find(names, USUAL, what)
            kind = "image" if "image" in roles else "text"
        else:
            usual = {role: own for role, own in USUAL.items() if role not in INPUTS}
            roles, notes = columns.find(names, usual, what, needs_inputs=False)
            roles, kind = {**roles, "features": vector}, "features"
            if vector.strip().lower() not in NAMES:
                notes.append(f"column '{cut(vector)}' is read as the feature vectors")
        own = values[roles[kind]]
        if kind == "features":
            found = _Inputs(name, vectors_of_array(stacked(own, f"the column '{cut(vector)}'"), name))
        elif kind == "text":
            found = _Inputs(name, _cells(own))
        elif own and isinstance(own[0], str):
            found = _Inputs(name, [row if isinstance(row, str) else as_cell(row) for row in own], True)
        else:
            found = self.inputs(own, name, values.get(roles.get("id", "")))
        others = {n: n for n in names if n not in roles and n not in roles.values()}
        columns_of = {role: column for role, column in (roles | others).items() if role != kind}
        found.columns |= {role: _cells(values[column]) for role, column in columns_of.items()}
        found.first, found.notes = 2, notes
        if ids and "id" not in found.columns:
            found.columns["id"] = ids
            found.notes.append(f"the ids are {what}'s index")
        for at, level in enumerate(frame.index.names):
            # A named index that repeats values may group the rows: it is a column like others.
            if level is not None and str(level) not in found.columns and str(level) not in names:
                found.columns[str(level)] = _cells(frame.index.get_level_values(at))
        return found

    def other(self, data: Any, labelled: bool) -> _Inputs:
        """Read a pair, inputs alone, or a map-style data set."""
        if isinstance(data, tuple) and len(data) == 2:
            return self.pair(*data)
        pairs = isinstance(data, list) and data and isinstance(data[0], tuple) and len(data[0]) == 2
        alone = isinstance(data, np.ndarray | torch.Tensor | list) or _is_from(data, "pandas")
        alone = alone or is_sparse(data)
        if alone and not pairs:
            if labelled:
                raise DataError(f"data holds inputs without labels; give (X, y). Data is {WANTED}")
            return self.inputs(data, "data")
        sized = hasattr(data, "__len__") and hasattr(data, "__getitem__")
        if sized and not isinstance(data, Mapping | bytes):
            return self.map_style(data, labelled)
        lacks = "; an iterable must be read into a list first" * (not sized and hasattr(data, "__iter__"))
        raise DataError(f"data must be {WANTED}; got {type(data).__name__}{lacks}")

    def pair(self, inputs: Any, labels: Any) -> _Inputs:
        if isinstance(inputs, str | bytes):
            raise DataError("X of (X, y) holds the inputs of all examples; got one text: give ([X], [y])")
        is_table = is_frame(inputs)
        if is_table and not _has_inputs(map(str, inputs.columns)) and _is_numeric(inputs):
            found = _Inputs("X", vectors_of_array(inputs.to_numpy(), "X"))
        else:
            found = self.frame(inputs, Columns(), "X") if is_table else self.inputs(inputs, "X")
        if labels is None:
            return found
        given, notes = label_columns(labels)
        if len(given["label"]) != len(found.values):
            raise DataError(f"X has {len(found.values)} examples, but y has {len(given['label'])} labels")
        both = _is_from(inputs, "pandas") and _is_from(labels, "pandas")
        if both and not inputs.index.equals(labels.index):
            raise DataError(
                "X and y have different indices: give y.loc[X.index], or y.to_numpy() to match by position"
            )
        found.columns |= given
        found.notes += notes
        return found

    def map_style(self, data: Any, labelled: bool) -> _Inputs:
        """Read a data set of (input, label) once, in order; one that draws at random is read as it falls."""
        items = list(islice((data[i] for i in range(len(data))), len(data)))
        what = type(data).__name__
        pairs = [isinstance(item, tuple | list) and len(item) == 2 for item in items]
        if not all(pairs):
            at = pairs.index(False)
            if labelled:
                got = f"{type(items[at]).__name__} at {at}"
                raise DataError(f"items of {what} must be (input, label); got {got}")
            return self.inputs(items, what)
        found = self.inputs([x for x, _ in items], what)
        given, notes = label_columns([y for _, y in items])
        found.columns |= given
        found.notes += notes
        classes = getattr(data, "classes", None)
        if isinstance(classes, Sequence) and not isinstance(classes, str):
            found.classes = [str(name) for name in classes]
        return found

    def inputs(self, given: Any, what: str, ids: list[Any] | None = None) -> _Inputs:
        """Tell texts, image files, images and vectors apart by the first of them that is not missing.

        Messages on images name the ids; default: numbers.
        """
        if is_sparse(given):
            return _Inputs(what, vectors_of_array(dense(given, what)[0], what))
        if isinstance(given, torch.Tensor):
            given = _as_array(given)
        if isinstance(given, np.ndarray) and given.dtype.kind in "buifc":
            return _Inputs(what, self.array(given, what))
        rows = list(given)
        first = _first_of_one_kind(rows, what)
        if isinstance(first, str):
            suffixes = readable_suffixes()
            if rows and all(isinstance(row, str) and row.lower().endswith(suffixes) for row in rows):
                return _Inputs(what, rows, are_files=True)
            return _Inputs(what, _cells(rows))
        if isinstance(first, Path):
            return _Inputs(what, [str(row) for row in rows], are_files=True)
        if isinstance(first, tuple):
            if not all(len(row) == 2 and all(isinstance(text, str) for text in row) for row in rows):
                raise DataError(f"{what} holds tuples; an input is a text, two texts, an image or its file")
            return _Inputs(what, [a for a, _ in rows], columns={"text2": [b for _, b in rows]})
        is_encoded = isinstance(first, bytes) or (
            isinstance(first, dict) and first.keys() <= {"bytes", "path"}
        )
        if hasattr(first, "convert") or is_encoded:
            return _Inputs(what, decode_objects(rows, self.size, self.background, ids))
        return _Inputs(what, self.arrays(rows, what))

    def arrays(self, rows: list[Any], what: str) -> Pixels | Vectors:
        """Bring arrays of images to squares, all of one shape at once or one by one; or stack vectors."""
        try:
            arrays = [_as_array(row) if isinstance(row, torch.Tensor) else np.asarray(row) for row in rows]
        except (TypeError, ValueError, RuntimeError):
            arrays = []
        if not arrays or arrays[0].dtype.kind not in "buifc":
            kinds = "texts, image files, PIL images, arrays of images or feature vectors"
            raise DataError(f"inputs are {kinds}; {what} holds {type(rows[0]).__name__}")
        if any(array.ndim == 1 for array in arrays):
            return vectors_of_array(stacked(arrays, what), what)
        if len({(array.shape, array.dtype) for array in arrays}) == 1:
            return self.array(np.stack(arrays), what)
        made = [self.images(array[None], f"{what}, row {at},") for at, array in enumerate(arrays)]
        notes = Counter(note for one in made for note in one.notes)
        return Pixels(
            torch.cat([one.array for one in made]),
            np.concatenate([one.digests for one in made]),
            notes=[f"{n} {note}" for note, n in notes.items()],
        )

    def array(self, array: NDArray[Any], what: str) -> Pixels | Vectors:
        """Read feature vectors, (N, D), or images."""
        return vectors_of_array(array, what) if array.ndim == 2 else self.images(array, what)

    def images(self, array: NDArray[Any], what: str) -> Pixels:
        """Bring images of one array to squares; (N, C, H, W) is recognised by its 1, 3 or 4 channels."""
        if array.ndim == 4 and array.shape[1] in (1, 3, 4) and array.shape[3] not in (1, 3, 4):
            array = array.transpose(0, 2, 3, 1)
        return pixels_of_array(array, self.size, what, self.background)


def _first_of_one_kind(rows: list[Any], what: str) -> Any:
    """Return the first input that is not missing, "" if all are; raise DataError if there are two kinds."""
    gone = [at for at, row in enumerate(rows) if is_missing_cell(row)]
    present = [row for row in rows if not is_missing_cell(row)]
    kinds = {_kind(row) for row in present}
    if len(kinds) > 1:
        raise DataError(f"{what} mixes kinds of inputs: {', '.join(sorted(kinds))}; give one kind")
    if gone and kinds - {"str"}:
        raise DataError(f"{what} has no input at {gone[0]} ({len(gone)} in all); take such rows out")
    return present[0] if present else ""


def _kind(row: object) -> str:
    """Name the kind of an input."""
    for kind in (str, Path):
        if isinstance(row, kind):
            return kind.__name__
    return "image" if hasattr(row, "convert") else type(row).__name__
