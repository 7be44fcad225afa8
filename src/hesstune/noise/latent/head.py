"""A linear head from noisy labels: candidates, the choice among them, and the fit to all examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from hesstune.errors import DataError
from hesstune.noise.latent.channel import SHAPES, Observed, Shape
from hesstune.noise.latent.em import (
    FOLDS,
    LatentTruth,
    fit_from_several_starts,
    fold_rows,
    latent_truth,
    log_scores,
)
from hesstune.noise.probes import Linear, Reduction, SoftProbe
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
    """

    candidate: Candidate
    plain: Candidate
    scores: dict[str, float] = field(default_factory=dict)
    gain: tuple[float, float] = (0.0, 0.0)
    plain_noise_rate: float | None = None
    noisy_rival: tuple[Candidate, float, float] | None = None
    dropped: dict[str, float] = field(default_factory=dict)

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
    scores, behind = _scored(x, labels, candidates, held_out, seed)
    candidates = [one for one in candidates if one not in behind]
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
    return Choice(chosen, plain, means, gain, seen, rival, dropped)


def _scored(
    x: NDArray[np.float32], labels: Observed, candidates: Sequence[Candidate], held_out: int, seed: int
) -> tuple[dict[str, NDArray[np.float64]], dict[Candidate, float]]:
    """Return held-out scores by name of those scored on every fold, and how far the others fell behind."""
    parts = fold_rows(len(x), CHOICE_FOLDS, seed + 0x5CD)[:held_out]
    numbers = {"x": x, **labels.arrays()}

    def scored(judged: tuple[Candidate, int]) -> NDArray[np.float64]:
        one, at = judged

        def make() -> Tree:
            return {"scores": torch.from_numpy(_held_out(x, labels, parts[at], one, seed))}

        # Others ask for some of the same: a head and an estimate of its noise, another cell of a comparison.
        made = remembered(f"held-out scores of {one.name}, part {at}, seed {seed}", numbers, make)
        return np.asarray(made["scores"].numpy())

    with one_thread_each(len(candidates)) as each:
        first = dict(zip(candidates, each(scored, [(one, 0) for one in candidates]), strict=True))
        behind = _behind(first)
        asked = [(one, at) for one in candidates if one not in behind for at in range(1, held_out)]
        rest = dict(zip(asked, each(scored, asked), strict=True))
    scores = {
        one.name: np.concatenate([own, *(rest[one, at] for at in range(1, held_out))])
        for one, own in first.items()
        if one not in behind
    }
    return scores, behind


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


def _held_out(
    x: NDArray[np.float32], labels: Observed, rows: NDArray[np.int64], one: Candidate, seed: int
) -> NDArray[np.float64]:
    """Return the score of each held-out example."""
    rest = np.setdiff1d(np.arange(len(x)), rows)
    kept = labels.take(rest)
    found = latent_truth(x[rest], kept, strength=one.strength, shape=one.shape, seed=seed)
    fitted = SoftProbe(x[rest], one.strength, kept.weight).fit(found.targets)
    given = labels.given[rows]
    likelihood = found.channel.likelihood(given)
    return log_scores(fitted.logits(x[rows]), found.temperature, likelihood, given.sum(axis=1))


# Candidates are chosen on so many examples at least, and at most: more change the choice little.
MIN_EXAMPLES, MAX_EXAMPLES = 40, 6000
# Standard errors by which a full matrix may predict labels of two classes worse and is still fitted, if a
# plain probe estimates a noise rate between 0 and MIN_RATE: human errors depend on more than the class.
# With more classes it is fitted in any case.
OBJECTION_STDERRS = 1.5


@dataclass(frozen=True)
class RobustHead:
    """A linear classifier of features, and the posteriors and noise matrix of the labels.

    Attributes:
        linear: Weight (D, K) and bias (K,) on the features themselves, at the fitted temperature.
        truth: The chosen candidate's posteriors and noise matrix.
        choice: The candidates, their scores and the chosen one.
        reduced: (N, C) features that `truth` was fitted to.
    """

    linear: Linear
    truth: LatentTruth
    choice: Choice
    reduced: NDArray[np.float32]


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
    latent-truth EM, with a symmetric or a full noise matrix, each at several penalties. `choose` picks by the
    likelihood of held-out noisy labels, and the chosen one is fitted to all examples.

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
    reduction = Reduction.of(features)
    x = reduction.apply(features)
    if find_errors:
        candidates = [one for one in candidates if one.shape in ("none", "full")]
    choice = _choice(x, labels, candidates, held_out, seed)
    if find_errors:
        choice = _for_label_errors(x, labels, choice, seed)
    one, folds = choice.candidate, min(FOLDS, len(x))
    with one_thread():
        if patient and one.shape == "full" and len(x) <= MAX_EXAMPLES:
            truth = fit_from_several_starts(x, labels, strength=one.strength, folds=folds, seed=seed)
        else:
            truth = latent_truth(x, labels, strength=one.strength, shape=one.shape, folds=folds, seed=seed)
        fitted = SoftProbe(x, one.strength, labels.weight).fit(truth.targets)
    weight, bias = reduction.unfold(fitted.weight * truth.temperature, fitted.bias * truth.temperature)
    return RobustHead(Linear(weight, bias), truth, choice, x)


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
