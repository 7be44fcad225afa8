"""Label models of votes alone, and the choice among them by the likelihood of held-out votes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from hesstune.selection import first_within_errors, paired_gain, within_errors
from hesstune.weak.dependence import FEWEST_ANNOTATORS, ErrorGroups, error_groups, of_several_classes
from hesstune.weak.votes import Votes

Array = NDArray[np.float64]

# The start: an annotator is half the way from chance to certainty.
START = 0.5
# The range of an annotator's fitted accuracy (above chance), and of the mean accuracy of all.
ABOVE_CHANCE, MOST = 0.01, 0.99
MEAN_ABOVE_CHANCE, MOST_MEAN = 0.05, 0.95
STEPS, TOLERANCE = 50, 5e-4
# Votes on an example that count as evidence of their own.
MOST_VOTES = 20.0


@dataclass(frozen=True)
class FittedVotes:
    """A fitted label model: ln P(class), and what a vote of each annotator adds to the classes."""

    log_prior: Array  # (K,) ln P(class)
    accuracy: Array  # (m,) P(vote = class) as fitted; NaN for an annotator that never votes
    weight: Array  # (m,) what a vote adds to its own class
    # (m, K, K) what it adds to every class, ln P(vote | class) at [annotator, vote, class], in place of
    # `weight`; None if it adds to its own class alone.
    table: Array | None = None

    def logits(self, votes: Votes) -> Array:
        """Return ln P(class | votes), (N, K), up to a constant for each row."""
        if self.table is None:
            return self.log_prior + votes.sums(self.weight[votes.annotator])
        added = self.table[votes.annotator, votes.vote]
        sums = [np.bincount(votes.example, added[:, y], len(votes)) for y in range(votes.k)]
        return np.asarray(self.log_prior + np.stack(sums, axis=1))

    def posterior(self, votes: Votes) -> Array:
        """Return P(class | votes), (N, K); the prior for an example without votes."""
        return np.asarray(softmax(self.logits(votes), axis=1))

    def without_each(self, votes: Votes, group: NDArray[np.int64]) -> Array:
        """Return for every vote the logits of its example by the other votes alone, (V, K).

        Votes of annotators with the same group number, (m,), are left out together.
        """
        if self.table is None:
            own = self.weight[votes.annotator][:, None] * np.eye(votes.k)[votes.vote]
        else:
            own = self.table[votes.annotator, votes.vote]
        _, at = np.unique(votes.example * votes.m + group[votes.annotator], return_inverse=True)
        own = np.stack([np.bincount(at, own[:, y])[at] for y in range(votes.k)], axis=1)
        return np.asarray(self.logits(votes)[votes.example] - own)


def equal_votes(votes: Votes, log_prior: Array, groups: ErrorGroups | None = None) -> FittedVotes:
    """Return the majority vote: every vote has the same weight, and the prior none."""
    return FittedVotes(np.zeros_like(log_prior), np.full(votes.m, np.nan), np.ones(votes.m))


def weighted_votes(votes: Votes, log_prior: Array, groups: ErrorGroups, *, strength: float) -> FittedVotes:
    """Fit one accuracy for each annotator by expectation maximisation; a vote's weight is its log odds.

    Annotator j votes for the true class with probability a_j and for each other one with
    (1 − a_j)/(K − 1), so its vote weighs ln(a_j (K − 1)/(1 − a_j)). Each a_j is the mean posterior of its
    votes, together with `strength` votes at the mean of all: one that votes rarely counts like the others.
    An annotator that votes for one class only has the mean's weight. Votes cannot decide whether it or those
    for other classes are right, and fitted accuracies confirm the class that is ahead. If all annotators vote
    for one class only, this is the majority vote. The prior is held fixed, and votes of annotators that err
    together count less. Source: Dawid and Skene 1979, with one parameter for each annotator.
    """
    several = of_several_classes(votes)
    if not several.any():
        return equal_votes(votes, log_prior)
    counted, k, count = several[votes.annotator], votes.k, votes.per_annotator
    chance = 1.0 / k
    accuracy = np.full(votes.m, chance + START * (1 - chance))

    def weight(accuracy: Array) -> Array:
        return np.asarray(groups.share * np.log(accuracy * (k - 1) / (1 - accuracy)))

    for _ in range(STEPS):
        fitted = FittedVotes(log_prior, accuracy, weight(accuracy))
        right = fitted.posterior(votes)[votes.example, votes.vote]
        mean = float(np.clip(right[counted].mean(), chance + MEAN_ABOVE_CHANCE, MOST_MEAN))
        summed = np.bincount(votes.annotator, right, votes.m)
        own = np.clip((summed + strength * mean) / (count + strength), chance + ABOVE_CHANCE, MOST)
        before, accuracy = accuracy, np.where(several, own, mean)
        if np.abs(accuracy - before).max() < TOLERANCE:
            break
    return FittedVotes(log_prior, np.where(count > 0, accuracy, np.nan), weight(accuracy))


TableFit = Callable[[Array, Array, Array, float], Array]
"""Makes P(vote | class), (m, K, K) at [annotator, vote, class], of sums, the mean, those before, strength."""


def confusions(counts: Array, mean: Array, before: Array, strength: float) -> Array:
    """Return any confusions: counts beside `strength` votes for each class at the mean annotator's table.

    Source: Dawid and Skene 1979, section 2.
    """
    own = counts + strength * mean
    return np.asarray(own / own.sum(axis=1, keepdims=True))


def spamming(counts: Array, mean: Array, before: Array, strength: float) -> Array:
    """Return P(vote v | class y) = (1 − s)·[v = y] + s·ξ(v): a share s of votes is given without looking.

    `strength` votes at the mean annotator's stand beside the counts. The share of the votes on a class's own
    cell that were given without looking comes from the table before: its cells off the diagonal are s·ξ(v).
    Source: Hovy, Berg-Kirkpatrick, Vaswani and Hovy 2013 (MACE).
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
    votes: Votes, log_prior: Array, groups: ErrorGroups, *, strength: float, fit_table: TableFit
) -> FittedVotes:
    """Fit a table P(vote | class) for each annotator by expectation maximisation, from `weighted_votes`.

    Abstentions are missing votes, and the prior is held fixed. `fit_table` is `confusions` or `spamming`.
    Annotators that vote for one class only have the mean annotator's table, which errs to all classes alike.
    """
    k, several = votes.k, of_several_classes(votes)
    fitted = weighted_votes(votes, log_prior, groups, strength=strength)
    if not several.any():
        return fitted
    # As if half of the votes on a class's own cell had been given without looking.
    counted, table = several[votes.annotator], np.tile((1 + np.eye(k)) / (k + 1), (votes.m, 1, 1))
    for _ in range(STEPS):
        rows = fitted.posterior(votes)[votes.example]
        right = rows[np.arange(len(rows)), votes.vote]
        accuracy = float(np.clip(right[counted].mean(), 1 / k + MEAN_ABOVE_CHANCE, MOST_MEAN))
        mean = np.full((k, k), (1 - accuracy) / (k - 1))
        np.fill_diagonal(mean, accuracy)
        before = table
        table = np.where(several[:, None, None], fit_table(votes.joint(rows), mean, before, strength), mean)
        logs = np.log(np.clip(table, 1e-6, None)) * groups.share[:, None, None]
        fitted = FittedVotes(log_prior, np.full(votes.m, np.nan), np.ones(votes.m), logs)
        if np.abs(table - before).max() < TOLERANCE:
            break
    own = np.einsum("mii->mi", table).mean(axis=1)
    return replace(fitted, accuracy=np.where(votes.per_annotator > 0, own, np.nan))


