"""Feature vectors as users have them: arrays, sparse matrices, and columns with a vector in each cell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hesstune.data.examples import ROWS, Vectors
from hesstune.errors import DataError, cut, listed

# Usual names, in any case, of a column or an array of feature vectors, in order of preference.
NAMES = ("features", "embeddings", "embedding", "vectors", "vector", "x")
# A sparse matrix that takes more memory as an array of float64 is not made one.
MOST_DENSE_MIB = 1024
# Dimensions to which a larger sparse matrix is reduced, if only its own rows are of interest.
COMPONENTS = 256


def vectors_of_array(array: Any, what: str) -> Vectors:
    """Return feature vectors, (N, D), which may be a memory-mapped file.

    DataError is raised if the array is no table of numbers that are finite in float32.
    """
    if array.ndim != 2 or 0 in array.shape:
        raise DataError(f"{what} must be feature vectors, (N, D), N and D at least 1; got {array.shape}")
    if array.dtype.kind not in "buif":
        raise DataError(f"{what} must hold numbers; got an array of {array.dtype}")
    found = Vectors(array)
    for rows, part in _parts(found):
        if not np.isfinite(part).all():
            at = rows[~np.isfinite(part).all(axis=1)][0]
            raise DataError(
                f"{what} must hold numbers that are finite in float32; row {at} does not: fill it in, or "
                "take such rows out"
            )
    return found


def _parts(vectors: Vectors) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    with np.errstate(over="ignore"):
        for start in range(0, len(vectors), ROWS):
            rows = np.arange(start, min(start + ROWS, len(vectors)))
            yield rows, vectors.numbers(rows)


def is_sparse(given: object) -> bool:
    """Tell whether an object is a sparse matrix or array of scipy, without importing it."""
    return type(given).__module__.startswith("scipy.sparse") and hasattr(given, "toarray")


def dense(matrix: Any, what: str, reduce: bool = False) -> tuple[NDArray[np.float64], list[str]]:
    """Return a sparse matrix, (N, D) of scipy, named `what` in messages, as an array, and notes.

    One that takes more than MOST_DENSE_MIB raises DataError; or with `reduce` it is reduced to COMPONENTS
    dimensions by a truncated singular value decomposition, to which new rows cannot be brought.
    """
    size = matrix.shape[0] * matrix.shape[1] * 8 / 2**20
    if size <= MOST_DENSE_MIB:
        return matrix.toarray().astype(np.float64), []
    shape = f"the sparse matrix {what}, {tuple(matrix.shape)},"
    if not reduce:
        raise DataError(
            f"{shape} takes {size:.0f} MiB as an array, more than {MOST_DENSE_MIB}; reduce it first: "
            f"sklearn.decomposition.TruncatedSVD({COMPONENTS}).fit_transform({what})"
        )
    from sklearn.decomposition import TruncatedSVD

    kept = min(COMPONENTS, matrix.shape[0] - 1, matrix.shape[1] - 1)
    found = TruncatedSVD(kept, random_state=0).fit(matrix)
    share = float(found.explained_variance_ratio_.sum())
    note = (
        f"{shape} would take {size:.0f} MiB as an array: it is reduced to {kept} dimensions by a truncated "
        f"singular value decomposition, which keep {100 * share:.0f} % of the variance"
    )
    return np.asarray(found.transform(matrix), dtype=np.float64), [note]


def _is_vector(cell: object) -> bool:
    if isinstance(cell, np.ndarray):
        return cell.ndim == 1 and cell.dtype.kind in "buif"
    if not isinstance(cell, list | tuple) or not cell:
        return False
    return all(isinstance(number, int | float | np.number) for number in cell)


def vector_column(columns: Mapping[str, Iterable[Any]], what: str) -> str | None:
    """Return the column whose cells are vectors, by the first that is not missing; None if there is none.

    If there are several, one needs a usual name.
    """
    first = {
        name: next((c for c in cells if not is_missing_cell(c)), None) for name, cells in columns.items()
    }
    found = [name for name, cell in first.items() if _is_vector(cell)]
    if len(found) < 2:
        return next(iter(found), None)
    usual = [name for name in found if name.strip().lower() in NAMES]
    if len(usual) != 1:
        raise DataError(
            f"{what} has several columns of vectors ({listed(found)}); leave one, or name it features"
        )
    return usual[0]


def is_missing_cell(cell: object) -> bool:
    """Tell whether a cell is None, NaN or NA."""
    return cell is None or type(cell).__name__ == "NAType" or (isinstance(cell, float) and cell != cell)


def stacked(cells: list[Any], what: str) -> NDArray[Any]:
    """Return vectors, one a cell, as an array, (N, D); DataError if one is missing or of another length."""
    rows = [np.asarray(cell) for cell in cells]
    for at, row in enumerate(rows):
        if row.ndim != 1 or row.dtype.kind not in "buif" or len(row) != len(rows[0]):
            kind = f"{len(row)} numbers" if row.ndim == 1 and row.dtype.kind in "buif" else cut(cells[at], 40)
            raise DataError(
                f"{what} must hold a vector of {len(np.atleast_1d(rows[0]))} numbers in every row; row {at} "
                f"holds {kind}"
            )
    return np.stack(rows)
