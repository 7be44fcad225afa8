"""Label models in which every vote adds evidence of its labeler's to the classes.

Only votes that were given count: an abstention is a missing vote, no vote against every class. The prior
of the classes is held fixed: where it is fitted to the votes, labelers that vote for one class only, or
two that err together, let that class take all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from hesstune.weak.ballots import Ballots
from hesstune.weak.dependence import Alike, alike

__all__ = [
    "Evidence",
    "bounded",
    "confusions",
    "equal_votes",
    "of_several_classes",
    "spamming",
    "tabled_votes",
    "vote_counts",
    "weighted_votes",
]

# Before its votes are looked at, a labeler is half the way from chance to certainty.
START = 0.5
# No labeler is taken for worse than chance, nor for surer than this.
ABOVE_CHANCE, MOST = 0.01, 0.99
# Nor are all of them together for nearly useless or nearly perfect.
MEAN_ABOVE_CHANCE, MOST_MEAN = 0.05, 0.95
STEPS, TOLERANCE = 50, 5e-4
# Votes on an example that count as evidence of their own.
MOST_VOTES = 20.0
# A labeler votes for several classes where its second one has this share of its votes, and so many.
SECOND_SHARE, SECOND_VOTES = 0.1, 2


@dataclass(frozen=True)
class Evidence:
    """A fitted label model: ln P(class), and what a vote of each labeler adds to its own class.

    Attributes:
        log_prior: (K,) ln P(class).
        accuracy: (m,) P(vote = class) as fitted; NaN of a labeler that never votes.
        weight: (m,) what a vote adds to its own class.
        table: (m, K, K) what it adds to every class, ln P(vote | class) at [labeler, vote, class], in place
            of `weight`; None where it adds to its own class alone.
    """

    log_prior: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    weight: NDArray[np.float64]
    table: NDArray[np.float64] | None = None

    def logits(self, ballots: Ballots) -> NDArray[np.float64]:
        """Return ln P(class | votes), (N, K), up to a constant a row."""
        if self.table is None:
            return self.log_prior + ballots.summed(self.weight[ballots.labeler])
        added = self.table[ballots.labeler, ballots.vote]
        found = [np.bincount(ballots.example, added[:, y], ballots.n) for y in range(ballots.k)]
        return np.asarray(self.log_prior + np.stack(found, axis=1))

    def posterior(self, ballots: Ballots) -> NDArray[np.float64]:
        """Return P(class | votes), (N, K); the prior where nobody voted."""
        return np.asarray(softmax(self.logits(ballots), axis=1))

    def without_each(self, ballots: Ballots, group: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """Return for every vote the logits of its example by the other votes alone, (V, K).

        Args:
            ballots: The votes.
            group: (m,) a number a group of labelers, whose votes are left out together.
        """
        if self.table is None:
            own = np.zeros((len(ballots), ballots.k))
            own[np.arange(len(ballots)), ballots.vote] = self.weight[ballots.labeler]
        else:
            own = self.table[ballots.labeler, ballots.vote]
        if group is not None:
            _, at = np.unique(ballots.example * ballots.m + group[ballots.labeler], return_inverse=True)
            own = np.stack([np.bincount(at, own[:, y])[at] for y in range(ballots.k)], axis=1)
        return np.asarray(self.logits(ballots)[ballots.example] - own)


def of_several_classes(ballots: Ballots) -> NDArray[np.bool_]:
    """(m,): whether a labeler votes for two classes at least, the second often enough to count."""
    cell = ballots.labeler * ballots.k + ballots.vote
    counts = np.bincount(cell, minlength=ballots.m * ballots.k).reshape(ballots.m, ballots.k)
    second = np.sort(counts, axis=1)[:, -2]
    return np.asarray(second >= np.maximum(SECOND_SHARE * counts.sum(axis=1), SECOND_VOTES))


def equal_votes(ballots: Ballots, log_prior: NDArray[np.float64], together: Alike | None = None) -> Evidence:
    """Return the majority vote: every vote has the same weight, and the prior none."""
    return Evidence(np.zeros_like(log_prior), np.full(ballots.m, np.nan), np.ones(ballots.m))


def weighted_votes(
    ballots: Ballots,
    log_prior: NDArray[np.float64],
    together: Alike | None = None,
    *,
    strength: float,
) -> Evidence:
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
        together: Who errs together, so that their votes count less; None: nobody.
        strength: Votes that the labelers' mean counts for.

    Example:
        >>> example, labeler = np.repeat(np.arange(90), 3), np.tile(np.arange(3), 90)
        >>> votes = Ballots(example, labeler, example % 2, 90, 3, 2)
        >>> weighted_votes(votes, np.log([0.5, 0.5]), strength=1.0).accuracy.round(2).tolist()
        [0.99, 0.99, 0.99]
    """
    several = of_several_classes(ballots)
    if not several.any():
        return equal_votes(ballots, log_prior)
    counted = several[ballots.labeler]
    k, count = ballots.k, ballots.by_labeler
    chance, counts_as = 1.0 / k, 1.0 if together is None else together.share
    accuracy = np.full(ballots.m, chance + START * (1 - chance))
    for _ in range(STEPS):
        found = Evidence(log_prior, accuracy, counts_as * _log_odds(accuracy, k))
        right = found.posterior(ballots)[ballots.example, ballots.vote]
        mean = float(np.clip(right[counted].mean(), chance + MEAN_ABOVE_CHANCE, MOST_MEAN))
        summed = np.bincount(ballots.labeler, right, ballots.m)
        own = np.clip((summed + strength * mean) / (count + strength), chance + ABOVE_CHANCE, MOST)
        new = np.where(several, own, mean)
        moved = float(np.abs(new - accuracy).max())
        accuracy = new
        if moved < TOLERANCE:
            break
    return Evidence(log_prior, np.where(count > 0, accuracy, np.nan), counts_as * _log_odds(accuracy, k))