def vote_counts(votes: Votes) -> Array:
    """Return (N, K): an example's votes for each class; annotators that err together count less than one."""
    return bounded(votes.sums(error_groups(votes).share[votes.annotator]))


def bounded(counts: Array) -> Array:
    """Return counts scaled to at most MOST_VOTES for each example: sums of logarithms cannot hold more."""
    total = np.maximum(counts.sum(axis=1, keepdims=True), 1e-9)
    return np.asarray(counts * np.minimum(1, MOST_VOTES / total))


Fit = Callable[[Votes, Array, ErrorGroups], FittedVotes]
# The simplest first. The strengths, in votes, draw an annotator to the mean of all.
CANDIDATES: dict[str, Fit] = {
    "majority": equal_votes,
    "weighted": partial(weighted_votes, strength=200.0),
    "weighted_more": partial(weighted_votes, strength=50.0),
    "mace": partial(tabled_votes, strength=10.0, fit_table=spamming),
    "confusion": partial(tabled_votes, strength=20.0, fit_table=confusions),
}
WEIGHTED = ("weighted", "weighted_more")
# Candidates with a table for each annotator. A crowd has too few votes for them, and they need enough
# annotators to find those that err together.
TABLES = ("mace", "confusion")
# Standard errors by which a table for each annotator has to predict votes better than an accuracy.
TABLE_STDERRS = 3.0
# The most entries of all annotators' tables; beyond, all share one. And the most for each vote.
MOST_ENTRIES, MOST_PER_VOTE = 20_000_000, 0.1
# The most examples with predicted votes, drawn at random.
MOST_PREDICTED = 30_000
# Votes are predicted in folds of examples, by posteriors at the best of these temperatures.
FOLDS = 5
TEMPERATURES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
# Of the tables that turn a posterior into votes: counts at the votes' own shares, and at the common table.
SMOOTHING, COMMON = 5.0, 20.0
# A posterior has collapsed if a class's share, LEAST_SHARE at least, changes by more than this factor from
# the majority vote's, or if more than this share of the unanimous examples get another class.
MOST_CHANGE, LEAST_SHARE, MOST_CONTRADICTED = 4.0, 0.02, 0.1


