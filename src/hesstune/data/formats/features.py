"""Feature vectors, such as embeddings, in a file: `features:PATH`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hesstune.checks import expanded, readable_file
from hesstune.data.examples import Listing
from hesstune.data.formats._base import DataFormat
from hesstune.data.formats.memory import INPUTS, read_object
from hesstune.data.labels import label_columns
from hesstune.data.reading import Reading
from hesstune.data.tables import USUAL, listing_of
from hesstune.data.vectors import NAMES, vector_column, vectors_of_array
from hesstune.errors import DataError, listed
from hesstune.resizing import Size
from hesstune.storage.columns import CsvTable, as_cell
from hesstune.storage.files import array_header, npz_names, read_npz, reading
from hesstune.storage.table_files import SUFFIXES, table_files
from hesstune.storage.tables import read_table

# The arrays of an .npz file, by the name of the column that they become, in any case.
ARRAYS = {
    "features": NAMES,
    "label": ("labels", "label", "y"),
    "classes": ("classes", "class_names"),
    "split": ("split", "splits"),
    "id": ("ids", "id"),
}
# An .npz file is read into memory whole; a small file may claim to unpack to any size.
MAX_MIB = 65536
TABLES = tuple(suffix for own in SUFFIXES.values() for suffix in own)


class Features(DataFormat):
    """An .npz, .npy or Parquet file; nothing is unpickled, and .npy files are memory-mapped."""

    written = "features:PATH"
    summary = (
        "Embeddings: an .npz file with `features` (N, D) and `labels`; a .npy file (N, D) with a table of "
        "labels beside it, NAME.csv; or a Parquet file, or a folder of such files, with a column of vectors, "
        "and `label`."
    )
    has_columns = True
    suffixes = (".npy",)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        if path.suffix.lower() != ".npz":
            return super().recognises(path)
        names = {name.strip().lower() for name in npz_names(path) or ()}
        return bool(names & set(NAMES)) and "images" not in names

    @classmethod
    def read(cls, path: str, size: Size, labelled: bool, how: Reading) -> Listing:
        if how.columns.text or how.columns.image:
            raise DataError("features: data holds vectors, no texts or images; name no column of these")
        shards = table_files(expanded(path), "the folder of feature vectors", DataError)
        if shards is not None:
            return _of_parquet(shards.files, expanded(path), size, labelled, how)
        file, suffix = readable_file(path, "the file of feature vectors"), Path(path).suffix.lower()
        if suffix == ".npz":
            return _of_npz(file, labelled, how)
        if suffix == ".npy":
            return _of_npy(file, labelled, how)
        if suffix in SUFFIXES["parquet"]:
            return _of_parquet([file], file, size, labelled, how)
        raise DataError(f"{file} is no file of feature vectors; give an .npz, .npy or .parquet file")


FORMAT = Features


def _of_npz(file: Path, labelled: bool, how: Reading) -> Listing:
    if how.columns.demanded:
        raise DataError(
            f"--{how.columns.demanded[0]}-column names a column, and {file} has none; leave it out"
        )
    lower = {name.strip().lower(): name for name in npz_names(file) or ()}
    named = {role: next((lower[n] for n in names if n in lower), None) for role, names in ARRAYS.items()}
    used = {role: name for role, name in named.items() if name is not None}
    with reading(file, ".npz arrays", DataError):
        arrays, entries = read_npz(file, set(used.values()), MAX_MIB)
    found = {role: arrays[name] for role, name in used.items()}
    if "features" not in found or (labelled and "label" not in found):
        raise DataError(
            f"{file} needs the arrays 'features' (or x, embeddings) and 'labels' (or y); got "
            f"{listed(entries) or 'none'}"
        )
    vectors = vectors_of_array(found["features"], f"the array '{used['features']}' of {file}")
    columns, notes = dict[str, list[str]](), list[str]()
    for role in [role for role in ("label", "split", "id") if role in found]:
        array = found[role]
        if array.dtype.kind == "S":
            array = np.char.decode(array, "utf-8", "replace")
        own, more = label_columns(array) if role == "label" else ({role: _cells(array)}, [])
        columns, notes = {**columns, **own}, [*notes, *more]
        if len(own[role]) != len(vectors):
            raise DataError(
                f"the array '{used[role]}' of {file} has {len(own[role])} values for {len(vectors)} vectors"
            )
    if others := [name for name in entries if name not in used.values()]:
        notes.append(f"arrays of {file} left out: {listed(others)}")
    table = CsvTable.of(columns, str(file), file.parent, first=0)
    classes = [str(name) for name in found["classes"].ravel()] if "classes" in found else None
    ids = [str(row) for row in range(len(vectors))]
    return listing_of(table, {}, how, labelled, images=vectors, names=classes, ids=ids, notes=notes)


def _cells(array: NDArray[Any]) -> list[str]:
    return [as_cell(value) for value in array.ravel().tolist()]


def _mapped(file: Path) -> NDArray[Any]:
    """Memory-map a .npy file, whose header is checked against its size; object arrays raise ValueError."""
    with file.open("rb") as content:
        shape, fortran, dtype = array_header(content)
        return np.memmap(file, dtype, "r", content.tell(), shape, "F" if fortran else "C")


def _of_npy(file: Path, labelled: bool, how: Reading) -> Listing:
    with reading(file, "a .npy array", DataError):
        vectors = vectors_of_array(_mapped(file), str(file))
    names = [f"{stem}{suffix}" for stem in (file.stem, f"{file.stem}_labels", "labels") for suffix in TABLES]
    beside = [file.with_name(name) for name in names if file.with_name(name).is_file()]
    ids, notes = [str(row) for row in range(len(vectors))], list[str]()
    if not beside:
        if labelled:
            raise DataError(
                f"{file} needs its labels beside it: a table {file.stem}.csv with a column 'label' and a row "
                "for each vector"
            )
        table, roles = CsvTable(str(file), file.parent, {}), dict[str, str]()
    else:
        table = read_table(beside[0], "the table of labels")
        usual = {role: own for role, own in USUAL.items() if role not in INPUTS}
        roles, notes = how.columns.find(list(table.columns), usual, table.name, needs_inputs=False)
        if len(table) != len(vectors):
            raise DataError(
                f"{table.name} has {len(table)} rows for the {len(vectors)} vectors in {file}; each vector "
                "needs its row, in the same order"
            )
        notes.append(f"{table.name} is read beside {file.name}, row by row")
    made = listing_of(table, roles, how, labelled, images=vectors, ids=ids, notes=notes)
    return replace(made, column_names=list(table.columns))


def _of_parquet(files: list[Path], name: Path, size: Size, labelled: bool, how: Reading) -> Listing:
    """Read the Parquet files that a name stands for, one after another."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    tables = []
    for file in files:
        with reading(file, "Parquet", DataError):
            tables.append(parquet.ParquetFile(file).read())
    with reading(name, "Parquet files of the same columns", DataError):
        frame = pa.concat_tables(tables, promote_options="permissive").to_pandas()
    # Named as its owner named them: a column of texts beside the vectors is no input.
    others = [column for column in frame.columns if str(column).strip().lower() in INPUTS]
    kept = frame.drop(columns=others)
    if vector_column({str(own): kept[own] for own in kept.columns}, str(name)) is None:
        raise DataError(f"{name} needs a column of vectors, such as features; got {listed(frame.columns)}")
    found = read_object(kept, size, labelled, how, str(name))
    notes = [f"columns of {name} left out: {listed(others)}"] if others else []
    return replace(found, notes=[*notes, *found.notes])