def _log_odds(accuracy: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    return np.asarray(np.log(accuracy * (k - 1) / (1 - accuracy)))


Table = NDArray[np.float64]
"""P(vote | class) of each labeler, (m, K, K) at [labeler, vote, class]; or sums of such."""
TableFit = Callable[[Table, Table, Table, float], Table]


def confusions(counts: Table, mean: Table, before: Table, strength: float) -> Table:
    """Return any confusions: counts beside `strength` votes a class at the mean labeler's table.

    Source: Dawid and Skene 1979, section 2.
    """
    own = counts + strength * mean
    return np.asarray(own / own.sum(axis=1, keepdims=True))


def spamming(counts: Table, mean: Table, before: Table, strength: float) -> Table:
    """Return P(vote v | class y) = (1 − s)·[v = y] + s·ξ(v): a share s of votes is given without looking.

    `strength` votes at the mean labeler's stand beside the counts. Which of the votes on a class's own cell
    were given without looking, the table before tells: its cells off the diagonal are s·ξ(v). Source: Hovy,
    Berg-Kirkpatrick, Vaswani and Hovy 2013 (MACE).
    """
    k = counts.shape[1]
    own, eye = counts + strength * mean / k, np.eye(k)
    off = (before * (1 - eye)).sum(axis=2) / (k - 1)
    blind = off / np.maximum(np.einsum("mii->mi", before), 1e-12)
    spam = own.sum(axis=2) - np.einsum("mii->mi", own) * (1 - blind)
    share = np.clip(spam.sum(axis=1) / own.sum(axis=(1, 2)), 1 - MOST, 1 - ABOVE_CHANCE)[:, None, None]
    spread = (spam / spam.sum(axis=1, keepdims=True))[:, :, None]
    return np.asarray(share * spread + (1 - share) * eye)


def tabled_votes(
    ballots: Ballots,
    log_prior: NDArray[np.float64],
    together: Alike | None = None,
    *,
    strength: float,
    fitted: TableFit,
) -> Evidence:
    """Fit a table P(vote | class) a labeler by expectation maximisation, from the start of `weighted_votes`.

    Abstentions are missing votes, and the prior is held; labelers that vote for one class only have the mean
    labeler's table, which errs to all classes alike.

    Args:
        ballots: The votes, at least one.
        log_prior: (K,) ln P(class).
        together: See `weighted_votes`.
        strength: Votes that the mean labeler counts for.
        fitted: What tables may be: `confusions` or `spamming`.

    Example:
        >>> example, labeler = np.repeat(np.arange(90), 3), np.tile(np.arange(3), 90)
        >>> votes = Ballots(example, labeler, example % 2, 90, 3, 2)
        >>> found = tabled_votes(votes, np.log([0.5, 0.5]), strength=1.0, fitted=spamming)
        >>> found.accuracy.round(2).tolist()
        [1.0, 1.0, 1.0]
    """
    k, several = ballots.k, of_several_classes(ballots)
    found = weighted_votes(ballots, log_prior, together, strength=strength)
    if not several.any():
        return found
    # As if half of the votes on a class's own cell had been given without looking.
    counted, table = several[ballots.labeler], np.tile((1 + np.eye(k)) / (k + 1), (ballots.m, 1, 1))
    for _ in range(STEPS):
        rows = found.posterior(ballots)[ballots.example]
        right = rows[np.arange(len(ballots)), ballots.vote]
        accuracy = float(np.clip(right[counted].mean(), 1 / k + MEAN_ABOVE_CHANCE, MOST_MEAN))
        mean = np.full((k, k), (1 - accuracy) / (k - 1))
        np.fill_diagonal(mean, accuracy)
        new = np.where(several[:, None, None], fitted(ballots.joint(rows), mean, table, strength), mean)
        moved, table = float(np.abs(new - table).max()), new
        logs = np.log(np.clip(table, 1e-6, None))
        logs *= 1.0 if together is None else together.share[:, None, None]
        found = Evidence(log_prior, np.full(ballots.m, np.nan), np.ones(ballots.m), logs)
        if moved < TOLERANCE:
            break
    own = np.einsum("mii->mi", table).mean(axis=1)
    return replace(found, accuracy=np.where(ballots.by_labeler > 0, own, np.nan))


def vote_counts(ballots: Ballots) -> NDArray[np.float64]:
    """Return (N, K): an example's votes for each class, of labelers that err together less than one each.

    Args:
        ballots: The votes.
    """
    share = alike(ballots, of_several_classes(ballots)).share
    return bounded(ballots.summed(share[ballots.labeler]))


def bounded(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return counts of at most MOST_VOTES an example: what more would say, sums of logarithms cannot hold."""
    total = np.maximum(counts.sum(axis=1, keepdims=True), 1e-9)
    return np.asarray(counts * np.minimum(1, MOST_VOTES / total))
