"""The error of a network, by the given labels of all examples and the checked labels of a few."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from hesstune.bounds.kinds.holdout import INDEPENDENT
from hesstune.bounds.record import Bound, Certificate, Network, Prior, finished
from hesstune.bounds.sample import Sample
from hesstune.errors import ConfigError, DataError
from hesstune.noise.confidence import confidence_interval, confidence_upper, failure_probability

# The class of an example without a checked label.
UNCHECKED = -1
# Cells of p₁, p₀ and q: in each the bound takes the worst corners.
FIRST, SECOND, RATES = 600, 600, 48
# Levels of the distribution of V̄ (each counts with the worse of its ends), and the mass of each tail beyond.
LEVELS, TAIL = 48, 2e-4
# The parts of delta for the interval of q and for ends of p₁ and p₀, which keep the test from parameters far
# from what was counted.
RATE_SHARE, END_SHARE = 0.02, 0.03


def checked_bound(
    disagreeing: tuple[int, int], agreeing: tuple[int, int], disagree: int, n: int, delta: float
) -> float:
    """Bound the true error of a network that was fixed before n examples with labels of any kind.

    Let V say whether the network disagrees with an example's given label, q = P(V = 1), and p₁, p₀ the
    probabilities that it is truly wrong if it disagrees and if it agrees: the error is q p₁ + (1 − q) p₀,
    whatever the labels' noise depends on. V is known of all n examples. Of some drawn at random among them
    the true labels are checked: given their V, the errors k₁, k₀ among the m₁, m₀ checked are binomial, and
    so is V among the other n − m₁ − m₀. (q, p₁, p₀) is rejected if T = V̄ k₁/m₁ + (1 − V̄) k₀/m₀, V̄ the mean
    of all n, would be at most the observed value with a probability below most of δ, or if one of them lies
    beyond its own exact confidence limit, with a small part of δ. The bound is the largest error of a
    parameter that is not rejected. Cells of parameters and of V̄ are rejected only if their worst corner is.
    `disagreeing` and `agreeing` are (k₁, m₁) and (k₀, m₀).

    Example:
        >>> round(checked_bound((70, 90), (4, 210), 3000, 10000, 0.05), 3)
        0.28
        >>> round(confidence_upper(74, 300, 0.05), 3)  # by the checked labels alone
        0.291
    """
    (k1, m1), (k0, m0) = disagreeing, agreeing
    whole = m1 <= disagree <= n - m0
    if not (0 <= k1 <= m1 and 0 <= k0 <= m0 and m1 + m0 >= 1 and whole):
        counts = f"{disagreeing}, {agreeing} of {disagree}, {n}"
        raise ConfigError(f"counts of checked examples do not fit together: {counts}")
    low, high = confidence_interval(disagree, n, RATE_SHARE * failure_probability(delta))
    if m1 == 0 or m0 == 0:  # nothing is known about one of the two probabilities
        left = (1 - RATE_SHARE) * delta
        most = [confidence_upper(k, m, left) if m else 1.0 for k, m in (disagreeing, agreeing)]
        return min(1.0, max(rate * most[0] + (1 - rate) * most[1] for rate in (low, high)))
    left = (1 - RATE_SHARE - 2 * END_SHARE) * delta
    p1 = np.linspace(0, confidence_upper(k1, m1, END_SHARE * delta), FIRST + 1)
    p0 = np.linspace(0, confidence_upper(k0, m0, END_SHARE * delta), SECOND + 1)
    # P(T ≤ t) falls with p₁ and p₀: a cell's lower ends decide, its upper ends are what it may be.
    chances = stats.binom.pmf(np.arange(m1 + 1)[:, None], m1, p1[:-1])
    tails = special.bdtr(np.arange(m0 + 1)[:, None].astype(float), m0, p0[:-1])
    worst, edges = 0.0, np.linspace(low, high, RATES + 1)
    for rates in pairwise(edges):
        below = chances.T @ (_masses(disagreeing, agreeing, disagree, n, rates) @ tails)
        kept = (below * (1 + 1e-9) >= left).sum(axis=1)  # cells of p₀, for each of p₁
        some = np.flatnonzero(kept)
        for rate in rates:
            error = rate * p1[1 + some] + (1 - rate) * p0[kept[some]]
            worst = max(worst, float(error.max(initial=0.0)))
    return min(1.0, worst)


def _masses(
    disagreeing: tuple[int, int],
    agreeing: tuple[int, int],
    disagree: int,
    n: int,
    rates: tuple[float, float],
) -> NDArray[np.float64]:
    """Return, (m₁ + 1, m₀ + 1), with what probability over V̄ each k₀ is the largest beside k₁ with T ≤ t.

    At most so: for q anywhere between the two rates, V̄'s u-quantile lies between theirs, and on each level
    of u the end that lets more pass counts.
    """
    (k1, m1), (k0, m0) = disagreeing, agreeing
    weight, others = disagree / n, n - m1 - m0
    seen = weight * k1 / m1 + (1 - weight) * k0 / m0 + 1e-9
    levels = np.concatenate([[0.0], np.linspace(TAIL, 1 - TAIL, LEVELS + 1), [1.0]])
    ends = [np.clip(stats.binom.ppf(levels, others, rate), 0, others) for rate in rates]
    means = np.stack([m1 + ends[0][:-1], m1 + ends[1][1:]])[:, :, None] / n  # (2, levels, 1)
    first = np.arange(m1 + 1) / m1
    with np.errstate(divide="ignore", invalid="ignore"):
        most = np.floor((seen - means * first) * m0 / (1 - means))
    most = np.where(means < 1, most, np.where(first <= seen, m0, -1)).max(axis=0)
    masses = np.zeros((m1 + 1, m0 + 1))
    level, at = np.nonzero(most >= 0)
    np.add.at(masses, (at, np.minimum(most[level, at], m0).astype(int)), np.diff(levels)[level])
    return masses


class Checked(Bound):
    """The bound of `checked_bound`, for a network that has not seen the examples."""

    share = "checked"
    network = "unseen"
    record: ClassVar[dict[str, str]] = {
        "wrong_disagreeing": "true errors among the checked examples whose given label is not the prediction",
        "checked_disagreeing": "number of these",
        "wrong_agreeing": "true errors among the checked examples whose given label is the prediction",
        "checked_agreeing": "number of these",
        "disagreeing": "all examples whose given label is not the prediction",
        "unchecked": "drawn examples without a label, counted as errors",
    }

    @classmethod
    def evaluate(cls, network: Network, prior: Prior | None, sample: Sample) -> Certificate:
        options, data, true = sample.options, sample.data, sample.options.checked or {}
        picked = sorted(true)
        if not picked or not 0 <= picked[0] <= picked[-1] < sample.n:
            raise DataError(f"checked labels must be of some of the {sample.n} examples; got {len(picked)}")
        guess = data.predict(network.model)
        differs = guess != data.labels
        at = np.argsort(data.order)[picked]
        truth = np.array([true[index] for index in picked])
        disagrees, wrong = differs[at], guess[at] != truth
        numbers = {
            "wrong_disagreeing": float((disagrees & wrong).sum()),
            "checked_disagreeing": float(disagrees.sum()),
            "wrong_agreeing": float((~disagrees & wrong).sum()),
            "checked_agreeing": float((~disagrees).sum()),
            "disagreeing": float(differs.sum()),
            "unchecked": float((truth == UNCHECKED).sum()),
        }
        delta, part = options.delta, options.delta / options.sheets
        certificate = Certificate.of_network(
            "checked",
            numbers,
            n=sample.n,
            delta=delta,
            classes=sample.k,
            shares={"checked": part, "other_sheets": delta - part},
            noise="noisy in any way, some of them checked",
        )
        drawn = (
            f"the {len(picked)} checked examples were drawn uniformly at random among them, and checked "
            "correctly"
        )
        return finished(certificate, sample, network.model, INDEPENDENT, drawn)

    @staticmethod
    def risk(one: Certificate, shares: Mapping[str, float]) -> float:
        count = {name: int(value) for name, value in one.numbers.items()}
        return checked_bound(
            (count["wrong_disagreeing"], count["checked_disagreeing"]),
            (count["wrong_agreeing"], count["checked_agreeing"]),
            count["disagreeing"],
            one.n,
            shares["checked"],
        )

    @staticmethod
    def counts(one: Certificate) -> str:
        count = {name: f"{value:.0f}" for name, value in one.numbers.items()}
        left = ""
        if one.numbers.get("unchecked"):
            left = f"drawn examples without a label, counted as errors: {count['unchecked']}, "
        return (
            f"{left}predictions that differ from the given label: {count['disagreeing']}; errors among the "
            f"checked: {count['wrong_disagreeing']} of {count['checked_disagreeing']} of these, "
            f"{count['wrong_agreeing']} of {count['checked_agreeing']} of the others"
        )

    @staticmethod
    def empirical(numbers: Mapping[str, float], n: int) -> float:
        return numbers["disagreeing"] / n


BOUND = Checked
