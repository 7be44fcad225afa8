"""Label models in which every vote speaks for its class with a weight of its labeler's.

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

__all__ = ["Evidence", "equal_votes", "of_several_classes", "weighted_votes"]

# Before its votes are looked at, a labeler is half the way from chance to certainty.
START = 0.5
# No labeler is taken for worse than chance, nor for surer than this.
ABOVE_CHANCE, MOST = 0.01, 0.99
# Nor are all of them together for nearly useless or nearly perfect.
MEAN_ABOVE_CHANCE, MOST_MEAN = 0.05, 0.95
STEPS, TOLERANCE = 100, 1e-4
# A labeler votes for several classes where its second one has this share of its votes, and so many.
SECOND_SHARE, SECOND_VOTES = 0.1, 2


@dataclass(frozen=True)
class Evidence:
    """A fitted label model: ln P(class), and what a vote of each labeler adds to its own class.

    Attributes:
        log_prior: (K,) ln P(class).
        accuracy: (m,) P(vote = class) as fitted; NaN of a labeler that never votes.
        weight: (m,) what a vote adds to its own class.
    """

    log_prior: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    weight: NDArray[np.float64]

    def logits(self, ballots: Ballots) -> NDArray[np.float64]:
        """Return ln P(class | votes), (N, K), up to a constant a row."""
        return self.log_prior + ballots.summed(self.weight[ballots.labeler])

    def posterior(self, ballots: Ballots) -> NDArray[np.float64]:
        """Return P(class | votes), (N, K); the prior where nobody voted."""
        return np.asarray(softmax(self.logits(ballots), axis=1))

    def without_each(self, ballots: Ballots) -> NDArray[np.float64]:
        """Return for every vote the logits of its example by the other votes alone, (V, K)."""
        found = self.logits(ballots)[ballots.example]
        found[np.arange(len(ballots)), ballots.vote] -= self.weight[ballots.labeler]
        return found


def of_several_classes(ballots: Ballots) -> NDArray[np.bool_]:
    """(m,): whether a labeler votes for two classes at least, the second often enough to count."""
    cell = ballots.labeler * ballots.k + ballots.vote
    counts = np.bincount(cell, minlength=ballots.m * ballots.k).reshape(ballots.m, ballots.k)
    second = np.sort(counts, axis=1)[:, -2]
    return np.asarray(second >= np.maximum(SECOND_SHARE * counts.sum(axis=1), SECOND_VOTES))


def equal_votes(ballots: Ballots, log_prior: NDArray[np.float64]) -> Evidence:
    """Return the majority vote: every vote has the same weight, and the prior none."""
    return Evidence(np.zeros_like(log_prior), np.full(ballots.m, np.nan), np.ones(ballots.m))


def weighted_votes(ballots: Ballots, log_prior: NDArray[np.float64], strength: float) -> Evidence:
    """Fit one accuracy a labeler by expectation maximisation; a vote's weight is its log odds.

    Labeler j votes for the true class with probability a_j and for each other one with
    (1 − a_j)/(K − 1), so its vote weighs ln(a_j (K − 1)/(1 − a_j)). Each a_j is the mean posterior of its
    votes, beside `strength` votes at the mean of all: one that votes rarely counts like the others. A
    labeler that votes for one class only has the mean's weight: whether it or those for other classes are
    right cannot be told from the votes, and fitted accuracies confirm whichever got ahead. Where all are
    such, this is the majority vote. Source: Dawid and Skene 1979, with one parameter a labeler.

    Args:
        ballots: The votes, at least one.
        log_prior: (K,) ln P(class).
        strength: Votes that the labelers' mean counts for.

    Example:
        >>> example, labeler = np.repeat(np.arange(90), 3), np.tile(np.arange(3), 90)
        >>> votes = Ballots(example, labeler, example % 2, 90, 3, 2)
        >>> weighted_votes(votes, np.log([0.5, 0.5]), 1.0).accuracy.round(2).tolist()
        [0.99, 0.99, 0.99]
    """
    several = of_several_classes(ballots)
    if not several.any():
        return equal_votes(ballots, log_prior)
    counted = several[ballots.labeler]
    k, count = ballots.k, ballots.by_labeler
    chance = 1.0 / k
    accuracy = np.full(ballots.m, chance + START * (1 - chance))
    for _ in range(STEPS):
        found = Evidence(log_prior, accuracy, _log_odds(accuracy, k))
        right = found.posterior(ballots)[ballots.example, ballots.vote]
        mean = float(np.clip(right[counted].mean(), chance + MEAN_ABOVE_CHANCE, MOST_MEAN))
        summed = np.bincount(ballots.labeler, right, ballots.m)
        own = np.clip((summed + strength * mean) / (count + strength), chance + ABOVE_CHANCE, MOST)
        new = np.where(several, own, mean)
        moved = float(np.abs(new - accuracy).max())
        accuracy = new
        if moved < TOLERANCE:
            break
    return Evidence(log_prior, np.where(count > 0, accuracy, np.nan), _log_odds(accuracy, k))


def _log_odds(accuracy: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    return np.asarray(np.log(accuracy * (k - 1) / (1 - accuracy)))
