"""The mean posterior of two classifiers of each label, and an interval for the share of wrong labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from scipy.stats import beta

from hesstune.noise.latent.channel import Observed
from hesstune.noise.latent.em import FOLDS, LatentTruth, fold_rows, log_scores
from hesstune.noise.matrix import rate_matrix
from hesstune.runtime.device import one_thread

__all__ = ["GAP_SHARE", "discriminant_logits", "mean_posterior", "rate_interval"]

# Share of the pooled covariance that is replaced by a multiple of the identity.
SHRINKAGE = 0.1
TEMPERATURES = tuple(np.geomspace(0.05, 5.0, 30))
# The error of an estimated noise rate as a share of its distance to the rate at which a plain probe disagrees
# with the labels. On the development tasks of benchmarks/field/label_errors.py the largest of 30 is 0.53.
GAP_SHARE = 0.5
LEVEL = 0.9


@one_thread()
def mean_posterior(
    x: NDArray[np.float32], labels: Observed, truth: LatentTruth, folds: int = FOLDS, seed: int = 0
) -> NDArray[np.float64]:
    """Return P(true class | features, given label), (N, K), as the mean of two classifiers' posteriors.

    The first is the softmax regression of EM. The second is a linear discriminant that is fitted by
    cross-fitting to EM's posteriors and scaled by the temperature of the largest likelihood of the given
    labels. Both use EM's noise matrix. If EM finds no noise, both use symmetric noise of the rate
    0.5 / (N + 1), the Bayes estimate under Jeffreys' prior for no wrong label in N. Labels keep a rank.

    Args:
        x: (N, C) reduced features.
        labels: Labels as given, and checked ones.
        truth: The result of EM on these.
        folds: Number of folds.
        seed: Of the folds.
    """
    channel, least = truth.channel.matrix, 0.5 / (len(x) + 1)
    if truth.channel.shape != "told" and truth.channel.rate < least:
        channel = rate_matrix("symmetric", labels.k, least)
    likelihood = np.exp(labels.given @ np.log(np.clip(channel, 1e-12, None)).T)
    logits = discriminant_logits(x, truth.posterior, folds=folds, weight=labels.weight, seed=seed)
    units = labels.given.sum(axis=1)
    scores = [float(log_scores(logits, one, likelihood, units).mean()) for one in TEMPERATURES]
    second = softmax(TEMPERATURES[int(np.argmax(scores))] * logits, axis=1)
    joint = [view * likelihood for view in (truth.probabilities, second)]
    views = [one / np.maximum(one.sum(axis=1, keepdims=True), 1e-300) for one in joint]
    return labels.known((views[0] + views[1]) / 2)


def discriminant_logits(
    x: NDArray[np.floating],
    targets: NDArray[np.float64],
    *,
    folds: int = FOLDS,
    weight: NDArray[np.float64] | None = None,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Return each example's logits, (N, K), of a linear discriminant that was fitted to the other folds.

    Means μ_c and shares π_c of the classes are weighted by the targets; the covariance S is shared and
    shrunk towards a multiple of the identity (SHRINKAGE). Logits are xᵀS⁻¹μ_c − μ_cᵀS⁻¹μ_c/2 + ln π_c.

    Args:
        x: (N, C) features.
        targets: (N, K) class probabilities.
        folds: Number of folds, at most N.
        weight: (N,) how much each example counts; None: once.
        seed: Of the folds.
    """
    rows = np.asarray(x, dtype=np.float64)
    counted = targets if weight is None else targets * weight[:, None]
    found = np.empty(targets.shape)
    for part in fold_rows(len(rows), min(folds, len(rows)), seed):
        rest = np.setdiff1d(np.arange(len(rows)), part)
        own, q = rows[rest], counted[rest]
        mass = q.sum(axis=0)
        means = (q.T @ own) / np.maximum(mass, 1e-9)[:, None]
        scatter = (own * q.sum(axis=1)[:, None]).T @ own - (means.T * mass) @ means
        scatter /= max(float(mass.sum()), 1e-12)
        scale = max(float(np.trace(scatter)) / len(scatter), 1e-9)
        covariance = (1 - SHRINKAGE) * scatter + SHRINKAGE * scale * np.eye(len(scatter))
        axes = np.linalg.solve(covariance, means.T)
        shares = np.maximum(mass / max(float(mass.sum()), 1e-12), 1e-9)
        found[part] = rows[part] @ axes - 0.5 * (means * axes.T).sum(axis=1) + np.log(shares)
    return found


def rate_interval(rate: float, disagreement: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Return an interval for the share of wrong labels of n examples.

    Its ends are rate ± GAP_SHARE·|disagreement − rate|, each widened by the quantile of Jeffreys' interval of
    a binomial share. GAP_SHARE is measured, not derived: the level holds for data like the development tasks.

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
    low, high = max(rate - margin, 0.0), min(rate + margin, 1.0)
    least = beta.ppf(tail, n * low + 0.5, n * (1 - low) + 0.5) if n * low >= 0.5 else 0.0
    most = beta.ppf(1 - tail, n * high + 0.5, n * (1 - high) + 0.5) if n * (1 - high) >= 0.5 else 1.0
    return float(least), float(most)
