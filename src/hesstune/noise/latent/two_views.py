"""The mean posterior of two classifiers of each label, and an interval for the share of wrong labels."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit, softmax
from scipy.stats import beta, rankdata

from hesstune.noise.latent.channel import Observed
from hesstune.noise.latent.discriminant import fit_discriminant
from hesstune.noise.latent.em import FOLDS, LatentTruth
from hesstune.noise.matrix import rate_matrix
from hesstune.runtime.device import one_thread

# The error of an estimated noise rate as a share of its distance to the rate at which a plain probe disagrees
# with the labels. On the development tasks of benchmarks/field/label_errors.py the largest of 30 is 0.53.
GAP_SHARE = 0.5
LEVEL = 0.9
# The prior of the noise rate: equivalent to so many checked labels, a share of them wrong. An unchecked label
# counts as a part of a checked one.
PRIOR_RATE, PRIOR_LABELS, PER_CHECKED = 0.1, 20.0, 8.0
# Of few examples EM estimates too large a rate, by up to this share of it, times the prior's part of all
# labels. Chosen on 96 sets of 80 to 120 texts with 0 to 20 % wrong labels: without it, 90 % intervals held
# 80 % of the rates.
FEW_SHARE = 0.8
# Log of the factor between the odds of a wrong label of the least and of the most certain example, if wrong
# labels are of the classes that look most alike. Of 0, 0.5, 1, 1.5, 2 and 3 it has the least mean
# calibration error on the development tasks of benchmarks/field/label_errors.py.
AMBIGUITY = 1.0


@one_thread()
def mean_posterior(
    x: NDArray[np.float32], labels: Observed, truth: LatentTruth, folds: int = FOLDS, seed: int = 0
) -> NDArray[np.float64]:
    """Return P(true class | features, given label), (N, K), as the mean of two classifiers' posteriors.

    The first is the softmax regression of EM. The second is a linear discriminant that is fitted by
    cross-fitting to EM's posteriors and scaled by the temperature of the largest likelihood of the given
    labels. Both use EM's noise matrix F. If EM finds no noise, both use symmetric noise of the rate
    0.5 / (N + 1), the Bayes estimate under Jeffreys' prior for no wrong label in N.

    F is the same for all inputs, but people confuse classes that look alike, and do so most on ambiguous
    inputs. So the odds that a label is wrong are multiplied by exp(AMBIGUITY·a·u), with a from `looks_alike`
    and u in (0, 1) the rank of the example's ambiguity. If EM finds no noise, they are multiplied by one
    factor for all such that the mean is `shrunk_rate`. The most probable class other than the given one
    stays the same.

    Args:
        x: (N, C) reduced features.
        labels: Labels as given, and checked ones.
        truth: The result of EM on these.
        folds: Number of folds.
        seed: Of the folds.
    """
    channel, least = truth.channel.matrix, 0.5 / (len(x) + 1)
    if unseen := truth.channel.rate < least:
        channel = rate_matrix("symmetric", labels.k, least)
    likelihood = np.exp(labels.given @ np.log(np.clip(channel, 1e-12, None)).T)
    fitted = fit_discriminant(x, truth.posterior, folds=folds, weight=labels.weight, seed=seed)
    second = softmax(fitted.scaled(labels, likelihood).logits, axis=1)
    joint = [view * likelihood for view in (truth.probabilities, second)]
    views = [one / np.maximum(one.sum(axis=1, keepdims=True), 1e-300) for one in joint]
    classes = (truth.probabilities + second) / 2
    ambiguity = (rankdata(-classes.max(axis=1)) - 0.5) / len(x)
    shift = AMBIGUITY * looks_alike(channel, classes) * ambiguity
    open_rows = np.full(len(x), unseen)
    if labels.checked is not None:
        open_rows[labels.checked[0]] = False
    return labels.known(_shifted((views[0] + views[1]) / 2, labels.given.argmax(axis=1), shift, open_rows))


def looks_alike(matrix: NDArray[np.float64], classes: NDArray[np.float64]) -> float:
    """Return in [0, 1] how far wrong labels are of the classes that look alike.

    It is the correlation over pairs of classes between F[c, j] and the mean probability of j if the class
    is c, at least 0, times the coefficient of variation of the former, at most 1: 0 of symmetric noise. Of
    two classes it is 0: there is one pair.

    Args:
        matrix: F, (K, K).
        classes: P(class | features), (N, K).
    """
    if len(matrix) < 3:
        return 0.0
    off = ~np.eye(len(matrix), dtype=bool)
    alike = classes.T @ classes / np.maximum(classes.sum(axis=0), 1e-9)[:, None]
    noise, looks = matrix[off], alike[off]
    if min(noise.std(), looks.std()) < 1e-9:
        return 0.0
    varied = min(float(noise.std() / noise.mean()), 1.0)
    return max(float(np.corrcoef(noise, looks)[0, 1]), 0.0) * varied


def shrunk_rate(rate: float, n: int) -> float:
    """Return the mean of an estimated noise rate of n labels and PRIOR_RATE, weighted by what each counts."""
    return (n / PER_CHECKED * rate + PRIOR_LABELS * PRIOR_RATE) / (n / PER_CHECKED + PRIOR_LABELS)


def _shifted(
    posterior: NDArray[np.float64],
    given: NDArray[np.int64],
    shift: NDArray[np.float64],
    rows: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Add `shift` to the log odds of a wrong label, and a number for all that shrinks the mean of `rows`."""
    at = np.arange(len(given))
    others = np.maximum(posterior, 1e-12)
    others[at, given] = 0.0
    others /= others.sum(axis=1, keepdims=True)
    odds = logit(np.clip(1 - posterior[at, given], 1e-12, 1 - 1e-12)) + shift
    if rows.any():
        wanted = shrunk_rate(float(expit(odds[rows]).mean()), int(rows.sum()))
        odds += brentq(lambda b: float(expit(odds[rows] + b).mean()) - wanted, -100.0, 100.0)
    found: NDArray[np.float64] = others * expit(odds)[:, None]
    found[at, given] = expit(-odds)
    return found


