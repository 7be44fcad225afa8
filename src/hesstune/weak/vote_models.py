"""Label models of votes alone, and the choice among them by the likelihood of held-out votes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from hesstune.selection import first_within_errors, paired_gain, within_errors
from hesstune.weak.dependence import FEWEST_LABELERS, Alike, alike
from hesstune.weak.votes import Ballots

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
    right cannot be decided from the votes, and fitted accuracies confirm whichever got ahead. Where all are
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


Fit = Callable[[Ballots, NDArray[np.float64], Alike], Evidence]
# The simplest first. The strengths, in votes, draw a labeler to the mean of all.
CANDIDATES: dict[str, Fit] = {
    "majority": equal_votes,
    "weighted": partial(weighted_votes, strength=200.0),
    "weighted_more": partial(weighted_votes, strength=50.0),
    "mace": partial(tabled_votes, strength=10.0, fitted=spamming),
    "confusion": partial(tabled_votes, strength=20.0, fitted=confusions),
}
WEIGHTED = ("weighted", "weighted_more")
# Those with a table a labeler, which a crowd's votes are too few for and its memory too small; and of whom
# it must be possible to tell whether they err together.
TABLES = ("mace", "confusion")
# Standard errors by which a table a labeler has to predict votes better than an accuracy a labeler.
SURE = 3.0
# Entries of all labelers' tables at most; beyond, all share one.
MOST_ENTRIES = 20_000_000
# Entries of labelers' own tables a vote at most.
MOST_PER_VOTE = 0.1
# Examples whose votes are predicted, drawn at random, at most.
MOST_JUDGED = 30_000
# Votes are predicted in folds of examples, by posteriors at the best of these temperatures.
FOLDS = 5
TEMPERATURES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
# Of the tables that turn a posterior into votes: counts at the votes' own shares, and at the common table.
SMOOTHING, COMMON = 5.0, 20.0
# A class's share may change so many times over from the majority vote's, and so many unanimous examples
# may be contradicted.
MOST_CHANGE, LEAST_SHARE, MOST_CONTRADICTED = 4.0, 0.02, 0.1


@dataclass(frozen=True)
class Choice:
    """What was tried, and what was chosen.

    Attributes:
        name: The candidate chosen.
        evidence: It, fitted to all votes.
        scores: {candidate: (mean log-likelihood of a vote not seen, standard error of its gain over the
            majority's)}; empty where no example has two votes.
        reasons: Why, in sentences.
        refused: {candidate: why} of those that collapsed.
    """

    name: str
    evidence: Evidence
    scores: dict[str, tuple[float, float]] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)

    def details(self) -> dict[str, Any]:
        """Return a JSON-ready record."""
        return {
            "chosen": self.name,
            "scores": {name: {"score": s, "stderr": e} for name, (s, e) in self.scores.items()},
            "reasons": list(self.reasons),
            "refused": self.refused,
        }


def choose(
    ballots: Ballots,
    log_prior: NDArray[np.float64],
    seed: int = 0,
    among: Sequence[str] | None = None,
) -> Choice:
    """Choose among CANDIDATES the simplest within one standard error of the best.

    Each candidate is fitted to four fifths of the examples; on the others each vote is predicted from the
    posterior by the remaining votes of its example, and the mean log-likelihood is the score. No true
    label is read. A candidate that has collapsed (see `collapse`) is not chosen.

    Args:
        ballots: The votes, at least one.
        log_prior: (K,) ln P(class), held fixed.
        seed: Of the folds.
        among: Names of candidates; None means all. The majority vote is what others are compared with, and
            is chosen where all of these are refused.
    """
    several = of_several_classes(ballots)
    asked = _applicable(ballots, several, tuple(CANDIDATES) if among is None else tuple(among))
    together = alike(ballots, several)
    fitted = {
        name: fit(ballots, log_prior, together)
        for name, fit in CANDIDATES.items()
        if name == "majority" or name in asked
    }
    refused = {
        name: why
        for name, made in fitted.items()
        if name != "majority" and (why := collapse(made.posterior(ballots), ballots))
    }
    names = [name for name in fitted if name not in refused and name in asked] or ["majority"]
    if not (ballots.each >= 2).sum() >= 2 * FOLDS:
        why = "too few examples have two votes, so votes cannot be checked against one another"
        return Choice("majority", fitted["majority"], {}, (why,), refused)
    some = ballots.only(np.random.default_rng([seed, 0x5AB]).permutation(ballots.n) < MOST_JUDGED)
    judged = dict.fromkeys(["majority", *names])
    found = {name: held_out_scores(some, CANDIDATES[name], log_prior, together, seed) for name in judged}
    best = max(names, key=lambda name: float(found[name].mean()))
    chosen = _simplest(names, found)
    plain = found["majority"]
    scores = {name: (float(own.mean()), paired_gain(own, plain)[1]) for name, own in found.items()}
    said = _reasons(chosen, best, scores, refused)
    if together.pairs:
        said = (*said, f"{len(together.pairs)} pairs of labelers err together: their votes count less")
    return Choice(chosen, fitted[chosen], scores, said, refused)


def _applicable(ballots: Ballots, several: NDArray[np.bool_], asked: tuple[str, ...]) -> tuple[str, ...]:
    """Leave out candidates with a table a labeler where votes cannot carry or check these."""
    too_many = ballots.m * ballots.k**2 > min(MOST_ENTRIES, MOST_PER_VOTE * len(ballots))
    if too_many or several.sum() < FEWEST_LABELERS:
        return tuple(name for name in asked if name not in TABLES)
    return asked


def _simplest(names: Sequence[str], found: Mapping[str, NDArray[np.float64]]) -> str:
    """Return the simplest within one standard error of the best; one of TABLES must be better by SURE."""

    def of(among: Sequence[str]) -> str:
        return among[first_within_errors([found[name] for name in among])]

    chosen, plainer = of(names), [name for name in names if name not in TABLES]
    if chosen in TABLES and plainer and within_errors(found[of(plainer)], found[chosen], SURE):
        return of(plainer)
    return chosen


def _reasons(
    chosen: str, best: str, scores: Mapping[str, tuple[float, float]], refused: Mapping[str, str]
) -> tuple[str, ...]:
    shown = ", ".join(f"{name} {score:.4f}" for name, (score, _) in scores.items())
    rule = "of the best score" if chosen == best else f"the simplest within one standard error of {best}"
    said = [f"auto: {chosen}, {rule} (log-likelihood of votes not seen: {shown})"]
    if chosen == "majority":
        said.append("these votes support no estimate beyond the majority vote")
    return (*said, *(f"{name} refused: {why}" for name, why in refused.items()))


def collapse(posterior: NDArray[np.float64], ballots: Ballots) -> str | None:
    """Say how a posterior contradicts the votes it comes from, or None where it does not.

    A class's share of the labels may not change by more than MOST_CHANGE times from the majority vote's,
    where either is LEAST_SHARE at least; and at most MOST_CONTRADICTED of the examples with two unanimous
    votes or more may be given another class.

    Args:
        posterior: (N, K).
        ballots: The votes.
    """
    with_votes = ballots.each > 0
    counts = ballots.counts[with_votes]
    voted, shares = _label_shares(counts), _label_shares(posterior[with_votes])
    for c in range(ballots.k):
        low, high = sorted((voted[c], shares[c]))
        if high >= LEAST_SHARE and high > MOST_CHANGE * max(low, 1e-12):
            return f"class {c} has {voted[c]:.0%} of the majority's labels, and would have {shares[c]:.0%}"
    unanimous = (counts.max(axis=1) == counts.sum(axis=1)) & (counts.sum(axis=1) >= 2)
    if unanimous.any():
        against = counts[unanimous].argmax(axis=1) != posterior[with_votes][unanimous].argmax(axis=1)
        if against.mean() > MOST_CONTRADICTED:
            return f"{against.mean():.0%} of the examples whose votes all agree would be labelled otherwise"
    return None


def _label_shares(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (K,): the share of examples labelled with each class, ties shared out."""
    best = scores >= scores.max(axis=1, keepdims=True) - 1e-12
    return np.asarray((best / best.sum(axis=1, keepdims=True)).mean(axis=0))


def held_out_scores(
    ballots: Ballots,
    fit: Fit,
    log_prior: NDArray[np.float64],
    together: Alike | None = None,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Return (E,): for each example with two votes, the mean log-likelihood of each from the others.

    A vote is not predicted from those of labelers that err as its own does: a copy predicts best.

    Args:
        ballots: The votes.
        fit: A label model.
        log_prior: (K,) ln P(class).
        together: Who errs together; None: nobody.
        seed: Of the folds.
    """
    together = together or Alike.none(ballots.m)
    fold = np.random.default_rng([seed, 0xF01D]).permutation(ballots.n) % FOLDS
    logits = np.empty((len(ballots), ballots.k))
    for part in range(FOLDS):
        made = fit(ballots.where(fold != part), log_prior, together)
        held = ballots.where(fold == part)
        logits[fold[ballots.example] == part] = made.without_each(held, together.group)
    several = ballots.each >= 2
    kept = ballots.where(several)
    logits = logits[several[ballots.example]]
    weight = 1.0 / kept.each[kept.example]
    side = (np.random.default_rng([seed, 0xA1F]).permutation(ballots.n) % 2)[kept.example]
    best: NDArray[np.float64] | None = None
    for temperature in TEMPERATURES:
        q = softmax(temperature * logits, axis=1)
        predicted = np.empty(len(kept))
        for own in (0, 1):
            predicted[side == own] = _predicted(kept, q, weight, side != own, side == own)
        summed = np.bincount(kept.example, weight * np.log(predicted), ballots.n)
        found = np.asarray(summed[several], dtype=np.float64)
        if best is None or found.mean() > best.mean():
            best = found
    assert best is not None
    return best


def _predicted(
    ballots: Ballots,
    q: NDArray[np.float64],
    weight: NDArray[np.float64],
    fitted: NDArray[np.bool_],
    judged: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Return P(vote | posterior by the others) of the judged votes, by tables counted on the fitted ones.

    All labelers share one table P(vote | class): what a labeler of one class votes for, its name would
    tell. Those that vote for several have a table of their own, drawn to the common one.
    """
    k, vote = ballots.k, ballots.vote
    share = np.bincount(vote[fitted], weight[fitted], k) + 0.5
    counted = [np.bincount(vote[fitted], weight[fitted] * q[fitted, y], k) for y in range(k)]
    common = np.stack(counted) + SMOOTHING * share / share.sum()
    common /= common.sum(axis=1, keepdims=True)
    found = (q[judged] * common[:, vote[judged]].T).sum(axis=1)
    several = of_several_classes(ballots)
    if not several.any() or ballots.m * k * k > MOST_ENTRIES:
        return np.asarray(found)
    rows = Ballots(ballots.example[fitted], ballots.labeler[fitted], vote[fitted], ballots.n, ballots.m, k)
    own = rows.joint(q[fitted]) + COMMON * common.T
    own /= own.sum(axis=1, keepdims=True)
    mine = (q[judged] * own[ballots.labeler[judged], vote[judged]]).sum(axis=1)
    return np.asarray(np.where(several[ballots.labeler[judged]], mine, found))
