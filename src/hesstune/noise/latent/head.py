"""A linear head from noisy labels: candidates, the choice among them, and the fit to all examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax, softmax

from hesstune.errors import DataError
from hesstune.noise.latent.channel import SHAPES, Observed, Shape
from hesstune.noise.latent.copies import merge_copies
from hesstune.noise.latent.discriminant import SHRINKAGE, Discriminant, fit_discriminants
from hesstune.noise.latent.em import (
    FOLDS,
    LatentTruth,
    fit_from_several_starts,
    fold_rows,
    latent_truth,
    log_scores,
)
from hesstune.noise.latent.stacking import stacked_weights
from hesstune.noise.probes import Linear, Reduction, SoftProbes
from hesstune.runtime.device import one_thread, one_thread_each
from hesstune.selection import first_within_errors, paired_gain
from hesstune.storage.remembered import remembered
from hesstune.storage.tensors import Tree

# Standard errors by which a richer shape of F must do better.
MARGIN_STDERRS = 0.5
# A noise rate: if the likelihood does not decide (MARGIN_STDERRS), labels are assumed correct if the best
# plain probe estimates less. Chosen on development tasks of heads and on MRPC's true labels.
MIN_RATE = 0.1
# Folds, and how many of them are held out: EM's own folds leak, so that the choice needs other examples.
CHOICE_FOLDS, HELD_OUT = 5, 3
# Standard errors behind the best of its kind on the first held-out part at which a candidate is dropped, and
# the least number of held-out examples for that.
PRUNE_AFTER_STDERRS, MIN_HELD_OUT = 3.0, 50
# Candidates whose heads are averaged: each is fitted to all examples.
POOL_CANDIDATES = 4


@dataclass(frozen=True)
class Candidate:
    """A model of the labels: the shape of F, and the probes' penalty.

    Attributes:
        shape: Of F.
        strength: Inverse of the penalty.
    """

    shape: Shape
    strength: float

    @property
    def name(self) -> str:
        """Its name, such as `symmetric 0.1`."""
        return f"{self.shape} {self.strength:g}"


Kind = Literal["softmax", "discriminant", "shrunken discriminant"]
"""A head: softmax regression on a candidate's targets, or a linear discriminant of its posteriors."""

# The share of the pooled covariance that a multiple of the identity replaces. At 0.9 little more than the
# class means counts: of few examples, or very noisy ones, not much more can be estimated.
SHRINKAGES: dict[Kind, float] = {"discriminant": SHRINKAGE, "shrunken discriminant": 0.9}
# What each head of a candidate counts a priori, relative to one another. Of 1 and 4 for the last one on
# development tasks of heads with 200 to 900 examples.
PRIOR_SHARES: dict[Kind, float] = {"softmax": 1.0, "discriminant": 1.0, "shrunken discriminant": 4.0}


@dataclass(frozen=True)
class Member:
    """A head in a pool.

    Attributes:
        candidate: The model of the labels.
        kind: Of head.
        share: Its weight in the mean of their logits.
    """

    candidate: Candidate
    kind: Kind
    share: float

    @property
    def name(self) -> str:
        """Its name, such as `symmetric 0.1 discriminant`."""
        return f"{self.candidate.name} {self.kind}"


# Of the budget `default`, the simplest first.
CANDIDATES = (
    *(Candidate("none", c) for c in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)),
    *(Candidate("symmetric", c) for c in (0.01, 0.03, 0.1)),
    *(Candidate("full", c) for c in (0.03, 0.1, 0.3)),
)
# Of the budgets `fast` and `thorough`.
FAST_CANDIDATES = (
    *(Candidate("none", c) for c in (0.003, 0.03)),
    Candidate("symmetric", 0.1),
    Candidate("full", 0.1),
)
THOROUGH_CANDIDATES = (
    *CANDIDATES,
    Candidate("none", 1.0),
    Candidate("symmetric", 0.3),
    Candidate("full", 1.0),
)
# If the noise matrix is known.
GIVEN_MATRIX = (
    *(Candidate("none", c) for c in (0.003, 0.03)),
    *(Candidate("given", c) for c in (0.03, 0.1, 0.3)),
)


