"""Bounds of the clean risk from noisy labels: loss matrices L with F L ≥ 1 − I, and tests of a stated F.

For any fixed L with (F L)[y, h] ≥ 1[h ≠ y], class-conditional noise gives
E L[ỹ, h(x)] = E (F L)[y, h(x)] ≥ P(h(x) ≠ y), so a bound on the mean of L over noisy labels bounds
the clean 0-1 risk. L is indexed [noisy label, prediction] and chosen from F alone.

The noise is a (K, K) array F, taken as exactly true, or a `NoiseConfidenceSet`, which holds the true F with
probability 1 − δ; `read_noise` makes it of what users give.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, sparse, special

from hesstune.bounds.kl import kl_inverse
from hesstune.checks import stochastic_matrix
from hesstune.errors import ConfigError, NoiseMatrixError, RefutedNoiseError
from hesstune.noise.confidence import NoiseConfidenceSet, confidence_upper

Array = NDArray[np.float64]
Ends = tuple[float | None, float | None]
Noise = Array | NoiseConfidenceSet
TRADES = (0.01, 0.03, 0.1, 0.2, 0.3, 0.4)
# The error rate at which the linear program weighs its columns: a fixed guess, no property of the data.
_EXPECTED_ERROR = 0.1
_MAX_CLASSES = 128
_EPS = float(np.finfo(np.float64).eps)


def read_noise(noise_matrix: Any) -> Noise:
    """Return a confidence set as it is, and any other noise matrix as a row-stochastic array."""
    if isinstance(noise_matrix, NoiseConfidenceSet):
        return noise_matrix
    return stochastic_matrix(getattr(noise_matrix, "array", noise_matrix))


def centre_of(noise: Noise) -> Array:
    """Return F, or the centre of a confidence set."""
    return noise.centre if isinstance(noise, NoiseConfidenceSet) else noise


def ends_of(noise: Noise) -> tuple[Array, Array]:
    """Return the smallest and the largest value of each entry of F."""
    return (noise.lower, noise.upper) if isinstance(noise, NoiseConfidenceSet) else (noise, noise)


@dataclass(frozen=True)
class CleanLoss:
    """A loss matrix with a mean over noisy labels of at least the clean 0-1 risk."""

    name: str  # How it was made
    matrix: Array  # L, (K, K), indexed [noisy label, prediction]

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
        """Return min(1, a + (b − a)·unit). A value below 0 is kept: it refutes the noise matrix of L."""
        return float(min(1.0, self.low + (self.high - self.low) * unit))


def worst_product(noise: NoiseConfidenceSet, matrix: ArrayLike) -> Array:
    """Return min over the set of (F L)[y, h], (K, K): the cheapest entries of L are filled first."""
    values = np.asarray(matrix, np.float64)
    order = np.argsort(values, axis=0)
    result = np.empty_like(values)
    for y, (low, high) in enumerate(zip(noise.lower, noise.upper, strict=True)):
        room = (high - low)[order]
        extra = np.clip(1 - low.sum() - (np.cumsum(room, axis=0) - room), 0.0, room)
        result[y] = low @ values + (extra * np.take_along_axis(values, order, axis=0)).sum(0)
    return result


def shortfall(noise: Noise, matrix: Array) -> float:
    """Return max of 1[h ≠ y] − (F L)[y, h] over every F of the noise, rounded up."""
    wrong = 1 - np.eye(len(matrix))
    if isinstance(noise, NoiseConfidenceSet):
        rounding = 8 * (noise.k + 2) * _EPS * (np.abs(matrix).max() * noise.k + 1)
        return float((wrong - worst_product(noise, matrix)).max() + rounding)
    slack = 2 * (len(matrix) + 2) * _EPS * (noise @ np.abs(matrix) + 1)
    return float((wrong - noise @ matrix + slack).max())


def _dual_rows(noise: Noise) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Return A, B with: (F L)[y, h] ≥ r for every F of the noise iff A L[:, h] + B z ≥ r for some z ≥ 0.

    For a confidence set the inner minimum is dualised: max over t, u, v of t + l·u − h·v with
    u − v = L[:, h] − t. u is eliminated (further rows keep u = L − t + v ≥ 0), so the value is
    l·L + (1 − Σ l) t − (h − l)·v; t = t⁺ − t⁻.
    """
    if not isinstance(noise, NoiseConfidenceSet):
        return sparse.csr_matrix(noise), sparse.csr_matrix((len(noise), 0))
    k = noise.k
    value, coupling = np.zeros((k, k * (k + 2))), np.zeros((k * k, k * (k + 2)))
    for y in range(k):
        at, rows = y * (k + 2), slice(y * k, (y + 1) * k)
        free = 1 - noise.lower[y].sum()
        value[y, at : at + 2] = free, -free
        value[y, at + 2 : at + 2 + k] = -(noise.upper[y] - noise.lower[y])
        coupling[rows, at : at + 2] = -1.0, 1.0
        coupling[rows, at + 2 : at + 2 + k] = np.eye(k)
    on_loss = np.vstack([noise.lower, np.tile(np.eye(k), (k, 1))])
    return sparse.csr_matrix(on_loss), sparse.csr_matrix(np.vstack([value, coupling]))


