"""Annotators' probabilities, calibrated by one another: language models are overconfident."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from hesstune.weak.label_models._base import Answer, Checked, LabelModel, ModelInputs
from hesstune.weak.vote_models import bounded
from hesstune.weak.votes import Votes

# No probability counts for less, so that one sure mistake is costly, not infinitely so.
LEAST = 1e-3
# Powers of the probabilities that are tried. None is above 1: a labeler is not made surer than it says.
POWERS = (0.0, *np.geomspace(0.05, 1.0, 14))
# Standard deviation, in logarithms, by which a labeler's power may leave the others': it is drawn to theirs
# where there are few examples. Folds, and rounds at most.
SPREAD, FOLDS, ROUNDS = 1.0, 5, 10

# Annotators whose numbers are in a sentence.
MOST_SHOWN = 8


@dataclass(frozen=True)
class CalibratedVotes:
    """What was made of the probabilities.

    Attributes:
        posterior: P(class | probabilities), (N, K).
        power: (m,) the power of each labeler's probabilities, fitted to all examples: 1 where it is as sure
            as it should be, 0 where it says nothing.
    """

    posterior: NDArray[np.float64]
    power: NDArray[np.float64]


def calibrated_votes(votes: Votes, checked: Checked | None = None, seed: int = 0) -> CalibratedVotes:
    """Return P(class | all labelers) ∝ Π_j p_j(class)^τ_j, each τ_j fitted on examples of other folds.

    Labeler j and the others are independent given the class, and classes are alike likely; so what all say
    of an example has likelihood Σ_c p_j(c)^τ_j·q_j(c), normalised, with q_j the posterior by the others. Each
    τ_j is where that is largest, in turn until they rest: agreement with others says how sure a labeler may
    be. Where a person has checked an example, the truth stands for the others. With one labeler, and
    nothing checked, there is nothing to be told by, and its probabilities stay as they are.

    Args:
        votes: Votes, soft ones as they are, hard ones as if certain; on every example at least one.
        checked: (rows, true classes) of examples a person has checked.
        seed: Of the folds.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 2, 900)
        >>> said = np.where(rng.random((900, 3)) < 0.75, y[:, None], 1 - y[:, None])
        >>> sure = np.where(np.eye(2)[said] == 1, 0.99, 0.01)  # right in 75 %, sure of 99 %
        >>> found = calibrated_votes(Votes.of_probabilities(sure))
        >>> bool((found.power < 0.4).all()), float(found.posterior.max(axis=1).mean().round(1))
        (True, 0.8)
    """
    soft = votes.onehot if votes.soft is None else votes.soft
    given = votes.given
    logs = np.log(np.maximum(soft, LEAST)) * given[:, :, None]
    logs -= logs.mean(axis=2, keepdims=True)
    truth = np.full(len(votes), -1)
    if checked is not None:
        truth[checked[0]] = checked[1]
    folds = min(FOLDS, len(votes))
    fold = np.random.default_rng([seed, 0xCA1]).permutation(len(votes)) % folds
    posterior = np.empty((len(votes), votes.k))
    for part in range(folds):
        rest = fold != part if folds > 1 else np.ones(len(votes), dtype=bool)
        power = _powers(logs[rest], given[rest], truth[rest])
        own = fold == part
        posterior[own] = softmax(np.einsum("nmk,m->nk", logs[own], power), axis=1)
    if checked is not None:
        posterior[checked[0]] = np.eye(votes.k)[checked[1]]
    return CalibratedVotes(posterior, _powers(logs, given, truth))


def weighed_counts(votes: Votes, checked: Checked | None = None, seed: int = 0) -> NDArray[np.float64]:
    """Return (N, K): each example's votes for each class, a vote counting by what its labeler knows of it.

    A vote weighs the calibrated log-odds of its class against the others, divided by the votes' mean weight:
    a posterior of all labelers in one would hide from who learns from it how many said so.

    Args:
        votes: See `calibrated_votes`.
        checked: See there.
        seed: See there.
    """
    power = calibrated_votes(votes, checked, seed).power
    logs = np.log(np.maximum(votes.onehot if votes.soft is None else votes.soft, LEAST))
    most = np.take_along_axis(logs, np.maximum(votes.table, 0)[:, :, None], axis=2)[:, :, 0]
    weight = power * (most - (logs.sum(axis=2) - most) / (votes.k - 1)) * votes.given
    weight = np.maximum(weight, 0) / max(float(weight[votes.given].mean()), 1e-12)
    return bounded(np.einsum("nm,nmk->nk", weight, votes.onehot))


def _powers(
    logs: NDArray[np.float64], given: NDArray[np.bool_], truth: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return (m,): the powers, one for all first, then each labeler's own."""
    known = truth >= 0
    m = given.shape[1]
    if not (known.any() or (given.sum(axis=1) > 1).any()):
        return np.ones(m)
    common = np.array([_score_all(logs, given, truth, np.full(m, power)) for power in POWERS[1:]])
    middle = float(POWERS[1:][int(common.argmax())])
    power = np.full(m, middle)
    for _ in range(ROUNDS):
        before = power.copy()
        for j in range(m):
            others = np.einsum("nmk,m->nk", logs, power) - power[j] * logs[:, j]
            with_votes = given[:, j] & (known | (given.sum(axis=1) > 1))
            if not with_votes.any():
                continue
            q = softmax(others[with_votes], axis=1)
            q[known[with_votes]] = np.eye(q.shape[1])[truth[with_votes][known[with_votes]]]
            scores = [_likelihood(tried * logs[with_votes, j], q) + _prior(tried, middle) for tried in POWERS]
            power[j] = POWERS[int(np.argmax(scores))]
        if np.array_equal(power, before):
            break
    return power