@dataclass(frozen=True)
class Choice:
    """The result of a choice among candidates.

    Attributes:
        candidate: The candidate chosen.
        plain: The best candidate that assumes the labels are correct.
        scores: {name: mean log-likelihood of a held-out given label}, of those scored on every fold.
        gain: The chosen one's mean gain over `plain`, and its standard error.
        plain_noise_rate: The noise rate that a plain probe estimates, if `plain` was ruled out for it.
        noisy_rival: If `plain` was chosen, the best candidate with a noise model, its mean gain over `plain`,
            and the standard error of that gain; else None.
        dropped: {name: mean log-likelihood below the best of its kind} of those with one part held out.
        pool: The heads of the classifier, by `pooled`.
    """

    candidate: Candidate
    plain: Candidate
    scores: dict[str, float] = field(default_factory=dict)
    gain: tuple[float, float] = (0.0, 0.0)
    plain_noise_rate: float | None = None
    noisy_rival: tuple[Candidate, float, float] | None = None
    dropped: dict[str, float] = field(default_factory=dict)
    pool: tuple[Member, ...] = ()

    @property
    def tried(self) -> int:
        """How many candidates there were."""
        return len(self.scores) + len(self.dropped)

    def details(self) -> dict[str, Any]:
        """Return a JSON-ready record."""
        return {
            "chosen": self.candidate.name,
            "plain": self.plain.name,
            "scores": self.scores,
            "dropped": self.dropped,
            "gain_over_plain": {"mean": self.gain[0], "stderr": self.gain[1]},
            **({} if self.plain_noise_rate is None else {"plain_noise_rate": self.plain_noise_rate}),
            **({"pool": {one.name: round(one.share, 4) for one in self.pool}} if self.pool else {}),
        }


def choose(
    x: NDArray[np.float32],
    labels: Observed,
    *,
    candidates: Sequence[Candidate] = CANDIDATES,
    held_out: int = HELD_OUT,
    seed: int = 0,
) -> Choice:
    """Choose the candidate with the largest held-out likelihood of the given labels.

    Each candidate is fitted, EM included, on the training part of 5-fold cross-validation. The score of a
    held-out example is ln Σ_c p_c(x) P(given | c). A candidate that is PRUNE_AFTER_STDERRS behind on the
    first part is dropped. The choice is the best candidate of the simplest shape of F within MARGIN_STDERRS
    standard errors of the best of all. If that shape is `none` and the best plain probe estimates a noise
    rate of MIN_RATE or more, the best candidate with a noise model replaces it, unless it is worse by more
    than MARGIN_STDERRS standard errors.

    Args:
        x: (N, C) reduced features.
        labels: What is known of them.
        candidates: At least one plain one among them.
        held_out: How many of the CHOICE_FOLDS folds are held out in turn.
        seed: Of the folds.
    """
    tried, behind = _tried(x, labels, candidates, held_out, seed)
    candidates = [one for one in candidates if one not in behind]
    scores = {one.name: tried[one].scores("softmax") for one in candidates}
    means = {name: float(found.mean()) for name, found in scores.items()}
    plain = max((c for c in candidates if c.shape == "none"), key=lambda c: means[c.name])
    chosen, seen, rival = _simplest(candidates, scores), None, None
    others = [c for c in candidates if c.shape != "none"]
    if chosen.shape == "none" and others:
        other = _simplest(others, scores)
        mean, error = paired_gain(scores[other.name], scores[plain.name])
        rival = (other, mean, error)
        if mean >= -MARGIN_STDERRS * error:
            rate = latent_truth(x, labels, strength=plain.strength, shape="none", seed=seed).channel.rate
            chosen, seen = (other, rate) if rate >= MIN_RATE else (chosen, None)
    gain = paired_gain(scores[chosen.name], scores[plain.name])
    dropped = {one.name: by for one, by in behind.items()}
    return Choice(chosen, plain, means, gain, seen, rival, dropped, pooled(tried))


