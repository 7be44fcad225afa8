"""Certificates for the clean risk from noisy labels: loss matrices L with F L ≥ 1 − I.

For any fixed L with (F L)[y, h] ≥ 1[h ≠ y], class-conditional noise gives
E L[ỹ, h(x)] = E (F L)[y, h(x)] ≥ P(h(x) ≠ y), so a bound on the mean of L over noisy labels bounds
the clean 0-1 risk. L is indexed [noisy label, prediction] and chosen from F alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, sparse

from hesstune.bounds.pac_bayes import confidence_interval
from hesstune.checks import stochastic_matrix
from hesstune.errors import ConfigError, NoiseMatrixError

Array = NDArray[np.float64]
Ends = tuple[float | None, float | None]
TRADES = (0.01, 0.03, 0.1, 0.2, 0.3, 0.4)
# The error rate at which the linear program weighs its columns: a fixed guess, no property of the data.
_EXPECTED_ERROR = 0.1
_MAX_CLASSES = 128
_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class CleanLoss:
    """A loss matrix with a mean over noisy labels of at least the clean 0-1 risk.

    Attributes:
        name: How it was made.
        matrix: L, (K, K), indexed [noisy label, prediction].
        low: Its smallest entry, a.
        high: Its largest entry, b.
    """

    name: str
    matrix: Array

    @property
    def low(self) -> float:
        """The smallest entry a of L."""
        return float(self.matrix.min())

    @property
    def high(self) -> float:
        """The largest entry b of L."""
        return float(self.matrix.max())

    def unit(self, confusion: ArrayLike) -> float:
        """Return the mean of (L − a)/(b − a) in [0, 1] under a (K, K) distribution of [ỹ, h]."""
        scaled = (self.matrix - self.low) / (self.high - self.low)
        return float(np.clip((np.asarray(confusion) * scaled).sum(), 0.0, 1.0))

    def risk(self, unit: float) -> float:
        """Return min(1, a + (b − a)·unit): from the scaled mean back to the risk.

        An upper bound below 0 is kept: it refutes the noise matrix that L is made for.
        """
        return float(min(1.0, self.low + (self.high - self.low) * unit))


class NoiseSet(Protocol):
    """Noise matrices among which the true one lies: one known matrix, or a confidence set."""

    k: int
    centre: Array

    def shortfall(self, matrix: Array) -> float:
        """Return at least max over the set, y and h of 1[h ≠ y] − (F L)[y, h]."""

    def rows(self) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
        """Return A, B with: (F L)[y, h] ≥ r for all F in the set iff A L[:, h] + B z ≥ r for some z ≥ 0."""


class KnownNoise:
    """One noise matrix taken as exactly true.

    Args:
        matrix: F, (K, K), F[i, j] = P(noisy = j | true = i); an array or an object with `.array`.

    Raises:
        NoiseMatrixError: If F is not row-stochastic.
    """

    def __init__(self, matrix: Any) -> None:
        self.centre = stochastic_matrix(getattr(matrix, "array", matrix))
        self.k = len(self.centre)

    def shortfall(self, matrix: Array) -> float:
        """Return max of 1[h ≠ y] − (F L)[y, h], rounded up."""
        product = self.centre @ matrix
        rounding = 2 * (self.k + 2) * _EPS * (self.centre @ np.abs(matrix) + 1)
        return float((1 - np.eye(self.k) - product + rounding).max())

    def rows(self) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
        """Return F itself; no further variables are needed."""
        return sparse.csr_matrix(self.centre), sparse.csr_matrix((self.k, 0))


class NoiseConfidenceSet:
    """All noise matrices whose entries lie in simultaneous Clopper–Pearson intervals.

    Made from a clean sample: examples with both their true and their noisy label, drawn independently
    of each other and of the certificate's examples. With probability at least 1 − δ the true F lies in
    the set: each of the K² entries has a two-sided interval at level δ/K².

    Args:
        counts: N[i, j], how many examples have true label i and noisy label j, (K, K) integers.
        delta: The probability with which the set may miss F.

    Raises:
        NoiseMatrixError: If counts are not a square matrix of whole numbers of at least 0.

    Example:
        >>> noise = NoiseConfidenceSet([[90, 10], [20, 80]], delta=0.01)
        >>> noise.lower.round(2).tolist()
        [[0.78, 0.03], [0.1, 0.66]]
    """

    def __init__(self, counts: ArrayLike, delta: float) -> None:
        table = np.asarray(counts)
        square = table.ndim == 2 and table.shape[0] == table.shape[1] >= 2
        if not square or np.any(table < 0) or np.any(table != np.floor(table)):
            raise NoiseMatrixError(
                f"counts must be whole numbers, (K, K), counts[true, noisy]; got shape {table.shape}"
            )
        self.k, self.delta = len(table), delta
        totals = table.sum(axis=1).astype(int)
        intervals = np.array(
            [
                [confidence_interval(int(c), int(n), delta / self.k**2) for c in row]
                for row, n in zip(table, totals, strict=True)
            ]
        )
        self.lower, self.upper = np.maximum(intervals[..., 0], 0.0), intervals[..., 1]
        self.counts = table.astype(int)
        self.centre = (table + 1 / self.k) / (totals[:, None] + 1)

    def worst(self, matrix: ArrayLike) -> Array:
        """Return min over the set of (F L)[y, h], (K, K): the cheapest entries of L are filled first."""
        values = np.asarray(matrix, np.float64)
        order = np.argsort(values, axis=0)
        result = np.empty((self.k, self.k))
        for y in range(self.k):
            room = (self.upper[y] - self.lower[y])[order]
            before = np.cumsum(room, axis=0) - room
            extra = np.clip(1 - self.lower[y].sum() - before, 0.0, room)
            result[y] = self.lower[y] @ values + (extra * np.take_along_axis(values, order, axis=0)).sum(0)
        return result

    def shortfall(self, matrix: Array) -> float:
        """Return max over the set of 1[h ≠ y] − (F L)[y, h], rounded up."""
        rounding = 8 * (self.k + 2) * _EPS * (np.abs(matrix).max() * self.k + 1)
        return float((1 - np.eye(self.k) - self.worst(matrix)).max() + rounding)

    def rows(self) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
        """Dualise the inner minimum: max over t, u, v of t + l·u − h·v with u − v = L[:, h] − t."""
        # u is eliminated (`coupling` keeps u = L − t + v ≥ 0), so the value is
        # l·L + (1 − Σ l) t − (h − l)·v; t = t⁺ − t⁻.
        k = self.k
        value = np.zeros((k, k * (k + 2)))
        for y in range(k):
            free = 1 - self.lower[y].sum()
            at = y * (k + 2)
            value[y, at : at + 2] = free, -free
            value[y, at + 2 : at + 2 + k] = -(self.upper[y] - self.lower[y])
        coupling = np.zeros((k * k, k * (k + 2)))
        for y in range(k):
            at = y * (k + 2)
            coupling[y * k : (y + 1) * k, at] = -1.0
            coupling[y * k : (y + 1) * k, at + 1] = 1.0
            coupling[y * k : (y + 1) * k, at + 2 : at + 2 + k] = np.eye(k)
        on_loss = np.vstack([self.lower, np.tile(np.eye(k), (k, 1))])
        return sparse.csr_matrix(on_loss), sparse.csr_matrix(np.vstack([value, coupling]))


def zero_one_loss(k: int) -> CleanLoss:
    """Return 1 − I, the loss for clean labels."""
    return CleanLoss("zero_one", 1.0 - np.eye(k))


def _lifted(name: str, matrix: Array, noise_matrix: NoiseSet) -> CleanLoss:
    """Add a constant so that F L ≥ 1 − I holds for every F of the set, despite rounding."""
    # A constant raises (F L)[y, h] by the row sum of F: exactly 1 in theory, nearly so in floats. A shift
    # below the entries' last digit would be lost in them.
    for _ in range(8):
        shift = noise_matrix.shortfall(matrix)
        if shift <= 0:
            break
        matrix = matrix + max(2 * shift, 4 * _EPS * float(np.abs(matrix).max() + 1))
    else:
        raise NoiseMatrixError(f"the {name} loss is too large to be verified; the noise is nearly singular")
    return CleanLoss(name, matrix)


def inverse_loss(noise_matrix: NoiseSet) -> CleanLoss:
    """Return L = 1 − F⁻¹. Its mean over noisy labels *equals* the clean 0-1 risk.

    Its range is [1 − max F⁻¹, 1 − min F⁻¹]. (Natarajan et al., Learning with noisy labels, 2013,
    Lemma 1, for the 0-1 loss and K classes; the paper's consistent loss.)

    Raises:
        NoiseMatrixError: If F is singular.
    """
    if np.linalg.matrix_rank(noise_matrix.centre, tol=1e-10) < noise_matrix.k:
        raise NoiseMatrixError("the noise matrix is singular; it has no inverse")
    return _lifted("inverse", 1.0 - np.asarray(np.linalg.inv(noise_matrix.centre), np.float64), noise_matrix)


def margin_loss(noise_matrix: NoiseSet) -> CleanLoss:
    """Return L = (1[ỹ ≠ h] − c)/γ, c = min_i (1 − F_ii), γ = min_i (F_ii − max_{j≠i} F_ij) > 0.

    It needs no inverse: P(h ≠ ỹ | y) is at least c if h is right and c + γ if it is wrong.

    Raises:
        NoiseMatrixError: If γ ≤ 0: some class is not its own most likely noisy label.
    """
    floor, gamma = _margin(noise_matrix.centre)
    return _lifted("margin", (1.0 - np.eye(noise_matrix.k) - floor) / gamma, noise_matrix)


def margin_of(noise_matrix: NoiseSet) -> tuple[float, float]:
    """Return c and γ with P(h ≠ ỹ) ≥ c + γ·P(h ≠ y) for every h and every F of the set.

    Raises:
        NoiseMatrixError: If some class may not be its own most likely noisy label.
    """
    if isinstance(noise_matrix, NoiseConfidenceSet):
        return _margin(noise_matrix.lower, noise_matrix.upper)
    return _margin(noise_matrix.centre)


def _margin(matrix: Array, upper: Array | None = None) -> tuple[float, float]:
    """Return c = min_i (1 − F_ii) and γ = min_i (F_ii − max_{j≠i} F_ij); of the worst F, given its ends."""
    most = matrix if upper is None else upper
    diagonal = np.diag(matrix)
    rivals = (most - 2 * np.eye(len(matrix))).max(axis=1)
    gamma = float((diagonal - rivals).min())
    if gamma <= 0:
        row = int((diagonal - rivals).argmin())
        raise NoiseMatrixError(
            f"the margin bound needs each class to be its own most likely noisy label; class {row} keeps "
            f"its label with {diagonal[row]:.3g} and takes another with {rivals[row]:.3g}"
        )
    return float(max(0.0, (1 - np.diag(most)).min())), gamma


def linear_program_loss(noise_matrix: NoiseSet, trade: float) -> CleanLoss:
    """Return the L that minimises its expected mean plus `trade` times its range, F L ≥ 1 − I.

    A small `trade` tends to 1 − F⁻¹ (unbiased, wide range), a large one to a narrow range with a
    mean above the clean risk. The expected mean is taken at uniform classes and a fixed error rate, so
    L depends on F alone. Over a confidence set the constraint holds for every F in it.

    Raises:
        ConfigError: If trade is negative or there are too many classes for the program.
        NoiseMatrixError: If no such L exists, for example if two classes have equal rows of F.
    """
    if not trade >= 0 or noise_matrix.k > _MAX_CLASSES:
        raise ConfigError(
            f"the linear program needs trade ≥ 0 and at most {_MAX_CLASSES} classes; "
            f"got {trade} and {noise_matrix.k}"
        )
    cost, rows, limits, bounds = _program(noise_matrix, trade)
    solved = optimize.linprog(cost, A_ub=rows, b_ub=limits, bounds=bounds, method="highs")
    if solved.status != 0:
        raise NoiseMatrixError(
            f"no loss covers this noise, so the clean risk cannot be bounded: {solved.message}"
        )
    return _lifted(
        f"linear_program({trade:g})",
        solved.x[: noise_matrix.k**2].reshape(noise_matrix.k, noise_matrix.k).T,
        noise_matrix,
    )


def _program(noise_matrix: NoiseSet, trade: float) -> tuple[Array, sparse.csr_matrix, Array, list[Ends]]:
    """Build the linear program: cost, A, b and the bounds of A x ≤ b.

    The variables are the columns L[:, h], each column's dual variables, then a and b.
    """
    k = noise_matrix.k
    on_loss, extra = noise_matrix.rows()
    duals = k * extra.shape[1]
    needed = np.zeros((k, on_loss.shape[0]))
    needed[:, :k] = 1 - np.eye(k)
    weights = np.full((k, k), _EXPECTED_ERROR / (k - 1))
    np.fill_diagonal(weights, 1 - _EXPECTED_ERROR)
    mean = (noise_matrix.centre.T @ weights / k).T.ravel()
    eye, entries = sparse.identity(k), sparse.identity(k * k)
    reach = sparse.hstack([sparse.kron(eye, on_loss), sparse.kron(eye, extra)])
    none = sparse.csr_matrix((k * k, duals))
    ones, zeros = np.ones((k * k, 1)), np.zeros((k * k, 1))
    rows = sparse.vstack(
        [
            sparse.hstack([-reach, sparse.csr_matrix((reach.shape[0], 2))]),
            sparse.hstack([-entries, none, ones, zeros]),
            sparse.hstack([entries, none, zeros, -ones]),
        ]
    )
    limits = np.concatenate([-needed.ravel(), np.zeros(2 * k * k)])
    free: Ends = (None, None)
    bounds = [free] * (k * k) + [(0, None)] * duals + [free, free]
    return np.concatenate([mean, np.zeros(duals), [-trade, trade]]), rows.tocsr(), limits, bounds


def clean_losses(noise_matrix: NoiseSet) -> list[CleanLoss]:
    """Return the finite family of losses that a certificate chooses from; delta pays for its size.

    The family depends on the noise alone, never on the examples: the inverse, the margin loss, and one linear
    program for each of TRADES, as far as they exist for this noise.

    Args:
        noise_matrix: A known matrix or a confidence set.

    Raises:
        NoiseMatrixError: If no loss exists for this noise.
    """
    makers: list[Callable[[], CleanLoss]] = [
        partial(inverse_loss, noise_matrix),
        partial(margin_loss, noise_matrix),
        *(partial(linear_program_loss, noise_matrix, trade) for trade in TRADES),
    ]
    losses: list[CleanLoss] = []
    problems = []
    for make in makers:
        try:
            loss = make()
        except NoiseMatrixError as error:
            problems.append(error)
            continue
        # A constant loss gives only the bound 1.
        if loss.low < loss.high - 1e-9 and not any(
            np.abs(loss.matrix - other.matrix).max() < 1e-6 for other in losses
        ):
            losses.append(loss)
    if not losses:
        raise problems[0] if problems else NoiseMatrixError("this noise leaves nothing to learn from")
    return losses


def noise_knowledge(noise_matrix: Any, noise_is: str) -> str:
    """Return how the noise is known; `known` does not override the recorded origin of a matrix."""
    origin = getattr(noise_matrix, "origin", "stated")
    return origin if noise_is == "known" and origin in ("estimated", "instance_dependent") else noise_is


def spent_by(noise_matrix: Any, delta: float) -> float:
    """Return the part of delta that a confidence set of the noise has; delta is checked.

    Raises:
        ConfigError: If nothing of delta is left.
    """
    spent = noise_matrix.delta if isinstance(noise_matrix, NoiseConfidenceSet) else 0.0
    if not 0 < delta - spent < 1 or not delta < 1:
        least = f"above the noise set's own {spent:g} and below 1" if spent else "in (0, 1)"
        raise ConfigError(f"delta must lie {least}; got {delta}")
    return float(spent)


def losses_for(noise_matrix: Any, k: int) -> list[CleanLoss]:
    """Return the losses with means that bound the clean risk: 1 − I for true labels.

    Raises:
        NoiseMatrixError: If the matrix is for other classes, or leaves nothing to learn from.
    """
    if noise_matrix is None:
        return [zero_one_loss(k)]
    known = noise_matrix if isinstance(noise_matrix, NoiseConfidenceSet) else KnownNoise(noise_matrix)
    if known.k != k:
        raise NoiseMatrixError(f"the noise matrix is for {known.k} classes; the model has {k}")
    return clean_losses(known)


def kind_of(noise_matrix: Any) -> str:
    """Describe how the labels' noise is known."""
    if noise_matrix is None:
        return "clean"
    if isinstance(noise_matrix, NoiseConfidenceSet):
        return "noisy, with a confidence set for the noise matrix"
    return "noisy, with a known noise matrix"


def sample_assumptions(n: int, noise_matrix: Any, noise_is: str, repeats: str) -> list[str]:
    """List the assumptions on the examples, their labels, and what was fixed before them."""
    assumptions = [
        f"the {n} examples are independent draws from the distribution that the model will meet",
        "delta, the method, every option and the part of the data that the bound counts on were chosen "
        "without regard to the result",
    ]
    if repeats == "allow":
        assumptions.append("repeated inputs are independent draws of a distribution that has such repeats")
    if noise_matrix is not None:
        assumptions.append("label noise depends on the true class alone, not on the input")
        if isinstance(noise_matrix, NoiseConfidenceSet):
            assumptions.append(
                f"the clean sample's {int(noise_matrix.counts.sum())} examples are independent of the "
                "certificate's and have the same noise"
            )
        elif noise_is == "known":
            assumptions.append("the noise matrix is known, not estimated")
    return assumptions