def _score_all(
    logs: NDArray[np.float64], given: NDArray[np.bool_], truth: NDArray[np.int64], power: NDArray[np.float64]
) -> float:
    total = np.einsum("nmk,m->nk", logs, power)
    known, found = truth >= 0, 0.0
    for j in range(given.shape[1]):
        with_votes = given[:, j] & (known | (given.sum(axis=1) > 1))
        q = softmax(total[with_votes] - power[j] * logs[with_votes, j], axis=1)
        q[known[with_votes]] = np.eye(q.shape[1])[truth[with_votes][known[with_votes]]]
        found += _likelihood(power[j] * logs[with_votes, j], q)
    return found


def _likelihood(logits: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    return float(np.log((softmax(logits, axis=1) * q).sum(axis=1)).sum())


def _prior(power: float, middle: float) -> float:
    away = (np.log(max(power, POWERS[1] / 2)) - np.log(middle)) / SPREAD
    return -0.5 * float(away) ** 2


class Calibrated(LabelModel):
    """Each annotator's probabilities to a power that the other annotators determine."""

    summary = "Scales each annotator's probabilities by how far the other annotators confirm them."
    record: ClassVar[dict[str, str]] = {
        "chosen": "calibrated",
        "power": "the power of each annotator's probabilities: 1 keeps them, 0 ignores them",
        "reasons": "why, in sentences",
    }

    @classmethod
    def fit(cls, votes: Votes, inputs: ModelInputs) -> Answer:
        """Return the product of the calibrated probabilities."""
        found = calibrated_votes(votes, inputs.checked, inputs.seed)
        powers = dict(zip(votes.names, np.round(found.power, 3).tolist(), strict=True))
        shown = ", ".join(f"{name} {power:.2g}" for name, power in list(powers.items())[:MOST_SHOWN])
        why = f"calibrated: the power of each annotator's probabilities that the others confirm ({shown})"
        if votes.m == 1 and inputs.checked is None:
            why = (
                f"calibrated: {votes.names[0]} alone gives probabilities, so that they cannot be calibrated "
                "and stay as they are; check some labels by hand (--checked-labels)"
            )
        return found.posterior, {"chosen": "calibrated", "power": powers, "reasons": [why]}


LABEL_MODEL = Calibrated
