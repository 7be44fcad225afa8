"""A linear head from noisy labels: candidates, the choice among them, and the fit to all examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from hesstune.errors import DataError
from hesstune.noise.latent.choose import CANDIDATES, HELD_OUT, SEEN, Candidate, Choice, choose, refit
from hesstune.noise.latent.em import FOLDS, LatentTruth, latent_truth, likeliest_truth
from hesstune.noise.latent.observed import Observed
from hesstune.noise.latent.reduction import Reduction
from hesstune.noise.latent.soft_probe import Linear
from hesstune.runtime.device import one_thread


# Choosing among candidates takes so many examples at least, and at most MOST: more say nothing new.
FEWEST, MOST = 40, 6000
# Standard errors by which a full matrix may predict labels worse and is still fitted, if a plain probe
# estimates a noise rate between 0 and SEEN: human errors depend on more than the class.
OBJECTION = 1.5


@dataclass(frozen=True)
class RobustHead:
    """A linear classifier of features, and what was found about the labels on the way.

    Attributes:
        linear: Weight (D, K) and bias (K,) on the features themselves, at the temperature that was found.
        truth: The chosen candidate's posteriors and noise matrix.
        choice: What was tried, each score, what was chosen.
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
    latent-truth EM, with a symmetric or a full noise matrix, each at several penalties; `choose` picks by the
    likelihood of noisy labels not seen, and the pick is fitted to all examples.

    Args:
        features: (N, D) of a frozen network.
        labels: What is known of the examples' classes.
        candidates: Of which one is chosen; those of the shape `told` use the given matrix.
        held_out: How many fifths each candidate is judged on.
        find_errors: Whether label errors are looked for. Labels are then assumed correct only if a plain
            probe estimates no noise, or less than SEEN with a likelihood that contradicts it (OBJECTION).
            Otherwise a full matrix is fitted.
        patient: Whether a full matrix is fitted from several starts (`fit_from_several_starts`), with at most
            MOST examples.
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
        if patient and one.shape == "full" and len(x) <= MOST:
            truth = fit_from_several_starts(x, labels, strength=one.strength, folds=folds, seed=seed)
        else:
            truth = latent_truth(x, labels, strength=one.strength, shape=one.shape, folds=folds, seed=seed)
        fitted = refit(x, truth, one.strength, labels.weight)
    weight, bias = reduction.unfold(fitted.weight * truth.temperature, fitted.bias * truth.temperature)
    return RobustHead(Linear(weight, bias), truth, choice, x)


def _for_label_errors(x: NDArray[np.float32], labels: Observed, choice: Choice, seed: int) -> Choice:
    """Return the best full candidate in place of a plain one through which noise is seen."""
    if choice.candidate.shape == "full" or choice.noisy_rival is None:
        return choice
    other, gain, error = choice.noisy_rival
    plain = latent_truth(x, labels, strength=choice.candidate.strength, shape="none", seed=seed)
    seen, objects = plain.channel.rate, gain < -OBJECTION * error
    return replace(choice, candidate=other) if seen >= SEEN or (seen > 0 and not objects) else choice


def _choice(
    x: NDArray[np.float32], labels: Observed, candidates: Sequence[Candidate], held_out: int, seed: int
) -> Choice:
    """Choose on all examples, or on MOST of them; the plainest candidate where there are too few."""
    if len(x) < FEWEST or len(candidates) == 1:
        return Choice(candidates[0], candidates[0])
    if len(x) > MOST:
        rows = np.sort(np.random.default_rng([seed, 0xC01]).permutation(len(x))[:MOST])
        x, labels = x[rows], labels.take(rows)
    return choose(x, labels, candidates=candidates, held_out=held_out, seed=seed)