def choose(
    votes: Votes, log_prior: Array, seed: int = 0, among: Sequence[str] = tuple(CANDIDATES)
) -> tuple[FittedVotes, dict[str, Any]]:
    """Choose among CANDIDATES the simplest within one standard error of the best.

    The score is the mean log-likelihood of held-out votes (`held_out_scores`); no true label is used. One of
    TABLES must be better than the others by TABLE_STDERRS. A candidate that `collapse`d is refused. The
    majority vote is compared, too, and is chosen if all are refused.

    Returns:
        The chosen candidate, fitted to all votes, and a JSON-ready record: its name as `chosen`; `scores`,
        {candidate: {score, stderr of its gain over the majority's}}, empty if few examples have two votes;
        `reasons` in sentences; and `refused`, {candidate: why}.
    """
    too_many = votes.m * votes.k**2 > min(MOST_ENTRIES, MOST_PER_VOTE * len(votes.vote))
    if too_many or of_several_classes(votes).sum() < FEWEST_ANNOTATORS:
        among = [name for name in among if name not in TABLES]
    groups = error_groups(votes)
    fitted = {
        name: fit(votes, log_prior, groups)
        for name, fit in CANDIDATES.items()
        if name == "majority" or name in among
    }
    refused = {
        name: why
        for name, one in fitted.items()
        if name != "majority" and (why := collapse(one.posterior(votes), votes))
    }
    names = [name for name in fitted if name not in refused and name in among] or ["majority"]
    if not (votes.per_example >= 2).sum() >= 2 * FOLDS:
        why = "too few examples have two votes, so votes cannot be checked against one another"
        return fitted["majority"], {
            "chosen": "majority", "scores": {}, "reasons": [why], "refused": refused
        }  # fmt: skip
    drawn = np.random.default_rng([seed, 0x5AB]).permutation(len(votes)) < MOST_PREDICTED
    some = votes.take(np.flatnonzero(drawn))
    found = {
        name: held_out_scores(some, CANDIDATES[name], log_prior, groups, seed)
        for name in dict.fromkeys(["majority", *names])
    }

    def simplest_of(some_names: Sequence[str]) -> str:
        return some_names[first_within_errors([found[name] for name in some_names])]

    chosen, plainer = simplest_of(names), [name for name in names if name not in TABLES]
    if chosen in TABLES and plainer:
        plain = simplest_of(plainer)
        chosen = plain if within_errors(found[plain], found[chosen], TABLE_STDERRS) else chosen
    scores = {
        name: {"score": float(own.mean()), "stderr": paired_gain(own, found["majority"])[1]}
        for name, own in found.items()
    }
    best = max(names, key=lambda name: float(found[name].mean()))
    rule = "of the best score" if chosen == best else f"the simplest within one standard error of {best}"
    shown = ", ".join(f"{name} {own['score']:.4f}" for name, own in scores.items())
    reasons = [f"auto: {chosen}, {rule} (log-likelihood of held-out votes: {shown})"]
    if chosen == "majority":
        reasons.append("these votes support no estimate beyond the majority vote")
    reasons += [f"{name} refused: {why}" for name, why in refused.items()]
    if groups.pairs:
        reasons.append(f"{len(groups.pairs)} pairs of annotators err together: their votes count less")
    return fitted[chosen], {"chosen": chosen, "scores": scores, "reasons": reasons, "refused": refused}


