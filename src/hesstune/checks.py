"""One place for checks of shapes, probabilities, labels, numbers and paths."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hesstune.errors import (
    ConfigError,
    DataError,
    HesstuneError,
    NoiseMatrixError,
    unknown_name,
)

ROW_SUM_TOLERANCE = 1e-6
# An integer of more digits is no count, index or seed; int() itself refuses a few thousand digits.
MOST_DIGITS = 18
_INTEGER = re.compile(rf"[+-]?[0-9]{{1,{MOST_DIGITS}}}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C")


def parse_integer(text: str) -> int | None:
    """Return the integer that a text holds, or None: ASCII digits, perhaps a sign, spaces around.

    Python's own `int` and `str.isdigit` also accept other digits, superscripts and underscores.

    Example:
        >>> [parse_integer(text) for text in (" 3 ", "-1", "²", "٣", "1_000", "1e3", "")]
        [3, -1, None, None, None, None, None]
    """
    found = _INTEGER.fullmatch(text.strip())
    return int(found[0]) if found else None


def parse_number(text: str) -> float | None:
    """Return the finite number that a text holds, or None; see `parse_integer`.

    Example:
        >>> [parse_number(text) for text in (" 3 ", "1e3", ".5", "٣", "1_000", "nan", "inf", "1e999", "40%")]
        [3.0, 1000.0, 0.5, None, None, None, None, None, None]
    """
    found = _NUMBER.fullmatch(text.strip())
    number = float(found[0]) if found else math.inf
    return number if math.isfinite(number) else None


def parse_rate(text: str) -> float | None:
    """Return the number that a text holds, which may be a percentage, or None.

    Example:
        >>> [parse_rate(text) for text in ("0.4", "40%", " 2.5 %", "%", "0,4")]
        [0.4, 0.4, 0.025, None, None]
    """
    whole = text.strip()
    if not whole.endswith("%"):
        return parse_number(whole)
    number = parse_number(whole[:-1])
    return None if number is None else number / 100


def positive(name: str, value: float) -> float:
    """Return value as a float; raise ConfigError unless it is a finite number above zero."""
    number = _as_number(name, value)
    if not math.isfinite(number) or number <= 0:
        raise ConfigError(f"{name} must be a finite number above 0; got {value}")
    return number


def unit_interval(name: str, value: float | str, error: type[HesstuneError] = ConfigError) -> float:
    """Return value, which may be the text of a number or percentage, as a float; raise unless in [0, 1]."""
    number = _as_number(name, value, error)
    if not 0.0 <= number <= 1.0:
        raise error(f"{name} must lie in [0, 1]; got {value}")
    return number


def _as_number(name: str, value: float | str, error: type[HesstuneError] = ConfigError) -> float:
    try:
        number = parse_rate(value) if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        number = None
    if number is None:
        raise error(f"{name} must be a number; got {value!r}")
    return number


def class_count(k: int, error: type[HesstuneError] = ConfigError) -> int:
    """Return the number of classes; raise unless it is an integer of at least 2."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 2:
        raise error(f"the number of classes must be an integer of at least 2; got {k!r}")
    return int(k)


def one_of(kind: str, given: str, valid: Sequence[str]) -> str:
    """Return given if it is one of the valid names; raise ConfigError with the nearest otherwise."""
    if given not in valid:
        raise unknown_name(kind, str(given), valid)
    return given


def expanded(path: str | Path) -> Path:
    """Return a path with ~ or ~NAME at its beginning replaced by that home; as it is if nobody has one."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def readable_file(path: str | Path, what: str, error: type[HesstuneError] = ConfigError) -> Path:
    """Return path; raise unless it is an existing file."""
    path = expanded(path)
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise error(f"{what} {path} {state}; give the path of a file")
    return path


def integer_labels(labels: ArrayLike, k: int, name: str = "targets") -> NDArray[np.int64]:
    """Return labels as int64, (N,); raise DataError unless they are integers in [0, k)."""
    array = np.asarray(labels)
    if array.ndim != 1:
        raise DataError(
            f"{name} must be one class index an example, shape (N,); got shape {array.shape}. "
            "Multi-label targets and regression are not supported"
        )
    if not np.issubdtype(array.dtype, np.integer):
        raise DataError(
            f"{name} must be integers; got dtype {array.dtype}. "
            "Multi-label targets and regression are not supported"
        )
    outside = np.flatnonzero((array < 0) | (array >= k))
    if outside.size:
        at = int(outside[0])
        raise DataError(
            f"{name} must be in [0, {k}); got {array[at]} at index {at}. Is the label column zero-based?"
        )
    return array.astype(np.int64)


def stochastic_matrix(array: ArrayLike) -> NDArray[np.float64]:
    """Return a (K, K) row-stochastic matrix as float64; raise NoiseMatrixError saying what is wrong."""
    try:
        matrix = np.array(array, dtype=np.float64)
    except (TypeError, ValueError):
        raise NoiseMatrixError("a noise matrix must be numbers in K rows of K columns") from None
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] < 2:
        raise NoiseMatrixError(
            f"a noise matrix must be square, (K, K) with K of at least 2; got shape {matrix.shape}"
        )
    if not np.isfinite(matrix).all():
        raise NoiseMatrixError("a noise matrix must be finite; got NaN or infinity")
    if (matrix < 0).any():
        i, j = np.argwhere(matrix < 0)[0]
        raise NoiseMatrixError(
            f"a noise matrix holds probabilities; got {matrix[i, j]:g} in row {i}, column {j}"
        )
    sums = matrix.sum(axis=1)
    worst = int(np.abs(sums - 1).argmax())
    if abs(sums[worst] - 1) > ROW_SUM_TOLERANCE:
        columns = np.abs(matrix.sum(axis=0) - 1).max() <= ROW_SUM_TOLERANCE
        fix = (
            "its columns do: use NoiseMatrix.from_column_stochastic" if columns else "divide each by its sum"
        )
        raise NoiseMatrixError(
            f"the rows of a noise matrix must sum to 1 (F[i, j] = P(noisy = j | true = i)); "
            f"row {worst} sums to {sums[worst]:.6g} ({fix})"
        )
    rows: NDArray[np.float64] = matrix / sums[:, None]
    return rows
