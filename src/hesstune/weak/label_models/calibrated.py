"""Annotators' probabilities, calibrated by one another: language models are overconfident."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from hesstune.noise.latent.channel import Checked
from hesstune.weak.label_models import Answer, LabelModel, ModelInputs
from hesstune.weak.vote_models import bounded
from hesstune.weak.votes import Votes

# The least probability, so that one certain mistake has a finite cost.
LEAST = 1e-3
# Powers of the probabilities that are tried. None is above 1: probabilities are not made more certain.
POWERS = (0.0, *np.geomspace(0.05, 1.0, 14))
# Standard deviation, in logarithms, of an annotator's power around the others': with few examples it is drawn
# to theirs. Folds, and the most rounds.
SPREAD, FOLDS, ROUNDS = 1.0, 5, 10
# Annotators with numbers in a sentence.
MOST_SHOWN = 8


def calibrated_votes(
    votes: Votes, checked: Checked | None = None, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return P(class | all annotators) ∝ Π_j p_j(class)^τ_j, τ_j fitted on other folds, and τ, (m,).

    Annotator j and the others are independent given the class, and classes are equally probable. So the
    answers on an example have the likelihood Σ_c p_j(c)^τ_j·q_j(c), normalised, with q_j the posterior by the
    others. Each τ_j maximises it, in turn until convergence: agreement with others determines how certain an
    annotator may be. The true class of a human-checked example stands for the others. With one annotator and
    no checked examples the probabilities stay as they are (τ = 1). Hard votes count as if certain.
    """
    n, k, given = len(votes), votes.k, votes.given
    logs = np.log(np.maximum(votes.onehot if votes.soft is None else votes.soft, LEAST)) * given[:, :, None]
    logs -= logs.mean(axis=2, keepdims=True)
    truth = np.full(n, -1)
    if checked is not None:
        truth[checked[0]] = checked[1]
    folds = min(FOLDS, n)
    fold = np.random.default_rng([seed, 0xCA1]).permutation(n) % folds
    posterior = np.empty((n, k))
    for part in range(folds):
        rest, own = fold != part if folds > 1 else np.ones(n, dtype=bool), fold == part
        power = _powers(logs[rest], given[rest], truth[rest])
        posterior[own] = softmax(np.einsum("nmk,m->nk", logs[own], power), axis=1)
    if checked is not None:
        posterior[checked[0]] = np.eye(k)[checked[1]]
    return posterior, _powers(logs, given, truth)


def weighed_counts(votes: Votes, checked: Checked | None = None, seed: int = 0) -> NDArray[np.float64]:
    """Return (N, K): each example's votes for each class, weighed by their calibrated probabilities.

    A vote weighs the calibrated log-odds of its class against the others, divided by the votes' mean weight.
    Unlike a posterior of all annotators, counts keep how many annotators agree.
    """
    power = calibrated_votes(votes, checked, seed)[1]
    logs = np.log(np.maximum(votes.onehot if votes.soft is None else votes.soft, LEAST))
    most = np.take_along_axis(logs, np.maximum(votes.table, 0)[:, :, None], axis=2)[:, :, 0]
    weight = power * (most - (logs.sum(axis=2) - most) / (votes.k - 1)) * votes.given
    weight = np.maximum(weight, 0) / max(float(weight[votes.given].mean()), 1e-12)
    return bounded(np.einsum("nm,nmk->nk", weight, votes.onehot))


def _powers(
    logs: NDArray[np.float64], given: NDArray[np.bool_], truth: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the powers, (m,): one for all first, then each annotator's own."""
    m, known = given.shape[1], truth >= 0
    # Examples with other votes, or a known class, to calibrate by.
    used = given & (known | (given.sum(axis=1) > 1))[:, None]
    if not used.any():
        return np.ones(m)

    def by_others(j: int, power: NDArray[np.float64]) -> NDArray[np.float64]:
        total = np.einsum("nmk,m->nk", logs, power)
        rows = used[:, j]
        q = softmax((total - power[j] * logs[:, j])[rows], axis=1)
        q[known[rows]] = np.eye(q.shape[1])[truth[rows & known]]
        return np.asarray(q)

    def likelihood(j: int, power: float, q: NDArray[np.float64]) -> float:
        return float(np.log((softmax(power * logs[used[:, j], j], axis=1) * q).sum(axis=1)).sum())

    def log_prior(power: float) -> float:
        away = (np.log(max(power, POWERS[1] / 2)) - np.log(middle)) / SPREAD
        return -0.5 * float(away) ** 2

    common = [
        sum(likelihood(j, shared, by_others(j, np.full(m, shared))) for j in range(m))
        for shared in POWERS[1:]
    ]
    middle = float(POWERS[1:][int(np.argmax(common))])
    power = np.full(m, middle)
    for _ in range(ROUNDS):
        before = power.copy()
        for j in range(m):
            q = by_others(j, power)
            scores = [likelihood(j, tried, q) + log_prior(tried) for tried in POWERS]
            power[j] = POWERS[int(np.argmax(scores))]
        if np.array_equal(power, before):
            break
    return power


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
        posterior, power = calibrated_votes(votes, inputs.checked, inputs.seed)
        powers = dict(zip(votes.names, np.round(power, 3).tolist(), strict=True))
        shown = ", ".join(f"{name} {power:.2g}" for name, power in list(powers.items())[:MOST_SHOWN])
        why = f"calibrated: the power of each annotator's probabilities that the others confirm ({shown})"
        if votes.m == 1 and inputs.checked is None:
            why = (
                f"calibrated: {votes.names[0]} alone gives probabilities, so that they cannot be calibrated "
                "and stay as they are; check some labels by hand (--checked-labels)"
            )
        return posterior, {"chosen": "calibrated", "power": powers, "reasons": [why]}


LABEL_MODEL = Calibrated