def pooled(tried: Mapping[Candidate, HeldOut]) -> tuple[Member, ...]:
    """Weigh heads such that their mean log-probabilities predict given labels best.

    The noise matrix is that of the head with the largest mean log-likelihood of the held-out given labels.
    Under it `stacked_weights` weighs the heads of all candidates, and again those of the POOL_CANDIDATES
    candidates of the largest weight. Kinds of heads err differently, and so do penalties; the mean is one
    linear head again.

    Args:
        tried: What the heads of each candidate predict for held-out examples.
    """
    heads = [(one, kind) for one in tried for kind in get_args(Kind)]
    channel = tried[max(heads, key=lambda head: float(tried[head[0]].scores(head[1]).mean()))[0]]

    def weighed(some: Sequence[tuple[Candidate, Kind]]) -> tuple[Member, ...]:
        prior = np.array([PRIOR_SHARES[kind] for _, kind in some])
        logs = [tried[one].logs[kind] for one, kind in some]
        shares = stacked_weights(logs, channel.likelihood, channel.units, prior / prior.sum())
        return tuple(Member(*head, float(share)) for head, share in zip(some, shares, strict=True))

    first = weighed(heads)
    if len(tried) <= POOL_CANDIDATES:
        return first
    whole = {one: sum(each.share for each in first if each.candidate == one) for one in tried}
    kept = sorted(whole, key=lambda one: -whole[one])[:POOL_CANDIDATES]
    return weighed([head for head in heads if head[0] in kept])


