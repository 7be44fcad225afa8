"""Which label model to believe, without a true label: the one that foretells votes it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from hesstune.weak.ballots import Ballots
from hesstune.weak.dependence import FEWEST_LABELERS, Alike, alike
from hesstune.weak.evidence import (
    Evidence,
    confusions,
    equal_votes,
    of_several_classes,
    spamming,
    tabled_votes,
    weighted_votes,
)

__all__ = ["CANDIDATES", "WEIGHTED", "Choice", "choose", "collapse", "held_out_scores"]

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
# Standard errors by which a table a labeler has to foretell votes better than an accuracy a labeler.
SURE = 3.0
# Entries of all labelers' tables at most; beyond, all share one.
MOST_ENTRIES = 20_000_000
# Entries of labelers' own tables a vote at most.
MOST_PER_VOTE = 0.1
# Examples whose votes are foretold, drawn at random, at most.
MOST_JUDGED = 30_000
# Votes are foretold in folds of examples, by posteriors at the best of these temperatures.
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

    Each candidate is fitted to four fifths of the examples; on the others each vote is foretold from the
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
    scores = {
        name: (float(own.mean()), float((own - plain).std() / np.sqrt(len(own))))
        for name, own in found.items()
    }
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
        best = max(among, key=lambda name: float(found[name].mean()))
        return next(name for name in among if _near(found[name], found[best], 1.0))

    chosen, plainer = of(names), [name for name in names if name not in TABLES]
    if chosen in TABLES and plainer and _near(found[of(plainer)], found[chosen], SURE):
        return of(plainer)
    return chosen


def _near(own: NDArray[np.float64], best: NDArray[np.float64], errors: float) -> bool:
    """Tell whether a candidate's scores are within some standard errors of the best one's."""
    lost = best - own
    return bool(lost.mean() <= errors * lost.std() / np.sqrt(len(lost)))


def _reasons(
    chosen: str, best: str, scores: Mapping[str, tuple[float, float]], refused: Mapping[str, str]
) -> tuple[str, ...]:
    shown = ", ".join(f"{name} {score:.4f}" for name, (score, _) in scores.items())
    rule = "of the best score" if chosen == best else f"the simplest within one standard error of {best}"
    said = [f"auto: {chosen}, {rule} (log-likelihood of votes not seen: {shown})"]
    if chosen == "majority":
        said.append("nothing can be told from these votes beyond the majority vote")
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
    heard = ballots.each > 0
    counts = ballots.counts[heard]
    voted, shares = _label_shares(counts), _label_shares(posterior[heard])
    for c in range(ballots.k):
        low, high = sorted((voted[c], shares[c]))
        if high >= LEAST_SHARE and high > MOST_CHANGE * max(low, 1e-12):
            return f"class {c} has {voted[c]:.0%} of the majority's labels, and would have {shares[c]:.0%}"
    unanimous = (counts.max(axis=1) == counts.sum(axis=1)) & (counts.sum(axis=1) >= 2)
    if unanimous.any():
        against = counts[unanimous].argmax(axis=1) != posterior[heard][unanimous].argmax(axis=1)
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

    A vote is not foretold from those of labelers that err as its own does: a copy foretells best.

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
        foretold = np.empty(len(kept))
        for own in (0, 1):
            foretold[side == own] = _foretold(kept, q, weight, side != own, side == own)
        summed = np.bincount(kept.example, weight * np.log(foretold), ballots.n)
        found = np.asarray(summed[several], dtype=np.float64)
        if best is None or found.mean() > best.mean():
            best = found
    assert best is not None
    return best


def _foretold(
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
