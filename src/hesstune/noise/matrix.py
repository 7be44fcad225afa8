"""The noise matrix F: F[i, j] = P(given label = j | true label = i)."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hesstune.checks import (
    class_count,
    integer_labels,
    one_of,
    parse_number,
    parse_rate,
    readable_file,
    stochastic_matrix,
    unit_interval,
)
from hesstune.errors import HesstuneWarning, NoiseMatrixError, cut, listed, unknown_name
from hesstune.storage.files import read_array, read_text, reading, write_json

KINDS = ("symmetric", "pair")
# From this share of the largest identifiable rate on, a stated rate is warned about.
NEAR_GUESSING = 0.9
# Rounding must not let a rate of exactly the limit pass.
ROUNDING = 1e-9


def rate_matrix(kind: str, k: int, rate: float) -> NDArray[np.float64]:
    """Return the noise matrix of a rate in [0, 1], (K, K), even if it does not identify the true classes.

    Args:
        kind: `symmetric`: to every other class alike; `pair`: class i to (i + 1) mod K.
        k: Number of classes.
        rate: The probability that a label changes.

    Example:
        >>> rate_matrix("pair", 3, 0.25)[0].tolist()
        [0.75, 0.25, 0.0]
    """
    one_of("kind of noise", kind, KINDS)
    k = class_count(k, NoiseMatrixError)
    rate = unit_interval("the noise rate", rate, NoiseMatrixError)
    if kind == "pair":
        return np.asarray((1.0 - rate) * np.eye(k) + rate * np.roll(np.eye(k), 1, axis=1))
    matrix = np.full((k, k), rate / (k - 1))
    np.fill_diagonal(matrix, 1.0 - rate)
    return matrix


def draw_classes(probabilities: NDArray[np.float64], seed: Any) -> NDArray[np.int64]:
    """Draw a class from each row of probabilities, (N, K), by a seed or a generator; (N,) int64."""
    edges = probabilities.cumsum(axis=1)
    edges[:, -1] = 1.0  # rounding must not leave a gap below one
    uniform = np.random.default_rng(seed).random((len(edges), 1))
    return np.asarray((uniform >= edges).sum(axis=1), dtype=np.int64)


def guessing_rate(k: int) -> float:
    """Return (K − 1)/K, the noise rate of labels that are drawn uniformly at random."""
    return 1 - 1 / k


def identified_matrix(kind: str, k: int, rate: float) -> NDArray[np.float64]:
    """Return `rate_matrix` of a rate that a user states; raise as `NoiseMatrix.symmetric` and `pair` say."""
    matrix = rate_matrix(kind, k, rate)
    rate, limit = float(1 - matrix[0, 0]), 0.5 if kind == "pair" else guessing_rate(k)
    if rate >= limit * (1 - ROUNDING):
        raise NoiseMatrixError(
            f"{kind} noise of rate {rate:.3g} with {k} classes: from rate {limit:.3g} on, the true class is "
            "not the most probable given label, so labels cannot be corrected; give a rate below "
            f"{limit:.3g}"
        )
    if rate > NEAR_GUESSING * limit:
        warnings.warn(
            f"{kind} noise of rate {rate:.3g} with {k} classes is close to {limit:.3g}, from which on labels "
            "cannot be corrected: the corrected loss will be very noisy",
            HesstuneWarning,
            stacklevel=3,
        )
    return matrix


def is_random(matrix: NDArray[np.float64]) -> bool:
    """Tell whether labels under a noise matrix are right no more often than labels drawn at random."""
    return bool(1 - np.diagonal(matrix).mean() >= guessing_rate(len(matrix)) * (1 - ROUNDING))


def identifiability_notes(
    matrix: NDArray[np.float64], classes: Sequence[str] | None = None, near: float = NEAR_GUESSING
) -> list[str]:
    """Return the reasons that labels under a noise matrix are hard to correct, or impossible.

    Its rate is near (K − 1)/K, the rate of labels drawn at random, or beyond it; or the most probable given
    label of some class is another class.

    Args:
        matrix: F, (K, K), rows sum to 1.
        classes: The classes' names.
        near: The share of (K − 1)/K from which on a rate is named.

    Example:
        >>> identifiability_notes(np.array([[0.4, 0.6], [0.1, 0.9]]), ["cat", "dog"])
        ['examples of class cat are labelled dog (0.6) more often than cat (0.4)']
    """
    k = len(matrix)
    rate, guessing = float(1 - np.diagonal(matrix).mean()), guessing_rate(k)
    notes = []
    if rate > near * guessing * (1 - ROUNDING):
        how = "is not below" if is_random(matrix) else "is close to"
        notes.append(f"its rate {rate:.3g} {how} that of labels drawn at random ({guessing:.3g})")
    weak = np.flatnonzero(np.diagonal(matrix) < matrix.max(axis=1))
    for i in weak[:1].tolist():
        j = int(matrix[i].argmax())
        own, other = (str(at) if classes is None else cut(classes[at], 40) for at in (i, j))
        more = f", and {len(weak) - 1} more classes likewise" if len(weak) > 1 else ""
        notes.append(
            f"examples of class {own} are labelled {other} ({matrix[i, j]:.3g}) more often than {own} "
            f"({matrix[i, i]:.3g}){more}"
        )
    return notes


# How a matrix came to be known; it travels with it through every save and load.
ORIGINS = ("stated", "injected", "estimated", "instance_dependent")
# Beyond this condition number float64 leaves no trustworthy digit of the inverse.
SINGULAR_CONDITION = 1e12


def _numbers(line: str) -> list[float]:
    """Return the numbers of a row: with semicolons or tabs between them a comma is a decimal point."""
    mark = next((mark for mark in (";", "\t") if mark in line), ",")
    plain = line if mark == "," else line.replace(",", ".")
    cells = [cell.strip().strip('"') for cell in (plain.split(mark) if mark in line else plain.split())]
    numbers = [number for cell in cells if (number := parse_number(cell)) is not None]
    if len(numbers) < len(cells):
        wrong = next(cell for cell in cells if parse_number(cell) is None)
        raise NoiseMatrixError(f"a noise matrix must be numbers in K rows of K columns; got '{cut(wrong)}'")
    return numbers


class NoiseMatrix:
    """Class-conditional label noise: a (K, K) matrix with rows that sum to 1.

    F[i, j] = P(noisy = j | true = i), the transpose of cleanlab's convention. A *noise rate* is the
    probability that a label changes. Instances are immutable.

    Args:
        array: F, (K, K).
        origin: How F is known: `stated` by the user, `injected` into true labels, `estimated` from noisy
            data, or `instance_dependent`: the mean of noise that depends on the example.

    Raises:
        NoiseMatrixError: If the array is not square, finite, non-negative with rows summing to 1.

    Example:
        >>> F = NoiseMatrix.symmetric(4, 0.3)
        >>> F.array[0].round(3).tolist()
        [0.7, 0.1, 0.1, 0.1]
        >>> bool(np.allclose(F.inverse.sum(axis=1), 1.0))
        True
    """

    def __init__(self, array: ArrayLike, origin: str = "stated") -> None:
        self._array = stochastic_matrix(array)
        self._array.setflags(write=False)
        self._warned = False
        self._origin = one_of("origin of a noise matrix", origin, ORIGINS)

    @classmethod
    def from_array(cls, array: ArrayLike) -> NoiseMatrix:
        """Build from a row-stochastic (K, K) array: F[i, j] = P(given = j | true = i)."""
        return cls(array)

    @classmethod
    def from_column_stochastic(cls, array: ArrayLike) -> NoiseMatrix:
        """Build from the transposed convention, with columns that sum to 1 (cleanlab's noise matrix)."""
        return cls(np.asarray(array, dtype=np.float64).T)

    @classmethod
    def identity(cls, k: int) -> NoiseMatrix:
        """Build the matrix of clean labels."""
        return cls(np.eye(class_count(k, NoiseMatrixError)))

    @classmethod
    def symmetric(cls, k: int, rate: float) -> NoiseMatrix:
        """Build noise that changes a label with probability `rate`, to any other class alike.

        Raises:
            NoiseMatrixError: If the rate is (K − 1)/K or more: the true class is not the most probable
                label then. A rate near it is a `HesstuneWarning`.
        """
        return cls(identified_matrix("symmetric", k, rate))

    @classmethod
    def pair(cls, k: int, rate: float) -> NoiseMatrix:
        """Build noise that changes class i to (i + 1) mod K with probability `rate`.

        Raises:
            NoiseMatrixError: If the rate is 1/2 or more, likewise. A rate near it is a `HesstuneWarning`.
        """
        return cls(identified_matrix("pair", k, rate))

    @classmethod
    def parse(
        cls, text: str, k: int, classes: Sequence[str] | None = None, any_rate: bool = False
    ) -> NoiseMatrix:
        """Build from `symmetric:RATE`, `pair:RATE`, a bare rate (symmetric), JSON, or the path of a file.

        Args:
            text: One of these.
            k: Number of classes.
            classes: Their names: a file that names its own is brought to this order.
            any_rate: Whether the rate may be one that no loss can correct: to corrupt labels in experiments.

        Raises:
            NoiseMatrixError: If the text is none of these, the rate makes the labels guesses, or the file's
                matrix is not (k, k).
        """
        if is_written_out(text):
            with reading("the noise matrix", "JSON", NoiseMatrixError):
                found = cls._of_json(text, classes, "the options").sized(k)
            return found if any_rate else found.check_identifiable(classes)
        kind, _, rest = str(text).partition(":")
        rate = parse_rate(rest if kind in KINDS else str(text))
        if rate is not None:
            kind = kind if kind in KINDS else "symmetric"
            return cls(rate_matrix(kind, k, rate) if any_rate else identified_matrix(kind, k, rate))
        if kind in KINDS:
            raise NoiseMatrixError(
                f"noise '{cut(text)}' must be written {kind}:RATE with a rate in [0, 1], such as 0.4 or 40%"
            )
        if kind != "file" and not Path(text).exists():
            if rest and "/" not in kind:
                raise unknown_name("noise", kind, [*KINDS, "file"], NoiseMatrixError)
            raise NoiseMatrixError(
                f"noise '{cut(text)}' is neither a rate, such as 0.4 or 40%, nor {listed(KINDS)} with a "
                "rate, such as pair:0.4, nor the path of a matrix file"
            )
        found = cls.load(rest if kind == "file" else text, classes).sized(k)
        return found if any_rate else found.check_identifiable(classes)

    @classmethod
    def estimate(
        cls, probs: ArrayLike, noisy_labels: ArrayLike, method: str = "confident", **options: Any
    ) -> NoiseMatrix:
        """Estimate the matrix from out-of-sample probabilities of the noisy labels, without clean ones.

        The matrix of `hesstune.noise.estimate.estimate_noise`, which also records how it was found:
        probabilities calibrated, the estimate smoothed as little as the noisy likelihood allows.

        Args:
            probs: P(noisy = j | x), (N, K), from a network that was not trained on these examples.
            noisy_labels: (N,) integers in [0, K).
            method: `confident` (Northcutt et al. 2021), or another of `estimate_noise`, such as `em`.
            **options: Further arguments of `estimate_noise`, such as `features`.

        Raises:
            ConfigError: If the method is unknown.
            DataError: If probabilities and labels do not fit together.
            NoiseMatrixError: If a class is never seen, so that its row is unknown.

        Example:
            >>> g = [[0.8, 0.2], [0.3, 0.7]] * 50
            >>> NoiseMatrix.estimate(g, [0, 1] * 50).k
            2
        """
        # By name: estimates are built from this class, so a plain import would close a circle.
        estimators = importlib.import_module("hesstune.noise.estimate")
        found: NoiseMatrix = estimators.estimate_noise(probs, noisy_labels, method, **options).matrix
        return found

    @property
    def origin(self) -> str:
        """How the matrix is known, one of ORIGINS: a certificate accepts what was stated or injected."""
        return self._origin

    def known_as(self, origin: str) -> NoiseMatrix:
        """Return the same matrix with another origin."""
        return NoiseMatrix(self._array, origin)

    @property
    def array(self) -> NDArray[np.float64]:
        """F, (K, K) float64, read-only."""
        return self._array

    @property
    def k(self) -> int:
        """The number of classes K."""
        return len(self._array)

    @cached_property
    def condition(self) -> float:
        """The 2-norm condition number of F; infinite if it is singular."""
        value = float(np.linalg.cond(self._array))
        return value if np.isfinite(value) and value < SINGULAR_CONDITION else float("inf")

    @cached_property
    def inverse(self) -> NDArray[np.float64]:
        """F⁻¹, (K, K) float64, read-only; its rows sum to 1.

        Raises:
            NoiseMatrixError: If F is singular; `regularized` gives an invertible neighbour.
        """
        if self.condition == float("inf"):
            raise NoiseMatrixError(
                "this noise matrix is singular, so the noisy labels do not determine the clean ones; "
                "lower the rate, or use NoiseMatrix.regularized(0.1)"
            )
        inverse: NDArray[np.float64] = np.linalg.inv(self._array).astype(np.float64)
        inverse.setflags(write=False)
        return inverse

    @property
    def rate(self) -> float:
        """The probability that a label changes, under uniform classes: 1 − mean of the diagonal."""
        return float(1.0 - np.diagonal(self._array).mean())

    def regularized(self, weight: float) -> NoiseMatrix:
        """Return (1 − λ)F + λI; its rows and those of its inverse still sum to 1."""
        weight = unit_interval("the regularisation weight", weight, NoiseMatrixError)
        return NoiseMatrix((1 - weight) * self._array + weight * np.eye(self.k), self._origin)

    def sized(self, k: int) -> NoiseMatrix:
        """Return the matrix itself; raise NoiseMatrixError unless it is for k classes."""
        if self.k != k:
            raise NoiseMatrixError(f"the noise matrix is for {self.k} classes, but the data has {k}")
        return self

    def check_identifiable(self, classes: Sequence[str] | None = None) -> NoiseMatrix:
        """Return the matrix itself if given labels under it can be corrected.

        The notes of `identifiability_notes` on other matrices are a `HesstuneWarning`.

        Args:
            classes: The classes' names, for messages.

        Raises:
            NoiseMatrixError: If F is singular, or its rate is (K − 1)/K or more: that of labels at random.
        """
        _ = self.inverse
        if is_random(self._array):
            said = "; ".join(identifiability_notes(self._array, classes))
            raise NoiseMatrixError(
                f"noise matrix: {said}, so labels cannot be corrected; check the order of its classes, and "
                "that row i is the true class i"
            )
        self.warn_if_weak(classes)
        return self

    def warn_if_weak(self, classes: Sequence[str] | None = None, near: float = NEAR_GUESSING) -> None:
        """Warn once of the notes that `identifiability_notes` has on this matrix."""
        notes = [] if self._warned else identifiability_notes(self._array, classes, near)
        if notes:
            self._warned = True
            warnings.warn(f"noise matrix: {'; '.join(notes)}", HesstuneWarning, stacklevel=3)

    def corrupt(self, labels: ArrayLike, seed: int = 0) -> NDArray[np.int64]:
        """Draw a noisy label for each true one: P(noisy = j | true = i) = F[i, j].

        Args:
            labels: True labels, (N,) integers in [0, K).
            seed: Seed of the draw; the global random state is not used.

        Returns:
            The noisy labels, (N,) int64.
        """
        true = integer_labels(labels, self.k, "labels")
        return draw_classes(self._array[true], seed)

    def to_dict(self) -> dict[str, object]:
        """Return a JSON-ready record of the matrix."""
        finite = np.isfinite(self.condition)
        return {
            "convention": "F[i][j] = P(noisy = j | true = i), rows sum to 1",
            "matrix": self._array.tolist(),
            "condition": self.condition if finite else None,
            "rate": self.rate,
            "origin": self._origin,
        }

    def save(self, path: str | Path, classes: Sequence[str] | None = None) -> None:
        """Write the matrix as JSON, with the names of its classes if they are given.

        Raises:
            RunError: If it cannot be written: a former file is then as it was.
        """
        named = {} if classes is None else {"classes": list(classes)}
        write_json(Path(path), {**self.to_dict(), **named})

    @classmethod
    def load(cls, path: str | Path, classes: Sequence[str] | None = None) -> NoiseMatrix:
        """Read a matrix from JSON (rows, or a record with `matrix`), CSV (K rows of K numbers) or .npy.

        What does not begin as JSON is read as rows, with commas, semicolons, tabs or spaces between numbers.

        A JSON record may name its `classes`; with `classes` the matrix is brought to their order. Rows, CSV
        and .npy are stated by whoever gives them; a record says how its matrix is known.

        Raises:
            NoiseMatrixError: If the file holds no noise matrix, or is for other classes.
        """
        path = readable_file(path, "the noise matrix")
        with reading(path, "a noise matrix", NoiseMatrixError):
            if path.suffix.lower() == ".npy":
                with path.open("rb") as file:
                    return cls(read_array(file, path.stat().st_size))
            text = read_text(path)
            if not text.lstrip().startswith(("[", "{")):
                return cls(list(map(_numbers, filter(str.strip, text.splitlines()))))
            return cls._of_json(text, classes, path)

    @classmethod
    def _of_json(cls, text: str, classes: Sequence[str] | None, path: str | Path) -> NoiseMatrix:
        record = json.loads(text)
        if not isinstance(record, dict):
            return cls(record)
        found, own = cls(record.get("matrix", ()), _origin_of(record)), record.get("classes")
        return found if own is None or classes is None else found._in_order_of(own, classes, path)

    def _in_order_of(self, own: Sequence[str], classes: Sequence[str], path: str | Path) -> NoiseMatrix:
        if len(own) != self.k or set(own) != set(classes):
            raise NoiseMatrixError(
                f"the noise matrix in {path} is for the classes {listed(own)}, but the data has "
                f"{listed(classes)}"
            )
        order = [list(own).index(name) for name in classes]
        return NoiseMatrix(self._array[np.ix_(order, order)], self._origin)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NoiseMatrix) and np.array_equal(self._array, other._array)

    def __hash__(self) -> int:
        return hash(self._array.tobytes())

    def __repr__(self) -> str:
        return f"NoiseMatrix(k={self.k}, rate={self.rate:.3g}, condition={self.condition:.3g})"


