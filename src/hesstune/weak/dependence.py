"""Do annotators err together? Groups of annotators whose votes count less, and tests of independence."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from hesstune.weak.votes import Votes, patterns

# An annotator votes for several classes if its second one has this share of its votes, and so many.
SECOND_SHARE, SECOND_VOTES = 0.1, 2
# The most cells of one pair's simulated tables, simulations, and annotators with tested pairs.
MOST_CELLS, LEAST_DRAWS, DRAWS, MOST_ANNOTATORS = 5_000_000, 200, 2000, 100
# Agreement beyond that of independent annotators: so much of it, and so many standard errors.
EXCESS, EXCESS_STDERRS = 0.15, 4.0
# The least number of annotators and of votes in common; and κ by which others can be divided.
FEWEST_ANNOTATORS, FEWEST_VOTES, LEAST_KAPPA = 4, 20, 0.15
# The largest share of the annotators that one group may have.
LARGEST_GROUP = 0.8
# The p-value below which a pair is dependent, and the votes in common that a test needs.
LEVEL, FEWEST_TESTED = 0.01, 10


def of_several_classes(votes: Votes) -> NDArray[np.bool_]:
    """(m,) whether an annotator votes for two classes at least, the second often enough to count."""
    counts = np.bincount(votes.annotator * votes.k + votes.vote, minlength=votes.m * votes.k)
    second = np.sort(counts.reshape(votes.m, votes.k), axis=1)[:, -2]
    return np.asarray(second >= np.maximum(SECOND_SHARE * votes.per_annotator, SECOND_VOTES))


@dataclass(frozen=True)
class ErrorGroups:
    """Which annotators err together."""

    group: NDArray[np.int64]  # (m,) int64, the same number for annotators that err together
    # (m,) in (0, 1], what a vote counts: 1/(1 + ρ(s − 1)) in a group of s annotators with mean correlation ρ,
    # 1 of an annotator alone.
    share: NDArray[np.float64]
    pairs: tuple[tuple[int, int], ...] = ()  # `(i, j)` of annotators that err together

    @classmethod
    def none(cls, m: int) -> ErrorGroups:
        """Return the groups of m independent annotators."""
        return cls(np.arange(m), np.ones(m))


def error_groups(votes: Votes) -> ErrorGroups:
    """Find the annotators that agree more than their agreement with all others explains.

    If annotators are independent and each is right with a probability of its own, agreement beyond chance
    (Cohen's κ) is κ_ij = w_i·w_j, so that κ_ik·κ_jl/κ_kl predicts κ_ij by any two others k and l. A pair errs
    together if its κ is above the median of these by EXCESS, by EXCESS_STDERRS standard errors of its own
    and by their spread. No posterior is used: one that is fitted to the votes explains dependence away.
    Annotators that vote for one class only are not compared.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 2, 2000)
        >>> table = np.where(rng.random((2000, 5)) < 0.7, y[:, None], 1 - y[:, None])
        >>> table[:, 1] = np.where(rng.random(2000) < 0.8, table[:, 0], table[:, 1])
        >>> error_groups(Votes(table, 2)).group.tolist()
        [0, 0, 2, 3, 4]
    """
    several, m = of_several_classes(votes), votes.m
    if several.sum() < FEWEST_ANNOTATORS or m > MOST_ANNOTATORS:
        return ErrorGroups.none(m)
    kappa, error, together = _agreement(votes)
    asked = (together >= FEWEST_VOTES) & several & several[:, None] & ~np.eye(m, dtype=bool)
    low = np.where(asked & (kappa >= LEAST_KAPPA), kappa, np.nan)
    tied, correlation = np.zeros_like(asked), np.zeros_like(kappa)
    for i, j in np.argwhere(np.triu(asked)).tolist():
        others = np.delete(np.arange(m), [i, j])
        predicted = np.outer(kappa[i, others], kappa[j, others]) / low[np.ix_(others, others)]
        valid = predicted[~np.isnan(predicted) & np.outer(asked[i, others], asked[j, others])]
        if not len(valid):
            continue
        middle = float(np.clip(np.median(valid), 0, 1))
        spread = float(np.median(np.abs(valid - middle)))
        excess = kappa[i, j] - middle
        tied[i, j] = tied[j, i] = excess > max(EXCESS, EXCESS_STDERRS * error[i, j], spread)
        correlation[i, j] = correlation[j, i] = np.clip(excess / max(1 - middle, 1e-3), 0, 1)
    part = np.asarray(connected_components(tied, directed=False)[1])
    group = np.array([int(np.flatnonzero(part == own)[0]) for own in part], dtype=np.int64)
    # If most are tied, what they have in common may as well be the truth, or errors to a class.
    if np.bincount(group).max() > LARGEST_GROUP * several.sum():
        return ErrorGroups.none(m)
    share = np.ones(m)
    for first in np.unique(group).tolist():
        inside = np.flatnonzero(group == first)
        if len(inside) > 1:
            block = correlation[np.ix_(inside, inside)]
            rho = float(block[~np.eye(len(inside), dtype=bool)].mean())
            share[inside] = 1 / (1 + rho * (len(inside) - 1))
    return ErrorGroups(group, share, tuple((int(i), int(j)) for i, j in np.argwhere(np.triu(tied))))


def _agreement(votes: Votes) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return κ of each pair, its standard error, and votes in common, (m, m) each."""
    onehot = []
    for c in range(votes.k):
        own = votes.vote == c
        cells = (votes.example[own], votes.annotator[own])
        onehot.append(csr_matrix((np.ones(int(own.sum())), cells), (len(votes), votes.m)))
    cast = sum(onehot[1:], onehot[0])
    together = (cast.T @ cast).toarray()
    agree = sum((own.T @ own).toarray() for own in onehot)
    marginals = [(own.T @ cast).toarray() for own in onehot]
    n = np.maximum(together, 1)
    by_chance = np.clip(sum(own * own.T for own in marginals) / n**2, 0, 0.98)
    rate = agree / n
    spread = np.sqrt(np.maximum(rate * (1 - rate), 0.25 / n) / n)
    return (rate - by_chance) / (1 - by_chance), spread / (1 - by_chance), together