@dataclass(frozen=True)
class HeldOut:
    """What a candidate's heads predict for examples that it was not fitted to.

    Attributes:
        logs: {kind: log-probabilities of the true class, (n, K)}.
        likelihood: P(given | class) under its noise matrix, (n, K).
        units: (n,) how many labels were given.
    """

    logs: dict[Kind, NDArray[np.float64]]
    likelihood: NDArray[np.float64]
    units: NDArray[np.float64]

    @classmethod
    def joined(cls, parts: Sequence[HeldOut]) -> HeldOut:
        """Return several parts as one."""
        logs = {kind: np.concatenate([one.logs[kind] for one in parts]) for kind in parts[0].logs}
        likelihood = np.concatenate([one.likelihood for one in parts])
        return cls(logs, likelihood, np.concatenate([one.units for one in parts]))

    def scores(self, kind: Kind) -> NDArray[np.float64]:
        """Return ln P(given label | features) by one of its heads, (n,)."""
        return self.scores_of(self.logs[kind])

    def scores_of(self, logs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return ln P(given label | features), (n,), of other log-probabilities under its noise matrix."""
        return log_scores(logs, 1.0, self.likelihood, self.units)


def _tried(
    x: NDArray[np.float32], labels: Observed, candidates: Sequence[Candidate], held_out: int, seed: int
) -> tuple[dict[Candidate, HeldOut], dict[Candidate, float]]:
    """Return what candidates predict for all held-out folds, and how far the others fell behind."""
    parts = fold_rows(len(x), CHOICE_FOLDS, seed + 0x5CD)[:held_out]
    numbers = {"x": x, **labels.arrays()}

    def predicted(asked: tuple[Candidate, int]) -> HeldOut:
        one, at = asked

        def make() -> Tree:
            found = _held_out(x, labels, parts[at], one, seed)
            arrays = {"likelihood": found.likelihood, **{str(kind): own for kind, own in found.logs.items()}}
            return {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()}

        # Others ask for some of the same: a head and an estimate of its noise, another cell of a comparison.
        made = remembered(f"held-out predictions of {one.name}, part {at}, seed {seed}", numbers, make)
        logs: dict[Kind, NDArray[np.float64]] = {kind: _double(made[kind]) for kind in get_args(Kind)}
        return HeldOut(logs, _double(made["likelihood"]), labels.given[parts[at]].sum(axis=1))

    with one_thread_each(len(candidates)) as each:
        first = dict(zip(candidates, each(predicted, [(one, 0) for one in candidates]), strict=True))
        behind = _behind({one: found.scores("softmax") for one, found in first.items()})
        kept = [one for one in candidates if one not in behind]
        asked = [(one, at) for one in kept for at in range(1, held_out)]
        others = dict(zip(asked, each(predicted, asked), strict=True))
    joined = {
        one: HeldOut.joined([first[one], *(others[one, at] for at in range(1, held_out))]) for one in kept
    }
    return joined, behind


def _double(tensor: torch.Tensor) -> NDArray[np.float64]:
    return np.asarray(tensor.double().numpy())


def _behind(scores: dict[Candidate, NDArray[np.float64]]) -> dict[Candidate, float]:
    """Return how far candidates are behind the best with a noise model, or without, if that is too far.

    With few held-out examples none is dropped.
    """
    found = {}
    for one, own in scores.items():
        rivals = [other for other in scores if (other.shape == "none") == (one.shape == "none")]
        best = max(rivals, key=lambda other: scores[other].mean())
        mean, error = paired_gain(own, scores[best])
        if len(own) >= MIN_HELD_OUT and mean < -max(PRUNE_AFTER_STDERRS * error, 1e-6):  # less is rounding
            found[one] = mean
    return found


def _simplest(candidates: Sequence[Candidate], scores: dict[str, NDArray[np.float64]]) -> Candidate:
    """Return the best of the simplest shape within MARGIN_STDERRS standard errors of the best of all."""
    by_shape = ([c for c in candidates if c.shape == shape] for shape in SHAPES)
    best = [max(own, key=lambda c: scores[c.name].mean()) for own in by_shape if own]
    return best[first_within_errors([scores[one.name] for one in best], MARGIN_STDERRS)]


@dataclass(frozen=True)
class Heads:
    """The heads of one candidate, on reduced features, at the fitted temperatures."""

    truth: LatentTruth
    softmax: Linear
    discriminants: dict[Kind, Discriminant]

    @classmethod
    def fit(
        cls, x: NDArray[np.float32], labels: Observed, one: Candidate, truth: LatentTruth, seed: int
    ) -> Heads:
        """Fit the heads to reduced features, (N, C), under a fitted truth."""
        (fitted,) = SoftProbes(x, one.strength, labels.weight).fit(truth.targets, start=truth.probe)
        scaled = Linear(fitted.weight * truth.temperature, fitted.bias * truth.temperature)
        others = fit_discriminants(
            x, truth.posterior, tuple(SHRINKAGES.values()), weight=labels.weight, seed=seed
        )
        likelihood = truth.channel.likelihood(labels.given)
        made = (other.scaled(labels, likelihood) for other in others)
        return cls(truth, scaled, dict(zip(SHRINKAGES, made, strict=True)))

    def linear(self, kind: Kind) -> Linear:
        """Return a head, fitted to all examples."""
        return self.softmax if kind == "softmax" else self.discriminants[kind].linear

    def logs(self, kind: Kind) -> NDArray[np.float64]:
        """Return ln P(true class | features), (N, K), by a head that did not see the example."""
        if kind == "softmax":
            return np.log(np.maximum(self.truth.probabilities, 1e-300))
        return np.asarray(log_softmax(self.discriminants[kind].logits, axis=1))


def _held_out(
    x: NDArray[np.float32], labels: Observed, rows: NDArray[np.int64], one: Candidate, seed: int
) -> HeldOut:
    """Return what a candidate's heads predict for some rows, fitted to the others."""
    others = np.setdiff1d(np.arange(len(x)), rows)
    kept = labels.take(others)
    truth = latent_truth(x[others], kept, strength=one.strength, shape=one.shape, seed=seed)
    heads, given = Heads.fit(x[others], kept, one, truth, seed), labels.given[rows]
    logs: dict[Kind, NDArray[np.float64]] = {
        kind: np.asarray(log_softmax(heads.linear(kind).logits(x[rows]), axis=1)) for kind in get_args(Kind)
    }
    return HeldOut(logs, truth.channel.likelihood(given), given.sum(axis=1))


# Candidates are chosen on so many examples at least, and at most: more change the choice little.
MIN_EXAMPLES, MAX_EXAMPLES = 40, 6000
# EM is fitted to so many at most; more change F and the probe little.
EM_EXAMPLES = 50_000
# Standard errors by which a full matrix may predict labels of two classes worse and is still fitted, if a
# plain probe estimates a noise rate between 0 and MIN_RATE: human errors depend on more than the class.
# With more classes it is fitted in any case.
OBJECTION_STDERRS = 1.5


@dataclass(frozen=True)
class RobustHead:
    """A linear classifier of features, and the posteriors and noise matrix of the labels.

    Attributes:
        linear: Weight (D, K) and bias (K,) on the features themselves: the mean of the pool's heads, each at
            its fitted temperature.
        truth: The chosen candidate's noise matrix, and posteriors under it by the pool.
        choice: The candidates, their scores and the chosen one.
        reduced: (N, C) features that `truth` was fitted to; copies have the mean of their group.
    """

    linear: Linear
    truth: LatentTruth
    choice: Choice
    reduced: NDArray[np.float32]

    def for_examples(self, row: NDArray[np.int64]) -> RobustHead:
        """Return the same with the posteriors of examples whose groups are these rows, (N,)."""
        one = self.truth
        truth = replace(
            one,
            posterior=one.posterior[row],
            probabilities=one.probabilities[row],
            targets=one.targets[row],
        )
        return replace(self, truth=truth, reduced=self.reduced[row])


def robust_head(
    features: ArrayLike,
    labels: Observed,
    *,
    candidates: Sequence[Candidate] = CANDIDATES,
    held_out: int = HELD_OUT,
    find_errors: bool = False,
    patient: bool = False,
    seed: int = 0,
) -> RobustHead:
    """Fit a linear classifier to labels that may be wrong, without noise information.

    Candidates are penalised cross-entropy on the labels as they are, and the same on the posteriors of
    latent-truth EM, with a symmetric or a full noise matrix, each at several penalties, each with a softmax
    regression and two linear discriminants. `choose` picks a noise model and `pooled` weighs the heads by
    the likelihood of held-out noisy labels; these are fitted to all examples. Copies of an example count
    as one (`hesstune.noise.latent.copies`).

    Args:
        features: (N, D) of a frozen network.
        labels: What is known of the examples' classes.
        candidates: One is chosen; those of the shape `given` use the given matrix.
        held_out: How many folds each candidate is scored on.
        find_errors: Whether label errors are looked for. Labels are then assumed correct only if a plain
            probe estimates no noise, or, with two classes, less than MIN_RATE with a likelihood that
            contradicts it (OBJECTION_STDERRS). Otherwise a full matrix is fitted.
        patient: Whether a full matrix is fitted from several starts (`fit_from_several_starts`), with at most
            MAX_EXAMPLES examples.
        seed: Of folds.

    Raises:
        DataError: If features are not finite, or do not match the labels.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = np.arange(400) % 2
        >>> x = np.eye(2)[y] + 0.2 * rng.normal(size=(400, 2))
        >>> noisy = np.where(rng.random(400) < 0.3, 1 - y, y)
        >>> found = robust_head(x, Observed.of(noisy, 2))
        >>> bool((found.linear.logits(x).argmax(axis=1) == y).mean() > 0.97)
        True
    """
    if len(labels) != len(np.asarray(features)):
        raise DataError(f"{len(np.asarray(features))} rows of features do not match {len(labels)} labels")
    if len(labels) < 2:
        raise DataError(f"a head cannot be fitted to {len(labels)} example; give two at least")
    merged = merge_copies(features, labels)
    if len(merged.labels) < 2:
        raise DataError(f"all {len(labels)} examples are copies of one; a head needs two different ones")
    labels, reduction = merged.labels, Reduction.of(merged.features)
    x = reduction.apply(merged.features)
    if find_errors:
        candidates = [one for one in candidates if one.shape in ("none", "full")]
    choice = _choice(x, labels, candidates, held_out, seed)
    if find_errors:
        choice = replace(_for_label_errors(x, labels, choice, seed), pool=())
    one = choice.candidate
    pool = choice.pool or (Member(one, "softmax", 1.0),)
    with one_thread():
        heads = {
            each: Heads.fit(x, labels, each, fit_truth(x, labels, each, patient, seed), seed)
            for each in dict.fromkeys([one, *(member.candidate for member in pool)])
        }
    linear, truth = _combined(pool, heads, heads[one].truth, labels)
    weight, bias = reduction.unfold(linear.weight, linear.bias)
    return RobustHead(Linear(weight, bias), truth, choice, x).for_examples(merged.row)


def fit_truth(
    x: NDArray[np.float32], labels: Observed, one: Candidate, patient: bool = False, seed: int = 0
) -> LatentTruth:
    """Fit a candidate's noise matrix and posteriors by EM, to EM_EXAMPLES examples if there are more.

    The posteriors of the others are those of the probe of these, which did not see them.

    Args:
        x: (N, C) reduced features.
        labels: What is known of them.
        one: The candidate.
        patient: As of `robust_head`.
        seed: Of folds, and of the examples that EM is fitted to.
    """
    rows = np.arange(len(x))
    if len(x) > EM_EXAMPLES:
        rows = np.sort(np.random.default_rng([seed, 0xE4]).permutation(len(x))[:EM_EXAMPLES])
    own = labels if len(rows) == len(x) else labels.take(rows)
    part, folds = x if own is labels else x[rows], min(FOLDS, len(rows))
    if patient and one.shape == "full" and len(x) <= MAX_EXAMPLES:
        return fit_from_several_starts(part, own, strength=one.strength, folds=folds, seed=seed)
    truth = latent_truth(part, own, strength=one.strength, shape=one.shape, folds=folds, seed=seed)
    if own is labels:
        return truth
    (fitted,) = SoftProbes(part, one.strength, own.weight).fit(truth.targets, start=truth.probe)
    probabilities = softmax(truth.temperature * fitted.logits(x), axis=1)
    probabilities[rows] = truth.probabilities
    return truth.extended(labels, probabilities)


def _combined(
    pool: Sequence[Member], heads: Mapping[Candidate, Heads], truth: LatentTruth, labels: Observed
) -> tuple[Linear, LatentTruth]:
    """Return the mean of a pool's heads, and a truth with the posteriors that follow out of sample."""
    linear, logs = Linear(np.zeros(()), np.zeros(())), np.zeros(())
    for member in pool:
        own, share = heads[member.candidate], member.share
        head = own.linear(member.kind)
        linear = Linear(linear.weight + share * head.weight, linear.bias + share * head.bias)
        logs = logs + share * own.logs(member.kind)
    return linear, truth.extended(labels, softmax(logs, axis=1))


def _for_label_errors(x: NDArray[np.float32], labels: Observed, choice: Choice, seed: int) -> Choice:
    """Return the best full candidate in place of a plain one that estimates noise."""
    if choice.candidate.shape == "full" or choice.noisy_rival is None:
        return choice
    other, gain, error = choice.noisy_rival
    plain = latent_truth(x, labels, strength=choice.candidate.strength, shape="none", seed=seed)
    seen, objects = plain.channel.rate, labels.k == 2 and gain < -OBJECTION_STDERRS * error
    return replace(choice, candidate=other) if seen >= MIN_RATE or (seen > 0 and not objects) else choice


def _choice(
    x: NDArray[np.float32], labels: Observed, candidates: Sequence[Candidate], held_out: int, seed: int
) -> Choice:
    """Choose on all examples, or on MAX_EXAMPLES of them; the first candidate if there are too few."""
    if len(x) < MIN_EXAMPLES or len(candidates) == 1:
        return Choice(candidates[0], candidates[0])
    if len(x) > MAX_EXAMPLES:
        rows = np.sort(np.random.default_rng([seed, 0xC01]).permutation(len(x))[:MAX_EXAMPLES])
        x, labels = x[rows], labels.take(rows)
    return choose(x, labels, candidates=candidates, held_out=held_out, seed=seed)