def written_out(given: Any) -> str:
    """Return a noise matrix given in Python as the text that `NoiseMatrix.parse` reads.

    Args:
        given: A `NoiseMatrix`, whose origin is kept; a (K, K) array; or a rate.

    Example:
        >>> NoiseMatrix.parse(written_out(NoiseMatrix.pair(3, 0.2)), 3) == NoiseMatrix.pair(3, 0.2)
        True
    """
    if isinstance(given, int | float | np.number):
        return str(given)
    matrix = given if isinstance(given, NoiseMatrix) else NoiseMatrix(given)
    return json.dumps({"matrix": matrix.array.tolist(), "origin": matrix.origin})


def is_written_out(text: str) -> bool:
    """Tell whether the text of a noise matrix holds its numbers, as `written_out` gives them."""
    return str(text).lstrip().startswith(("[", "{"))


def shown_noise(text: str | None) -> str:
    """Return the text of a noise matrix for people, without its numbers."""
    return "a matrix given in Python" if text and is_written_out(text) else str(text)


def _origin_of(record: dict[str, Any]) -> str:
    """Return how a record's matrix is known; of records that do not say, by what made them."""
    if "origin" in record:
        return str(record["origin"])
    if "label_model" in record or record.get("method") == "labelmodel":
        return "instance_dependent"
    return "estimated" if "method" in record or "stderr" in record else "stated"