def dependence_note(votes: Votes, posterior: NDArray[np.float64], seed: int = 0) -> tuple[str, ...]:
    """Return a sentence about the pairs of annotators with dependent votes given the class, or none.

    The statistic of a pair is Pearson's χ² between its table of votes and the table expected if each votes by
    its own confusion matrix given a class drawn from the posterior, (N, K). Its distribution under
    independence is simulated from the same posterior and confusion matrices. A pair is dependent if P(a
    statistic as large), with Bonferroni's correction, is below LEVEL. A posterior that was fitted to the
    votes explains some of the dependence away, so the test errs towards independence. Pairs with fewer than
    FEWEST_TESTED votes in common are not tested, and none if there are more than MOST_ANNOTATORS annotators.
    """
    k = votes.k
    pairs = list(combinations(range(votes.m), 2)) if votes.m <= MOST_ANNOTATORS else []
    draws = int(np.clip(MOST_CELLS // k**2, LEAST_DRAWS, DRAWS))
    if not pairs or draws * k**2 > 4 * MOST_CELLS:
        return ()
    rng = np.random.default_rng([seed, 0xDE9])
    # All that follows is linear in the posterior: its sums over equal rows of votes suffice.
    first, of = patterns(votes)
    table, weight = votes.take(first).table, np.bincount(of).astype(np.float64)
    posterior = np.stack([np.bincount(of, weights=column) for column in posterior.T], axis=1)

    def confusion(q: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
        counts = q.T @ np.eye(k)[labels] + 1e-9
        return np.asarray(counts / counts.sum(axis=1, keepdims=True))

    tied = []
    for a, b in pairs:
        both = np.flatnonzero((table[:, a] >= 0) & (table[:, b] >= 0))
        total = round(weight[both].sum())
        if total < FEWEST_TESTED:
            continue
        q, u, v = posterior[both], table[both, a], table[both, b]
        joint = np.einsum("y,yu,yv->uv", q.sum(axis=0), confusion(q, u), confusion(q, v))
        observed = np.zeros((k, k))
        np.add.at(observed, (u, v), weight[both])
        share = joint / joint.sum()
        simulated = rng.multinomial(total, share.ravel(), size=draws).reshape(draws, k, k)
        larger = int((_chi2(simulated, joint) >= _chi2(observed, joint)).sum())
        if len(pairs) * (larger + 1) / (draws + 1) < LEVEL:
            agreement = f"agree {np.trace(observed) / total:.0%}, {np.trace(share):.0%} expected"
            tied.append(f"{votes.names[a]} and {votes.names[b]} ({agreement})")
    if not tied:
        return ()
    return (
        f"annotators err together: {'; '.join(tied)}; label models assume that they err independently, so "
        "the noise matrix has too little noise",
    )


def _chi2(observed: NDArray[Any], expected: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return χ² of tables, (…, K, K), over the cells that can occur."""
    excess = (observed - expected) ** 2 / np.maximum(expected, 1e-6)
    return np.asarray(np.where(expected > 1e-6, excess, 0.0).sum(axis=(-2, -1)))