def collapse(posterior: Array, votes: Votes) -> str | None:
    """Return how a posterior, (N, K), contradicts the votes it comes from, or None if it does not.

    A class's share of the labels may not change by more than MOST_CHANGE times from the majority vote's, if
    either is LEAST_SHARE at least. At most MOST_CONTRADICTED of the examples with two unanimous votes or more
    may be given another class.
    """
    with_votes = votes.per_example > 0
    counts, posterior = votes.counts[with_votes], posterior[with_votes]

    def label_shares(scores: Array) -> Array:
        best = scores >= scores.max(axis=1, keepdims=True) - 1e-12
        return np.asarray((best / best.sum(axis=1, keepdims=True)).mean(axis=0))

    voted, shares = label_shares(counts), label_shares(posterior)
    for c in range(votes.k):
        low, high = sorted((voted[c], shares[c]))
        if high >= LEAST_SHARE and high > MOST_CHANGE * max(low, 1e-12):
            return f"class {c} has {voted[c]:.0%} of the majority's labels, and would have {shares[c]:.0%}"
    unanimous = (counts.max(axis=1) == counts.sum(axis=1)) & (counts.sum(axis=1) >= 2)
    if unanimous.any():
        against = (counts[unanimous].argmax(axis=1) != posterior[unanimous].argmax(axis=1)).mean()
        if against > MOST_CONTRADICTED:
            return f"{against:.0%} of the examples with unanimous votes would be labelled otherwise"
    return None


def held_out_scores(votes: Votes, fit: Fit, log_prior: Array, groups: ErrorGroups, seed: int = 0) -> Array:
    """Return (E,): for each example with two votes, the mean log-likelihood of each vote from the others.

    The label model is fitted to the examples of the other folds. A vote is not predicted from those of
    annotators that err together with its own.
    """
    n = len(votes)
    fold = np.random.default_rng([seed, 0xF01D]).permutation(n) % FOLDS
    logits = np.empty((len(votes.vote), votes.k))
    for part in range(FOLDS):
        fitted = fit(votes.take(np.flatnonzero(fold != part)), log_prior, groups)
        held = votes.take(np.flatnonzero(fold == part))
        logits[fold[votes.example] == part] = fitted.without_each(held, groups.group)
    several = votes.per_example >= 2
    kept, logits = votes.take(np.flatnonzero(several)), logits[several[votes.example]]
    weight = 1.0 / kept.per_example[kept.example]
    is_first_half = (np.random.default_rng([seed, 0xA1F]).permutation(n) % 2)[several][kept.example] == 0
    scores: list[Array] = []
    for temperature in TEMPERATURES:
        q = softmax(temperature * logits, axis=1)
        predicted = np.empty(len(q))
        for half in (is_first_half, ~is_first_half):
            predicted[half] = _predicted(kept, q, weight, ~half, half)
        summed = np.bincount(kept.example, weight * np.log(predicted), len(kept))
        scores.append(np.asarray(summed, dtype=np.float64))
    return max(scores, key=lambda found: float(found.mean()))


def _predicted(
    votes: Votes, q: Array, weight: Array, fitted: NDArray[np.bool_], asked: NDArray[np.bool_]
) -> Array:
    """Return P(vote | posterior by the others) of the asked votes, by tables counted on the fitted ones.

    All annotators share one table P(vote | class): the name of an annotator that votes for one class would
    give its vote away. Those that vote for several have a table of their own, drawn to the common one.
    """
    k, vote, annotator = votes.k, votes.vote, votes.annotator
    share = np.bincount(vote[fitted], weight[fitted], k) + 0.5
    counted = [np.bincount(vote[fitted], weight[fitted] * q[fitted, y], k) for y in range(k)]
    common = np.stack(counted) + SMOOTHING * share / share.sum()
    common /= common.sum(axis=1, keepdims=True)
    by_common = np.asarray((q[asked] * common[:, vote[asked]].T).sum(axis=1))
    several = of_several_classes(votes)
    if not several.any() or votes.m * k * k > MOST_ENTRIES:
        return by_common
    own = votes.joint(q, fitted) + COMMON * common.T
    own /= own.sum(axis=1, keepdims=True)
    by_own = (q[asked] * own[annotator[asked], vote[asked]]).sum(axis=1)
    return np.asarray(np.where(several[annotator[asked]], by_own, by_common))
