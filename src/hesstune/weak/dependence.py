"""Do labelers err together? Tests of the independence that label models assume, and who stands with whom."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hesstune.weak.votes import Ballots, Votes, patterns

# Cells of one pair's simulated tables; and labelers whose pairs are tested: crowds have too many.
MOST_CELLS, LEAST_DRAWS, MOST_LABELERS = 5_000_000, 200, 100
# Of agreement beyond what independent labelers would have: so much of it, and so many standard errors.
EXCESS, SURE = 0.15, 4.0
# Labelers and votes in common at least; and κ by which others can be divided.
FEWEST_LABELERS, FEWEST_VOTES, LEAST_KAPPA = 4, 20, 0.15
# The largest share of the labelers that may stand together.
MOST_TIED = 0.8


@dataclass(frozen=True)
class PairTest:
    """The test of one pair of labelers.

    Attributes:
        first: A labeler's name.
        second: Another's.
        agreement: Share of examples both vote on where they agree.
        expected: The share that the label model expects of independent labelers.
        p_value: P(a statistic as large | independent given the class), Bonferroni over the pairs.
    """

    first: str
    second: str
    agreement: float
    expected: float
    p_value: float

    @property
    def dependent(self) -> bool:
        """Whether independence is rejected at 1 %."""
        return self.p_value < 0.01


@dataclass(frozen=True)
class Alike:
    """Which labelers err together.

    Attributes:
        group: (m,) int64, the same number for labelers that err together.
        share: (m,) in (0, 1], what each one's vote counts beside the others of its group: 1/(1 + ρ(s − 1))
            of a group of s whose mean correlation is ρ, 1 of one alone.
        names: Of the pairs, `(i, j)`.
    """

    group: NDArray[np.int64]
    share: NDArray[np.float64]
    pairs: tuple[tuple[int, int], ...] = ()

    @classmethod
    def none(cls, m: int) -> Alike:
        """Return what holds where all are independent."""
        return cls(np.arange(m), np.ones(m))


def alike(ballots: Ballots, several: NDArray[np.bool_]) -> Alike:
    """Find the labelers that agree more than their agreement with all others explains.

    Of independent labelers that are right with probabilities of their own, agreement beyond chance (Cohen's
    κ) is κ_ij = w_i·w_j, so that κ_ik·κ_jl/κ_kl predicts κ_ij by any two others k and l. A pair whose κ is
    above the median of these by EXCESS, by SURE standard errors of its own and by their spread errs
    together. No posterior is used: one that is fitted to the votes explains dependence away.

    Args:
        ballots: The votes.
        several: (m,) whether a labeler votes for several classes; of others nothing can be said.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 2, 2000)
        >>> table = np.where(rng.random((2000, 5)) < 0.7, y[:, None], 1 - y[:, None])
        >>> table[:, 1] = np.where(rng.random(2000) < 0.8, table[:, 0], table[:, 1])
        >>> alike(Votes(table, 2).ballots, np.ones(5, dtype=bool)).group.tolist()
        [0, 0, 2, 3, 4]
    """
    if several.sum() < FEWEST_LABELERS or ballots.m > MOST_LABELERS:
        return Alike.none(ballots.m)
    kappa, error, together = _agreement(ballots)
    asked = (together >= FEWEST_VOTES) & several & several[:, None] & ~np.eye(ballots.m, dtype=bool)
    low = np.where(asked & (kappa >= LEAST_KAPPA), kappa, np.nan)
    tied, correlation = np.zeros_like(asked), np.zeros_like(kappa)
    for i, j in np.argwhere(np.triu(asked)).tolist():
        others = np.delete(np.arange(ballots.m), [i, j])
        predicted = np.outer(kappa[i, others], kappa[j, others]) / low[np.ix_(others, others)]
        valid = predicted[~np.isnan(predicted) & np.outer(asked[i, others], asked[j, others])]
        if not len(valid):
            continue
        middle = float(np.clip(np.median(valid), 0, 1))
        spread = float(np.median(np.abs(valid - middle)))
        excess = kappa[i, j] - middle
        tied[i, j] = tied[j, i] = excess > max(EXCESS, SURE * error[i, j], spread)
        correlation[i, j] = correlation[j, i] = np.clip(excess / max(1 - middle, 1e-3), 0, 1)
    found = _groups(tied, correlation)
    # Where most are tied, what they have in common may as well be the truth, or errors to a class.
    largest = int(np.bincount(found.group).max())
    return found if largest <= MOST_TIED * several.sum() else Alike.none(ballots.m)


def _agreement(
    ballots: Ballots,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return κ of each pair, its standard error, and votes in common, (m, m) each."""
    onehot = [_cast_for(ballots, c) for c in range(ballots.k)]
    cast = sum(onehot[1:], onehot[0])
    together = np.asarray((cast.T @ cast).todense(), dtype=np.float64)
    agree = sum(np.asarray((own.T @ own).todense(), dtype=np.float64) for own in onehot)
    marginals = [np.asarray((own.T @ cast).todense(), dtype=np.float64) for own in onehot]
    n = np.maximum(together, 1)
    by_chance = np.clip(sum(own * own.T for own in marginals) / n**2, 0, 0.98)
    rate = agree / n
    spread = np.sqrt(np.maximum(rate * (1 - rate), 0.25 / n) / n)
    return (rate - by_chance) / (1 - by_chance), spread / (1 - by_chance), together


