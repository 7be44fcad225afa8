"""Matrices of votes: arrays of Snorkel and of CIFAR-N, in .npy, .npz and .pt files, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hesstune.checks import readable_file
from hesstune.errors import DataError, cut, listed
from hesstune.storage.columns import CsvTable, as_cell, is_missing
from hesstune.storage.files import read_array, read_npz, reading
from hesstune.weak.votes import ABSTAIN

MATRIX_FILES = (".npy", ".npz", ".pt", ".pth")
# How arrays of votes and of true labels are named; CIFAR-N's classes are true, others' are made of votes.
VOTE_NAMES = ("l", "l_train", "votes", "weak_labels", "label_matrix", "lf_outputs")
TRUE_NAMES = ("y", "y_train", "true_label", "true_labels", "clean_label", "gold", "labels")
# Arrays of CIFAR-N that were made from its annotators' votes.
MADE = ("aggre_label", "worse_label")
# The annotators of CIFAR-10N, and the one of CIFAR-100N.
PEOPLE = ("random_label1", "random_label2", "random_label3", "noisy_label")
SPARSE = frozenset({"indices", "indptr", "format", "shape", "data"})


def read_matrix(path: str | Path) -> CsvTable:
    """Read votes, (N, m), −1 if an annotator abstains, as a table with columns vote_… and perhaps true_label.

    A .npy file is the matrix. A .npz file has it beside true labels, as CIFAR-N's arrays, or sparse, in which
    case a vote that is not stored is an abstention. A .pt file is CIFAR-N's, and is read without code.
    """
    path = readable_file(path, "the file of votes")
    suffix = path.suffix.lower()
    with reading(path, "votes", DataError):
        if suffix == ".npy":
            with path.open("rb") as file:
                return table_of_votes(read_array(file, path.stat().st_size, MOST_MIB), str(path))
        arrays = read_npz(path, None, MOST_MIB)[0] if suffix == ".npz" else _tensors(path)
        return _table_of_arrays(arrays, path)


# Arrays larger than this are refused.
MOST_MIB = 4096.0


def _tensors(path: Path) -> dict[str, NDArray[Any]]:
    """Read {name: array or tensor}; nothing but arrays and tensors is built."""
    import torch

    dtypes = [
        type(np.dtype(kind)) for kind in ("int64", "int32", "int16", "int8", "uint8", "float64", "float32")
    ]
    build: Any = np.array([0]).__reduce__()[0]
    # numpy's own module has had two names.
    places = [(build, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    with torch.serialization.safe_globals([np.ndarray, np.dtype, *dtypes, *places]):
        found = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(found, torch.Tensor):
        found = {"votes": found}
    if not isinstance(found, Mapping):
        raise DataError(f"{path} holds {type(found).__name__}; it must be {{name: array}}, as CIFAR-N's file")
    return {
        str(name): np.asarray(value)
        for name, value in found.items()
        if isinstance(value, np.ndarray | torch.Tensor | list)
    }


def _table_of_arrays(arrays: Mapping[str, NDArray[Any]], path: Path) -> CsvTable:
    name = str(path)
    if arrays.keys() >= SPARSE:
        return table_of_votes(_dense(arrays, name), name)
    plain = {key.strip().lower(): array for key, array in arrays.items()}
    people = {key: plain[key] for key in PEOPLE if key in plain}
    true = next((plain[key] for key in TRUE_NAMES if key in plain and plain[key].ndim == 1), None)
    if people:
        notes = [f"read as CIFAR-N: the annotators are {listed(people)}"]
        if made := [key for key in MADE if key in plain]:
            notes.append(f"{listed(made)} were made from these votes; they are left out")
        table = table_of_votes(_as_columns(people, name), name, list(people), true)
    else:
        tables = {key: array for key, array in plain.items() if array.ndim == 2}
        wanted = [key for key in VOTE_NAMES if key in tables] if len(tables) > 1 else list(tables)
        if len(wanted) != 1:
            shown = listed(f"{key} {'×'.join(map(str, array.shape))}" for key, array in arrays.items())
            raise DataError(
                f"{name} has {'several matrices' if wanted else 'no matrix'} of votes, (N, annotators): "
                f"{shown or 'no arrays'}; save one, named votes"
            )
        notes = [f"the votes are the array '{wanted[0]}'"]
        table = table_of_votes(tables[wanted[0]], name, (), true)
    return CsvTable(table.name, table.folder, table.columns, (*table.notes, *notes))


def _as_columns(arrays: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) > 1 or any(array.ndim != 1 for array in arrays.values()):
        raise DataError(
            f"{name}: the arrays {listed(arrays)} must be (N,) of one length; got {listed(shapes)}"
        )
    return np.stack(list(arrays.values()), axis=1)


def _dense(arrays: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    """Return a sparse matrix of votes, whose stored classes begin at 1, with −1 for an abstention."""
    from scipy.sparse import csc_matrix, csr_matrix

    kind = {b"csr": csr_matrix, b"csc": csc_matrix}.get(bytes(arrays["format"].item()))
    shape = tuple(int(side) for side in arrays["shape"])
    if kind is None or len(shape) != 2 or shape[0] * shape[1] > MOST_MIB * 2**17:
        raise DataError(
            f"{name} must be a sparse matrix in the format csr or csc; save it by scipy's save_npz"
        )
    sparse = kind((arrays["data"], arrays["indices"], arrays["indptr"]), shape=shape)
    sparse.check_format(full_check=True)
    if len(sparse.data) and sparse.data.min() < 1:
        raise DataError(
            f"{name} stores the vote {sparse.data.min()}: in a sparse matrix what is not stored is an "
            "abstention and classes begin at 1. Save the votes as a dense .npy, with -1 for an abstention"
        )
    found = np.full(shape, ABSTAIN, dtype=np.int64)
    rows, columns = sparse.nonzero()
    found[rows, columns] = np.asarray(sparse[rows, columns]).ravel()
    return found


def table_of_votes(votes: Any, name: str, annotators: Any = (), true: NDArray[Any] | None = None) -> CsvTable:
    """Return an array of votes, (N, m), or (N,) of one annotator, as a table; −1, NaN and None abstain.

    Votes are class names, or indices from 0. `true` are true labels, (N,), for evaluation only. Annotators
    without names are annotator0 and so on.
    """
    array = np.asarray(votes)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or not array.size:
        raise DataError(
            f"{name} must be votes, (N, annotators), -1 if an annotator abstains; got shape {array.shape}"
        )
    if array.dtype.kind == "f":
        odd = array[np.isfinite(array) & (array != np.floor(array))]
        if len(odd):
            raise DataError(f"{name} holds {odd[0]:g}, and a vote is a class index or -1; give probabilities "
                            "as columns p_ANNOTATOR_CLASS")  # fmt: skip
    elif array.dtype.kind not in "iubOUST":
        raise DataError(f"{name} must hold class indices or names; got {array.dtype}")
    names = list(annotators) or [f"annotator{j}" for j in range(array.shape[1])]
    columns = {f"vote_{who}": _cells(array[:, j]) for j, who in enumerate(names)}
    if true is not None:
        if len(true) != len(array):
            raise DataError(f"{name} has {len(true)} true labels and {len(array)} rows of votes")
        columns["true_label"] = ["" if own == "-1" else own for own in _cells(true)]
    return CsvTable.of(columns, name, Path(name).parent, first=0)


def _cells(column: NDArray[Any]) -> list[str]:
    if column.dtype.kind in "iuf":
        values, codes = np.unique(column, return_inverse=True)
        written = np.array([as_cell(value) for value in values], dtype=object)
        return [str(own) for own in written[codes]]
    cells = [as_cell(value) for value in column.tolist()]
    return ["" if is_missing(own) else cut(own, 1000) for own in cells]