def zero_one_loss(k: int) -> CleanLoss:
    """Return 1 − I, the loss for clean labels."""
    return CleanLoss("zero_one", 1.0 - np.eye(k))


def _lifted(name: str, matrix: Array, noise: Noise) -> CleanLoss:
    """Add a constant so that F L ≥ 1 − I holds for every F of the noise, despite rounding."""
    # A constant raises (F L)[y, h] by the row sum of F: exactly 1 in theory, nearly so in floats. A shift
    # below the entries' last digit would be lost in them.
    for _ in range(8):
        shift = shortfall(noise, matrix)
        if shift <= 0:
            return CleanLoss(name, matrix)
        matrix = matrix + max(2 * shift, 4 * _EPS * float(np.abs(matrix).max() + 1))
    raise NoiseMatrixError(f"the {name} loss is too large to be verified; the noise is nearly singular")


def inverse_loss(noise: Noise) -> CleanLoss:
    """Return L = 1 − F⁻¹, with range [1 − max F⁻¹, 1 − min F⁻¹]; its noisy mean *equals* the clean risk.

    Natarajan et al. 2013, Lemma 1, for the 0-1 loss and K classes; the paper's consistent loss.
    """
    centre = centre_of(noise)
    if np.linalg.matrix_rank(centre, tol=1e-10) < len(centre):
        raise NoiseMatrixError("the noise matrix is singular; it has no inverse")
    return _lifted("inverse", 1.0 - np.asarray(np.linalg.inv(centre), np.float64), noise)


def margin_loss(noise: Noise) -> CleanLoss:
    """Return L = (1[ỹ ≠ h] − c)/γ, with c and γ of `margin_of` for F or the centre of a confidence set.

    It needs no inverse: P(h ≠ ỹ | y) is at least c if h is right and c + γ if it is wrong.
    """
    floor, gamma = margin_of(centre_of(noise))
    return _lifted("margin", (1.0 - np.eye(len(centre_of(noise))) - floor) / gamma, noise)


def margin_of(noise: Noise) -> tuple[float, float]:
    """Return c and γ with P(h ≠ ỹ) ≥ c + γ·P(h ≠ y) for every h and every F of the noise.

    c = min_i (1 − F_ii) and γ = min_i (F_ii − max_{j≠i} F_ij) > 0, each for the worst entries.
    NoiseMatrixError if some class may not be its own most probable noisy label.
    """
    lower, upper = ends_of(noise)
    diagonal, others = np.diag(lower), (upper - 2 * np.eye(len(upper))).max(axis=1)
    row = int((diagonal - others).argmin())
    gamma = float(diagonal[row] - others[row])
    if gamma <= 0:
        raise NoiseMatrixError(
            f"the margin bound needs each class to be its own most likely noisy label; class {row} keeps "
            f"its label with {diagonal[row]:.3g} and takes another with {others[row]:.3g}"
        )
    return float(max(0.0, (1 - np.diag(upper)).min())), gamma


def linear_program_loss(noise: Noise, trade: float) -> CleanLoss:
    """Return the L that minimises its expected mean plus `trade` times its range, F L ≥ 1 − I.

    A small `trade` tends to 1 − F⁻¹ (unbiased, wide range), a large one to a narrow range with a
    mean above the clean risk. The expected mean is taken at uniform classes and a fixed error rate, so
    L depends on F alone. Over a confidence set the constraint holds for every F in it. NoiseMatrixError if no
    such L exists, for example if two classes have equal rows of F.
    """
    k = len(centre_of(noise))
    if not trade >= 0 or k > _MAX_CLASSES:
        raise ConfigError(
            f"the linear program needs trade ≥ 0 and at most {_MAX_CLASSES} classes; got {trade} and {k}"
        )
    cost, rows, limits, bounds = _program(noise, k, trade)
    solved = optimize.linprog(cost, A_ub=rows, b_ub=limits, bounds=bounds, method="highs")
    if solved.status != 0:
        raise NoiseMatrixError(
            f"no loss covers this noise, so the clean risk cannot be bounded: {solved.message}"
        )
    return _lifted(f"linear_program({trade:g})", solved.x[: k**2].reshape(k, k).T, noise)


def _program(noise: Noise, k: int, trade: float) -> tuple[Array, sparse.csr_matrix, Array, list[Ends]]:
    """Build the linear program: cost, A, b and the bounds of A x ≤ b.

    The variables are the columns L[:, h], each column's dual variables, then the ends a and b of L.
    """
    on_loss, extra = _dual_rows(noise)
    duals = k * extra.shape[1]
    needed = np.zeros((k, on_loss.shape[0]))
    needed[:, :k] = 1 - np.eye(k)
    weights = np.full((k, k), _EXPECTED_ERROR / (k - 1))
    np.fill_diagonal(weights, 1 - _EXPECTED_ERROR)
    mean = (centre_of(noise).T @ weights / k).T.ravel()
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


