"""Do labelers err together? A test of the independence that label models assume."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hesstune.weak.patterns import patterns
from hesstune.weak.votes import Votes

__all__ = ["PairTest", "dependence", "dependence_note"]

# Cells of one pair's simulated tables; and labelers whose pairs are tested: crowds have too many.
MOST_CELLS, LEAST_DRAWS, MOST_LABELERS = 5_000_000, 200, 100


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
