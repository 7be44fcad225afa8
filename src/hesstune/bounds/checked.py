"""The true error from a few checked labels and all noisy ones, without a model of the noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from hesstune.bounds.pac_bayes import confidence_interval, confidence_upper
from hesstune.checks import unit_interval
from hesstune.errors import ConfigError

__all__ = ["checked_bound"]

# Cells of p₁; in each the bound takes the worst corner, and the worst cells are cut again.
CELLS, PARTS, ROUNDS = 64, 4, 4
STEPS = 30
# The parts of delta for the rate of disagreement, which many examples tell, and for ends of p₁ and p₀ that
# keep the test from parameters far from what was counted.
RATE_SHARE, END_SHARE = 0.05, 0.03


def checked_bound(
    disagreeing: tuple[int, int], agreeing: tuple[int, int], disagree: int, n: int, delta: float
) -> float:
    """Bound the true error of a network that was fixed before n examples with labels of any kind.

    Let V say whether the network disagrees with an example's given label, q = P(V = 1), and p₁, p₀ the
    probabilities that it is truly wrong where it disagrees and where it agrees: the error is
    q p₁ + (1 − q) p₀, whatever the labels' noise depends on. V is known of all n examples and gives q an
    exact end, with a twentieth of δ. Of examples drawn at random among them the true labels are checked:
    given V, the errors k₁, k₀ among the m₁, m₀ checked are binomial. (p₁, p₀) is rejected where
    T = V̄ k₁/m₁ + (1 − V̄) k₀/m₀ would be as
    small as was seen with a probability below the rest of δ, an exact test, or above its own exact end; the
    bound is the largest error of a parameter that is not rejected, over q in its interval.

    Args:
        disagreeing: (truly wrong, checked) of the checked examples whose label the network disagrees with.
        agreeing: Likewise where it agrees.
        disagree: How many of all n examples it disagrees with.
        n: Number of examples, the checked among them.
        delta: Probability of failure, in (0, 1).

    Raises:
        ConfigError: If counts do not fit together, or delta is out of range.

    Example:
        >>> round(checked_bound((70, 90), (4, 210), 3000, 10000, 0.05), 3)
        0.288
        >>> round(confidence_upper(74, 300, 0.05), 3)  # by the checked labels alone
        0.291
    """
    (k1, m1), (k0, m0) = disagreeing, agreeing
    whole = m1 <= disagree <= n - m0
    if not (0 <= k1 <= m1 and 0 <= k0 <= m0 and m1 + m0 >= 1 and whole):
        told = f"{disagreeing}, {agreeing} of {disagree}, {n}"
        raise ConfigError(f"counts of checked examples do not fit together: {told}")
    if not 0 < unit_interval("delta", delta) < 1:
        raise ConfigError(f"delta must lie strictly between 0 and 1; got {delta}")
    # Each parameter has one of the ends: q matters upwards where p₁ ≥ p₀, and downwards elsewhere.
    low, high = confidence_interval(disagree, n, 2 * RATE_SHARE * delta)
    if m1 == 0 or m0 == 0:  # one of the two probabilities is not seen at all, and may be 1
        rest = (1 - RATE_SHARE) * delta
        most = [confidence_upper(k, m, rest) if m else 1.0 for k, m in (disagreeing, agreeing)]
        return min(1.0, max(rate * most[0] + (1 - rate) * most[1] for rate in (low, high)))
    table = _Table(k1, m1, k0, m0, disagree / n)
    left = (1 - RATE_SHARE - 2 * END_SHARE) * delta
    ends = (confidence_upper(k1, m1, END_SHARE * delta), confidence_upper(k0, m0, END_SHARE * delta))
    start, width = np.arange(CELLS) * ends[0] / CELLS, ends[0] / CELLS
    settled = 0.0
    for _ in range(ROUNDS):
        error = table.worst(start, width, (low, high), ends, left)
        near = error >= np.sort(error)[-min(16, len(error))]
        settled = max(settled, float(error[~near].max(initial=0.0)))
        width /= PARTS
        start = (start[near][:, None] + width * np.arange(PARTS)).ravel()
    error = table.worst(start, width, (low, high), ends, left)
    return min(1.0, max(settled, float(error.max())))


class _Table:
    """P(T ≤ t) for the checked counts: which (k₁, k₀) lie no higher than what was seen."""

    def __init__(self, k1: int, m1: int, k0: int, m0: int, weight: float) -> None:
        self.m1, self.m0 = m1, m0
        seen = weight * k1 / m1 + (1 - weight) * k0 / m0
        first = np.arange(m1 + 1)
        # k₀ may be so large at most; what is as large but for rounding counts, too.
        most = np.floor((seen - weight * first / m1) * m0 / (1 - weight) + 1e-9)
        self.first = first[most >= 0]
        self.most = np.minimum(most[most >= 0], m0)

    def below(self, p1: NDArray[np.float64], p0: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return P(T ≤ t) at each pair, (C,); it falls with both."""
        chances = stats.binom.pmf(self.first[:, None], self.m1, p1)
        tails = special.bdtr(self.most[:, None], self.m0, p0)
        found: NDArray[np.float64] = (chances * tails).sum(axis=0) * (1 + 1e-9)
        return found

    def worst(
        self,
        start: NDArray[np.float64],
        width: float,
        rates: tuple[float, float],
        ends: tuple[float, float],
        delta: float,
    ) -> NDArray[np.float64]:
        """Return the largest error in each cell [start, start + width] of p₁; 0 where all is rejected."""
        left, right = np.zeros_like(start), np.full_like(start, ends[1])
        for _ in range(STEPS):  # the largest p₀ that is not rejected with p₁ at its low end
            middle = (left + right) / 2
            kept = self.below(start, middle) >= delta
            left, right = np.where(kept, middle, left), np.where(kept, right, middle)
        p1 = np.minimum(start + width, ends[0])
        error = np.maximum(*(rate * p1 + (1 - rate) * right for rate in rates))
        return np.where(self.below(start, np.zeros_like(start)) >= delta, error, 0.0)
