"""Label models in which every vote speaks for classes with a weight of its own.

Only votes that were given count: an abstention is a missing vote, no vote against every class. The prior
of the classes is held fixed: where it is fitted to the votes, labelers that vote for one class only, or
two that err together, let that class take all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from hesstune.weak.ballots import Ballots

__all__ = ["Evidence", "confusion_matrices", "equal_votes", "weighted_votes"]

# Before its votes are looked at, a labeler is half the way from chance to certainty.
START = 0.5
# No labeler is taken for worse than chance, nor for surer than this.
ABOVE_CHANCE, MOST = 0.01, 0.99
# Nor are all of them together for nearly useless or nearly perfect.
MEAN_ABOVE_CHANCE, MOST_MEAN = 0.05, 0.95
STEPS, TOLERANCE = 100, 1e-4


@dataclass(frozen=True)
class Evidence:
    """A fitted label model: ln P(class), and ln P(vote | class) of each labeler up to a constant.

    Attributes:
        log_prior: (K,) ln P(class).
        accuracy: (m,) P(vote = class) as fitted; NaN of a labeler that never votes.
        weight: (m,) what a vote adds to its own class; None where `table` says it.
        table: (m, K, K) what a vote v adds to class y, at [labeler, v, y]; or None.
    """

    log_prior: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    weight: NDArray[np.float64] | None = None
    table: NDArray[np.float64] | None = None

    def logits(self, ballots: Ballots) -> NDArray[np.float64]:
        """Return ln P(class | votes), (N, K), up to a constant a row."""
        if self.weight is not None:
            return self.log_prior + ballots.summed(self.weight[ballots.labeler])
        assert self.table is not None
        found = np.tile(self.log_prior, (ballots.n, 1))
        for y in range(ballots.k):
            added = self.table[ballots.labeler, ballots.vote, y]
            found[:, y] += np.bincount(ballots.example, added, ballots.n)
        return found

    def posterior(self, ballots: Ballots) -> NDArray[np.float64]:
        """Return P(class | votes), (N, K); the prior where nobody voted."""
        return np.asarray(softmax(self.logits(ballots), axis=1))

    def without_each(self, ballots: Ballots) -> NDArray[np.float64]:
        """Return for every vote the logits of its example by the other votes alone, (V, K)."""
        found = self.logits(ballots)[ballots.example]
        if self.weight is not None:
            found[np.arange(len(ballots)), ballots.vote] -= self.weight[ballots.labeler]
            return found
        assert self.table is not None
        return np.asarray(found - self.table[ballots.labeler, ballots.vote])


def equal_votes(ballots: Ballots, log_prior: NDArray[np.float64]) -> Evidence:
    """Return the majority vote: every vote has the same weight, and the prior none."""
    return Evidence(np.zeros_like(log_prior), np.full(ballots.m, np.nan), np.ones(ballots.m))


def weighted_votes(ballots: Ballots, log_prior: NDArray[np.float64], strength: float) -> Evidence:
    """Fit one accuracy a labeler by expectation maximisation; a vote's weight is its log odds.

    Labeler j votes for the true class with probability a_j and for each other one with
    (1 − a_j)/(K − 1), so its vote weighs ln(a_j (K − 1)/(1 − a_j)). Each a_j is the mean posterior of its
    votes, beside `strength` votes at the mean of all labelers: one that votes rarely counts like the
    others. Source: Dawid and Skene 1979, with one parameter a labeler.

    Args:
        ballots: The votes, at least one.
        log_prior: (K,) ln P(class).
        strength: Votes that the labelers' mean counts for.

    Example:
        >>> example, labeler = np.repeat(np.arange(90), 3), np.tile(np.arange(3), 90)
        >>> votes = Ballots(example, labeler, np.zeros(270, int), 90, 3, 2)
        >>> weighted_votes(votes, np.log([0.5, 0.5]), 10.0).accuracy.round(2).tolist()
        [0.99, 0.99, 0.99]
    """
    k, count = ballots.k, ballots.by_labeler
    chance = 1.0 / k
    accuracy = np.full(ballots.m, chance + START * (1 - chance))
    for _ in range(STEPS):
        found = Evidence(log_prior, accuracy, _log_odds(accuracy, k))
        right = found.posterior(ballots)[ballots.example, ballots.vote]
        mean = float(np.clip(right.mean(), chance + MEAN_ABOVE_CHANCE, MOST_MEAN))
        summed = np.asarray(np.bincount(ballots.labeler, right, ballots.m), dtype=np.float64)
        new = _shrunk(summed, count, mean, strength, chance)
        moved = float(np.abs(new - accuracy).max())
        accuracy = new
        if moved < TOLERANCE:
            break
    return Evidence(log_prior, np.where(count > 0, accuracy, np.nan), _log_odds(accuracy, k))


def _shrunk(
    right: NDArray[np.float64],
    count: NDArray[np.int64] | NDArray[np.float64],
    mean: float,
    strength: float,
    chance: float,
) -> NDArray[np.float64]:
    """Return accuracies, (m,), drawn to the labelers' mean."""
    return np.asarray(np.clip((right + strength * mean) / (count + strength), chance + ABOVE_CHANCE, MOST))


def _log_odds(accuracy: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    return np.asarray(np.log(accuracy * (k - 1) / (1 - accuracy)))


def confusion_matrices(ballots: Ballots, log_prior: NDArray[np.float64], strength: float) -> Evidence:
    """Fit a confusion matrix a labeler, drawn to its own `weighted_votes` form, from which it starts.

    P(j votes v | class y) is counted from the posterior beside `strength` votes a class at the labeler's
    one-parameter form, so a labeler that votes rarely, or for one class only, is no worse off than there.
    Source: Dawid and Skene 1979.

    Args:
        ballots: The votes, at least one.
        log_prior: (K,) ln P(class).
        strength: Votes that the one-parameter form counts for, a class.
    """
    k, chance = ballots.k, 1.0 / ballots.k
    found = weighted_votes(ballots, log_prior, strength)
    q = found.posterior(ballots)
    diagonal = np.arange(k)
    for _ in range(STEPS):
        counts = ballots.joint(q[ballots.example])
        right, total = counts[:, diagonal, diagonal].sum(axis=1), counts.sum(axis=(1, 2))
        mean = float(np.clip(right.sum() / total.sum(), chance + MEAN_ABOVE_CHANCE, MOST_MEAN))
        accuracy = _shrunk(right, total, mean, strength, chance)
        coin = np.repeat(((1 - accuracy) / (k - 1))[:, None, None], k, axis=1).repeat(k, axis=2)
        coin[:, diagonal, diagonal] = accuracy[:, None]
        held = counts + strength * coin
        table = np.log(held / held.sum(axis=1, keepdims=True))
        found = Evidence(log_prior, np.where(total > 0, accuracy, np.nan), table=table)
        new = found.posterior(ballots)
        moved = float(np.abs(new - q).max())
        q = new
        if moved < 10 * TOLERANCE:
            break
    return found