def clean_losses(noise: Noise) -> list[CleanLoss]:
    """Return the finite family of losses that a certificate chooses from; delta pays for its size.

    It depends on the noise alone, never on the examples: the inverse, the margin loss, and one linear program
    for each of TRADES, as far as they exist; NoiseMatrixError if none does.
    """
    makers: list[Callable[[], CleanLoss]] = [
        partial(inverse_loss, noise),
        partial(margin_loss, noise),
        *(partial(linear_program_loss, noise, trade) for trade in TRADES),
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


def errors_in(confusion: ArrayLike) -> int:
    """Return how many predictions differ from the given label."""
    table = np.asarray(confusion)
    return int(table.sum() - np.trace(table))


def tail_bound(confusion: ArrayLike, losses: Sequence[CleanLoss], delta: float) -> tuple[float, CleanLoss]:
    """Bound the clean error of a network by its confusion [given label, prediction]; return the loss used.

    The network was fixed before these examples, and the losses without them. True labels (1 − I alone): the
    exact binomial tail (Clopper–Pearson). Noisy labels: the smallest over J losses L of
    a + (b − a)·kl⁻¹(mean of (L − a)/(b − a), ln(J/δ)/n), Chernoff's bound for means in [0, 1].
    """
    table = np.asarray(confusion, np.float64)
    n = int(table.sum())
    if len(losses) == 1 and losses[0].name == "zero_one":
        return confidence_upper(errors_in(table), n, delta), losses[0]
    side = math.log(len(losses) / delta) / n
    risks = [loss.risk(float(kl_inverse(loss.unit(table / n), side))) for loss in losses]
    best = int(np.argmin(risks))
    return risks[best], losses[best]


# The level of the tests of the noise floor, as a share of delta. A test that rejects leads to a refusal and
# to nothing else, so no part of delta is spent on it: the event of a wrong certificate only becomes smaller.
TEST_SHARE = 0.01
_ADVICE = (
    "give the matrix of these labels, or certify without one: hesstune check RUN draws examples to label, "
    "then hesstune certify RUN --checked-labels FILE"
)


def noise_floors(noise: Noise) -> NDArray[np.float64]:
    """Return the smallest probability that each prediction differs from the given label, (K,).

    Whatever the true class y is, a prediction h agrees with the given label with probability F[y, h]. So it
    differs with probability at least 1 − max_y F[y, h], and any classifier's error on the given labels is at
    least the minimum over h. A confidence set counts with its largest entries.
    """
    most = ends_of(noise)[1]
    return np.asarray(np.clip(1.0 - most.max(axis=0), 0.0, 1.0), np.float64)


def check_floor(
    confusion: ArrayLike, noise: Noise | None, delta: float, model_name: str = "the network's"
) -> None:
    """Refuse a noise matrix under which so few errors in a confusion, (K, K), are very improbable.

    The test is P(Bin(n, floor) ≤ errors) on all examples at half of the level 0.01·δ, and on the examples of
    each predicted class at 1/(2K) of it. It is exact for a network that was fixed before the examples. It
    refuses the true matrix with probability at most 0.01·δ, plus the failure probability of a confidence set.
    """
    if noise is None:
        return
    table, floors = np.asarray(confusion, np.int64), noise_floors(noise)
    level, k = TEST_SHARE * delta, len(floors)
    counts, errors = table.sum(axis=0), table.sum(axis=0) - np.diag(table)
    tests = [("", int(counts.sum()), int(errors.sum()), float(floors.min()), level / 2)]
    tests += [
        (f" of class {h}", int(counts[h]), int(errors[h]), float(floors[h]), level / (2 * k))
        for h in range(k)
    ]
    for part_name, n, wrong, floor, part in tests:
        chance = float(special.bdtr(wrong, n, floor))
        if n and chance < part:
            raise RefutedNoiseError(
                f"the noise floor test refutes the noise matrix: {wrong} of {model_name} n = {n} predictions"
                f"{part_name} on unseen examples differ from the given label; under the matrix each does "
                f"with probability {floor:.4g} or more, so P(Bin({n}, {floor:.4g}) <= {wrong}) = "
                f"{chance:.2g} is below the test's level {part:.2g}; {_ADVICE}"
            )


def check_noisy_risk(upper: float, noise: Noise | None, level: float) -> None:
    """Refuse a noise matrix if its floor lies above an upper bound on the error on the given labels."""
    if noise is not None and upper < (floor := float(noise_floors(noise).min())):
        raise RefutedNoiseError(
            f"the noise floor test refutes the noise matrix: the error on the given labels is at most "
            f"{upper:.4g} with probability {1 - level:.6g}, and under the matrix every classifier's is "
            f"at least {floor:.4g}; {_ADVICE}"
        )


def check_bound(risk: float, noise: Noise | None, delta: float) -> None:
    """Refuse a noise matrix under which an upper bound is below 0: true ones do with probability ≤ delta."""
    if noise is not None and risk < 0:
        raise RefutedNoiseError(
            f"the noise matrix is refuted: under it the true error would be at most {risk:.4g}, below 0, "
            f"with probability {1 - delta:g}; {_ADVICE}"
        )