def _cast_for(ballots: Ballots, c: int) -> Any:
    """Return a sparse (N, m) matrix, 1 where a labeler votes for class c."""
    from scipy.sparse import csr_matrix

    own = ballots.vote == c
    return csr_matrix(
        (np.ones(int(own.sum())), (ballots.example[own], ballots.labeler[own])), (ballots.n, ballots.m)
    )


def _groups(tied: NDArray[np.bool_], correlation: NDArray[np.float64]) -> Alike:
    from scipy.sparse.csgraph import connected_components

    found = np.asarray(connected_components(tied, directed=False)[1])
    group = np.array([int(np.flatnonzero(found == own)[0]) for own in found], dtype=np.int64)
    share = np.ones(len(tied))
    for first in np.unique(group).tolist():
        inside = np.flatnonzero(group == first)
        if len(inside) > 1:
            block = correlation[np.ix_(inside, inside)]
            rho = float(block[~np.eye(len(inside), dtype=bool)].mean())
            share[inside] = 1 / (1 + rho * (len(inside) - 1))
    pairs = tuple((int(i), int(j)) for i, j in np.argwhere(np.triu(tied)))
    return Alike(group, share, pairs)


def dependence(
    votes: Votes, posterior: NDArray[np.float64], draws: int = 2000, seed: int = 0
) -> list[PairTest]:
    """Test, for each pair of labelers, whether their votes are independent given the class.

    The statistic is Pearson's χ² between the pair's table of votes and the table expected when each
    votes by its own confusion matrix given a class drawn from the posterior. Its distribution under
    independence is simulated from the same posterior and confusion matrices. A posterior that was
    fitted to the votes explains some of the dependence away, so the test errs towards independence.

    Args:
        votes: The votes.
        posterior: P(class | votes), (N, K), of a label model.
        draws: Simulations; fewer where there are many classes.
        seed: Their seed.

    Returns:
        A test a pair that votes together ten times at least; none at all where there are more than
        MOST_LABELERS labelers.
    """
    pairs = list(combinations(range(votes.m), 2)) if votes.m <= MOST_LABELERS else []
    # Where a pair's table is large, fewer simulations, so that memory stays what the votes take.
    draws = int(np.clip(MOST_CELLS // votes.k**2, LEAST_DRAWS, draws))
    if not pairs or draws * votes.k**2 > 4 * MOST_CELLS:
        return []
    rng = np.random.default_rng([seed, 0xDE9])
    # All that follows is linear in the posterior: its means over equal rows of votes suffice.
    distinct = patterns(votes)
    votes, weight = distinct.votes, distinct.weight
    posterior = np.stack(
        [np.bincount(distinct.of, weights=column, minlength=len(weight)) for column in posterior.T], axis=1
    )
    found = []
    for a, b in pairs:
        both = np.flatnonzero(votes.given[:, a] & votes.given[:, b])
        if weight[both].sum() < 10:
            continue
        q = posterior[both]
        u, v = votes.table[both, a], votes.table[both, b]
        ca, cb = (_confusion(q, labels, votes.k) for labels in (u, v))
        joint = np.einsum("y,yu,yv->uv", q.sum(axis=0), ca, cb)
        observed = np.zeros((votes.k, votes.k))
        np.add.at(observed, (u, v), weight[both])
        statistic = _chi2(observed, joint)
        flat = joint.ravel() / joint.sum()
        simulated = rng.multinomial(round(weight[both].sum()), flat, size=draws).reshape(
            draws, votes.k, votes.k
        )
        larger = int((_chi2(simulated, joint) >= statistic).sum())
        p = min(1.0, len(pairs) * (larger + 1) / (draws + 1))
        found.append(
            PairTest(
                votes.names[a],
                votes.names[b],
                float(np.average(u == v, weights=weight[both])),
                float(np.trace(joint) / joint.sum()),
                float(p),
            )
        )
    return found


def dependence_note(votes: Votes, posterior: NDArray[np.float64]) -> tuple[str, ...]:
    """Return a sentence about the labelers that err together, or none."""
    tied = [
        f"{t.first} and {t.second} (agree {t.agreement:.0%}, {t.expected:.0%} expected)"
        for t in dependence(votes, posterior)
        if t.dependent
    ]
    if not tied:
        return ()
    return (
        f"labelers err together: {'; '.join(tied)}; a label model takes their agreement for proof, so its "
        "matrix says too little noise",
    )


def _confusion(q: NDArray[np.float64], labels: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    counts = q.T @ np.eye(k)[labels] + 1e-9
    return np.asarray(counts / counts.sum(axis=1, keepdims=True))


def _chi2(observed: NDArray[Any], expected: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return χ² of tables, (…, K, K), over the cells that can occur."""
    excess = (observed - expected) ** 2 / np.maximum(expected, 1e-6)
    return np.asarray(np.where(expected > 1e-6, excess, 0.0).sum(axis=(-2, -1)))