def rate_interval(rate: float, disagreement: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Return an interval for the share of wrong labels of n examples.

    Its ends are rate ± GAP_SHARE·|disagreement − rate|, the lower one reduced by FEW_SHARE·rate times the
    prior's part of the counts, each widened by the quantile of a Beta distribution
    that counts as n / PER_CHECKED + PRIOR_LABELS checked labels. GAP_SHARE and the counts are measured, not
    derived: the level holds for data like the development tasks.

    Args:
        rate: The estimate.
        disagreement: Share of labels that an out-of-sample probe of the labels as given predicts otherwise.
        n: Number of examples.
        level: Of the interval.

    Example:
        >>> low, high = rate_interval(0.0, 0.1, 100)
        >>> low, high > 0.05
        (0.0, True)
    """
    if n == 0:
        return 0.0, 0.0
    margin, tail = GAP_SHARE * abs(disagreement - rate), (1 - level) / 2
    count = n / PER_CHECKED + PRIOR_LABELS
    few = FEW_SHARE * PRIOR_LABELS / count * rate
    low, high = max(rate - margin - few, 0.0), min(rate + margin, 1.0)
    least = beta.ppf(tail, count * low, count * (1 - low)) if count * low >= 0.5 else 0.0
    most = beta.ppf(1 - tail, count * high + 0.5, count * (1 - high)) if high < 1 else 1.0
    return float(least), float(most)


def counted(rate: float, interval: tuple[float, float], n: int) -> tuple[int, int, int]:
    """Return how many of n labels are wrong by a rate and its interval: the expected number, and the ends."""
    return round(rate * n), math.floor(interval[0] * n), math.ceil(interval[1] * n)


def count_text(counts: tuple[int, int, int]) -> str:
    """Return what `counted` returns in words, such as `about 12 wrong labels (5 to 30)`."""
    return f"about {counts[0]} wrong labels ({counts[1]} to {counts[2]})"
