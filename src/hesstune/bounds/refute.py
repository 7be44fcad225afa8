"""Tests of a stated noise matrix: counts that it all but excludes.

A test that rejects leads to a refusal and to nothing else. The event that a certificate is given and wrong
only becomes smaller, so no part of delta is spent on the tests. Their level is the probability of a false
refusal.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from hesstune.bounds.noisy import KnownNoise, NoiseConfidenceSet
from hesstune.errors import RefutedNoiseError

__all__ = ["TEST_SHARE", "check_bound", "check_floor", "check_noisy_risk", "noise_floors"]

# The level of the tests of the noise floor, as a share of delta.
TEST_SHARE = 0.01
_ADVICE = (
    "give the matrix of these labels, or certify without one: hesstune check RUN draws examples to label, "
    "then hesstune certify RUN --checked FILE"
)


def noise_floors(noise_matrix: Any) -> NDArray[np.float64]:
    """Return the least probability of each prediction to differ from the given label, (K,).

    Whatever the true class y is, a prediction h agrees with the given label with probability F[y, h]. So it
    differs with probability at least 1 − max_y F[y, h], and any classifier's error on the given labels is at
    least the minimum over h. Of a confidence set the largest possible entries count.

    Args:
        noise_matrix: F, (K, K), rows sum to 1, an object with `.array`, or a `NoiseConfidenceSet`.

    Example:
        >>> noise_floors([[0.8, 0.2], [0.3, 0.7]]).round(2).tolist()
        [0.2, 0.3]
    """
    if isinstance(noise_matrix, NoiseConfidenceSet):
        most = noise_matrix.upper
    else:
        most = KnownNoise(noise_matrix).centre
    return np.asarray(np.clip(1.0 - most.max(axis=0), 0.0, 1.0), np.float64)


def check_floor(confusion: ArrayLike, noise_matrix: Any, delta: float, whose: str = "the network's") -> None:
    """Refuse a noise matrix under which so few errors on the given labels are all but impossible.

    The test is P(Bin(n, floor) ≤ errors) on all examples at half of the level 0.01·δ, and on those of each
    predicted class at 1/(2K) of it. It is exact for a network that was fixed before the examples. The
    probability of refusing the true matrix is at most 0.01·δ, plus that with which a confidence set fails.

    Args:
        confusion: (K, K) counts, indexed [given label, prediction].
        noise_matrix: As of `hesstune.certify`; None for true labels, of which nothing is tested.
        delta: The certificate's probability of failure.
        whose: Whose predictions they are, for the message.

    Raises:
        RefutedNoiseError: If the test rejects.

    Example:
        >>> check_floor([[120, 30], [30, 120]], [[0.8, 0.2], [0.2, 0.8]], 0.05)
        >>> check_floor([[145, 5], [4, 146]], [[0.8, 0.2], [0.2, 0.8]], 0.05)
        Traceback (most recent call last):
        hesstune.errors.RefutedNoiseError: ...
    """
    if noise_matrix is None:
        return
    table, floors = np.asarray(confusion, np.int64), noise_floors(noise_matrix)
    level, k = TEST_SHARE * delta, len(floors)
    counts, errors = table.sum(axis=0), table.sum(axis=0) - np.diag(table)
    tests = [("", int(counts.sum()), int(errors.sum()), float(floors.min()), level / 2)]
    tests += [
        (f" of class {h}", int(counts[h]), int(errors[h]), float(floors[h]), level / (2 * k))
        for h in range(k)
    ]
    for where, n, wrong, floor, part in tests:
        chance = float(special.bdtr(wrong, n, floor))
        if n and chance < part:
            raise RefutedNoiseError(
                f"the noise floor test refutes the noise matrix: {wrong} of {whose} n = {n} predictions"
                f"{where} on unseen examples differ from the given label; under the matrix each does with "
                f"probability {floor:.4g} or more, so P(Bin({n}, {floor:.4g}) <= {wrong}) = {chance:.2g} is "
                f"below the test's level {part:.2g}; {_ADVICE}"
            )


def check_noisy_risk(upper: float, noise_matrix: Any, level: float) -> None:
    """Refuse a noise matrix whose floor lies above an upper bound on the error on the given labels.

    Args:
        upper: The bound.
        noise_matrix: As of `check_floor`.
        level: The probability with which the bound fails, which is that of a false refusal.

    Raises:
        RefutedNoiseError: If the bound lies below the floor.
    """
    if noise_matrix is None:
        return
    floor = float(noise_floors(noise_matrix).min())
    if upper < floor:
        raise RefutedNoiseError(
            f"the noise floor test refutes the noise matrix: the error on the given labels is at most "
            f"{upper:.4g} with probability {1 - level:.6g}, and under the matrix every classifier's is "
            f"at least {floor:.4g}; {_ADVICE}"
        )


def check_bound(risk: float, noise_matrix: Any, delta: float) -> None:
    """Refuse a noise matrix under which an upper bound on the true error is below 0.

    Under the true matrix that happens only if the bound fails, with probability at most delta.

    Raises:
        RefutedNoiseError: If the bound is below 0.
    """
    if noise_matrix is not None and risk < 0:
        raise RefutedNoiseError(
            f"the noise matrix is refuted: under it the true error would be at most {risk:.4g}, below 0, "
            f"with probability {1 - delta:g}; {_ADVICE}"
        )
