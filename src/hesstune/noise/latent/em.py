"""Latent-truth EM: the true class of each example, out of sample, and how far F can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from scipy.stats import gamma

from hesstune.errors import ConfigError
from hesstune.noise.latent.channel import LabelChannel, Observed, Shape
from hesstune.noise.matrix import draw_classes
from hesstune.noise.probes import Linear, SoftProbes
from hesstune.runtime.device import one_thread, one_thread_each
from hesstune.selection import paired_gain

FOLDS = 5
# EM has converged when no entry of F moves further; probes take a few steps a round.
ROUNDS, TOLERANCE, GIVEN_TOLERANCE = 30, 2e-3, 2e-2
# Of `fit_from_several_starts`: rounds, and a second rate of symmetric noise to start from, at most a share of
# the rate of labels drawn at random.
PATIENT_ROUNDS, SECOND_START, MAX_SHARE_OF_RANDOM = 120, 0.7, 0.8
FIRST_STEPS, STEPS = 15, 4
# Rounds after which F shows the pairs of classes, chosen on draws of blobs and CIFAR-10. Later rounds may
# converge with some pairs wrong.
EARLY_ROUNDS = 3
TEMPERATURES = tuple(np.geomspace(0.3, 10.0, 19))
# Rates of symmetric noise that are tried for labels that are assumed correct in training.
RATES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8)
# A share of uniform in every prediction, so that one sure mistake is costly, not infinitely so.
FLOOR = 1e-3


@dataclass(frozen=True)
class LatentTruth:
    """The result of EM.

    Attributes:
        channel: F, fitted.
        posterior: P(true class | features, given label), (N, K): the probe did not see the example.
        probabilities: P(true class | features), (N, K), of that probe.
        targets: (N, K) what a classifier of all examples is to be fitted to: the posterior, or the labels as
            given if they are assumed correct.
        temperature: Factor of the probe's logits that fits the given labels best.
        converged: Whether F converged.
        early: F after EARLY_ROUNDS rounds, or at convergence.
        probe: The mean of the folds' probes, a start for one of all examples.
    """

    channel: LabelChannel
    posterior: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    targets: NDArray[np.float64]
    temperature: float
    converged: bool
    early: LabelChannel
    probe: Linear

    def extended(self, labels: Observed, probabilities: NDArray[np.float64]) -> LatentTruth:
        """Return it for other predictions, or more examples: posteriors and targets follow under F.

        Args:
            labels: What is known of the examples.
            probabilities: P(true class | features), (N, K).
        """
        posterior = labels.known(_normalised(probabilities * self.channel.likelihood(labels.given)))
        targets = labels.known(_normalised(labels.given)) if self.channel.shape == "none" else posterior
        return replace(self, probabilities=probabilities, posterior=posterior, targets=targets)

    def realised(self, given: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return F as realised in these labels, (K, K): rows Σ_i q_ic given_i / Σ_i q_ic.

        `channel` is the distribution that labels are drawn from, with rows shrunk to one another. The
        labels at hand differ from it by the chance of their draw.

        Args:
            given: (N, K) one-hot labels, as fitted.
        """
        counts = self.posterior.T @ given
        mass = counts.sum(axis=1, keepdims=True)
        return np.where(mass > 0.5, counts / np.maximum(mass, 1e-12), self.channel.matrix)


def fold_rows(
    n: int, folds: int, seed: int, groups: NDArray[np.int64] | None = None
) -> list[NDArray[np.int64]]:
    """Return the rows of each fold, drawn uniformly; examples of a group, (N,), are in one fold.

    Raises:
        ConfigError: If there are fewer examples than folds.
    """
    if groups is not None:
        numbered = np.unique(groups, return_inverse=True)[1]
        units = fold_rows(int(numbered.max(initial=-1)) + 1, folds, seed)
        return [np.flatnonzero(np.isin(numbered, some)) for some in units]
    if n < folds:
        raise ConfigError(f"{n} examples cannot be cut into {folds} folds")
    return [
        np.sort(part) for part in np.array_split(np.random.default_rng([seed, 0xE3]).permutation(n), folds)
    ]


@one_thread()
def latent_truth(
    x: NDArray[np.float32],
    labels: Observed,
    *,
    strength: float,
    shape: Shape = "full",
    folds: int = FOLDS,
    seed: int = 0,
) -> LatentTruth:
    """Fit P(true class | features) and F by expectation maximisation, with out-of-sample probes.

    Each round computes q_i ∝ p_c(x_i)·P(given_i | c), then F from q, then the probes from q, until F
    converges. p comes from the probe that was fitted to the posteriors of the other folds, at the
    temperature with the largest likelihood of the given labels. A probe that was fitted to an example's own
    label would confirm it. A full F is also fitted from a start with classes confused in pairs, those of F
    after EARLY_ROUNDS rounds (`LabelChannel.paired`), and kept if it stays in pairs and predicts the given
    labels better. Sources: Raykar et al. 2010; Bekker and Goldberger 2016.

    Args:
        x: (N, C) reduced features.
        labels: What is known of them.
        strength: Inverse of the probes' penalty.
        shape: What F is allowed to be; `none` makes probes of the labels as they are.
        folds: Number of folds.
        seed: Of the folds.

    Example:
        >>> from hesstune.noise.probes import Reduction
        >>> y = np.arange(300) % 2
        >>> x = Reduction.of(np.eye(2)[y] + 0.2 * np.random.default_rng(0).normal(size=(300, 2))).apply
        >>> x = x(np.eye(2)[y] + 0.2 * np.random.default_rng(0).normal(size=(300, 2)))
        >>> noisy = np.where(np.random.default_rng(1).random(300) < 0.3, 1 - y, y)
        >>> found = latent_truth(x, Observed.of(noisy, 2), strength=0.1)
        >>> bool((found.posterior.argmax(axis=1) == y).mean() > 0.97)
        True
    """
    probes = SoftProbes(x, strength, labels.weight, fold_rows(len(x), folds, seed))
    if shape == "none":
        linear = probes.fit(labels.known(_normalised(labels.given)))
        return _assumed_correct(probes.held_out_logits(), labels, _mean(linear))
    channel = LabelChannel.start(labels.k, shape)
    if shape == "given":
        assert labels.noise_matrix is not None
        channel = LabelChannel(labels.noise_matrix, shape)
    found = _fit_em(probes, labels, channel, ROUNDS)
    if shape != "full" or labels.k < 3:
        return found
    return _paired(found, found, probes, labels, ROUNDS)


@one_thread()
def fit_from_several_starts(
    x: NDArray[np.float32], labels: Observed, *, strength: float, folds: int = FOLDS, seed: int = 0
) -> LatentTruth:
    """Return the result of EM with a full F from several starts and with more rounds, if it predicts better.

    If classes are confused, EM converges slowly and may end at a worse optimum than from another start. The
    result of `latent_truth` is kept unless another one predicts the given labels better: if the noise depends
    on more than the class, more rounds of EM can be worse. It takes up to eight times as long as
    `latent_truth`, and has the same arguments.
    """
    usual = latent_truth(x, labels, strength=strength, folds=folds, seed=seed)
    second = min(SECOND_START, MAX_SHARE_OF_RANDOM * (1 - 1 / labels.k))
    probes = SoftProbes(x, strength, labels.weight, fold_rows(len(x), folds, seed))
    starts = LabelChannel.start(labels.k, "full"), LabelChannel.symmetric(labels.k, second, "full")
    ends = [_fit_em(probes, labels, channel, PATIENT_ROUNDS) for channel in starts]
    found = _better(usual, ends, labels)
    return found if labels.k < 3 else _paired(found, ends[0], probes, labels, PATIENT_ROUNDS)


def _paired(
    found: LatentTruth, end: LatentTruth, probes: SoftProbes, labels: Observed, rounds: int
) -> LatentTruth:
    """Return EM's result from the early pairs of `end` if in pairs and better, else `found`."""
    other = _fit_em(probes, labels, end.early.paired(), rounds, in_pairs=True)
    return _better(found, [other] if other.channel.in_pairs else [], labels, 0.0)


def _better(
    usual: LatentTruth, others: Sequence[LatentTruth], labels: Observed, errors: float = 1.0
) -> LatentTruth:
    """Return the one that predicts given labels best, out of sample, if by so many errors; else `usual`.

    A permutation of the classes predicts as well. It is refused: no other order of the classes may have a
    larger mean probability that labels are right.
    """
    ends = [usual, *(one for one in others if one.channel.in_order)]
    scores = [_predicted(each, labels.given) for each in ends]
    best = int(np.argmax([each.mean() for each in scores]))
    gain, error = paired_gain(scores[best], scores[0])
    return ends[best] if gain > errors * error else usual


def _predicted(found: LatentTruth, given: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `log_scores` of the given labels by the probes that did not see them."""
    logs = np.log(np.maximum(found.probabilities, 1e-300))
    return log_scores(logs, 1.0, found.channel.likelihood(given), given.sum(axis=1))


def _fit_em(
    probes: SoftProbes, labels: Observed, channel: LabelChannel, max_rounds: int, in_pairs: bool = False
) -> LatentTruth:
    """Return the result of EM from a start, after at most so many rounds.

    With `in_pairs` it also ends when classes are no longer confused in pairs.
    """
    given, fixed = labels.given, channel.shape == "given"
    posterior, units = labels.known(_normalised(channel.likelihood(given))), given.sum(axis=1)
    before, early = posterior, channel
    for at in range(max_rounds):
        linear = probes.fit(posterior, STEPS if at else FIRST_STEPS, go_on=at > 0)
        logits = probes.held_out_logits()
        likelihood = channel.likelihood(given)
        temperature = TEMPERATURES[int(mean_scores(logits, [likelihood], units).argmax())]
        probabilities = softmax(temperature * logits, axis=1)
        posterior = labels.known(_normalised(probabilities * likelihood))
        following = channel.refitted(given, posterior, labels.weight)
        # A given matrix does not move: the posteriors have to converge.
        moved = probabilities - before if fixed else following.matrix - channel.matrix
        converged = bool(np.abs(moved).max() < (GIVEN_TOLERANCE if fixed else TOLERANCE))
        channel, before = following, probabilities
        early = channel if at < EARLY_ROUNDS else early
        if converged or (in_pairs and at >= EARLY_ROUNDS and not channel.in_pairs):
            break
    return LatentTruth(
        channel, posterior, probabilities, posterior, temperature, converged, early, _mean(linear)
    )


def _mean(linear: Sequence[Linear]) -> Linear:
    return Linear(
        np.mean([one.weight for one in linear], axis=0), np.mean([one.bias for one in linear], axis=0)
    )


def _assumed_correct(logits: NDArray[np.float64], labels: Observed, probe: Linear) -> LatentTruth:
    """Return posteriors of labels that are assumed correct in training, by the most likely symmetric channel.

    Without a channel the likelihood would penalise a plain probe for its calibration under noise.
    """
    k, given = labels.k, labels.given
    channels = [LabelChannel.symmetric(k, rate, "none") for rate in RATES if rate < 1 - 1 / k]
    likelihoods = [one.likelihood(given) for one in channels]
    scores = mean_scores(logits, likelihoods, given.sum(axis=1))
    best, at = np.unravel_index(int(scores.argmax()), scores.shape)
    channel, temperature = channels[best], TEMPERATURES[at]
    probabilities = softmax(temperature * logits, axis=1)
    posterior = labels.known(_normalised(probabilities * channel.likelihood(given)))
    targets = labels.known(_normalised(given))
    return LatentTruth(channel, posterior, probabilities, targets, temperature, True, channel, probe)


def _normalised(joint: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(joint / np.maximum(joint.sum(axis=1, keepdims=True), 1e-300))


def mean_scores(
    logits: NDArray[np.float64],
    likelihoods: Sequence[NDArray[np.float64]],
    units: NDArray[np.float64],
    temperatures: Sequence[float] = TEMPERATURES,
) -> NDArray[np.float64]:
    """Return the mean of `log_scores` for each likelihood, (N, K), at each temperature, (R, temperatures).

    Classes come first: sums over them are quick. With one label each, single precision is enough.
    """
    kind = np.dtype("float32" if units.max(initial=0.0) <= 1 else "float64")
    across: NDArray[np.floating] = np.ascontiguousarray(logits.T, dtype=kind)
    given: list[NDArray[np.floating]] = [np.ascontiguousarray(one.T, dtype=kind) for one in likelihoods]
    across -= across.max(axis=0)
    uniform = FLOOR * np.power(float(len(across)), -units)
    found = np.empty((len(given), len(temperatures)))
    for at, temperature in enumerate(temperatures):
        p = np.exp(across * kind.type(temperature))
        whole = p.sum(axis=0)
        for row, one in enumerate(given):
            share = (np.einsum("kn,kn->n", p, one) / whole).astype(np.float64)
            found[row, at] = np.log((1 - FLOOR) * share + uniform).mean()
    return found


def log_scores(
    logits: NDArray[np.float64],
    temperature: float,
    likelihood: NDArray[np.float64],
    units: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Return ln P(given label | features), (N,), with a share FLOOR of uniform.

    Args:
        logits: (N, K) of the true class.
        temperature: Their factor.
        likelihood: P(given | class), (N, K).
        units: (N,) how many labels were given; None: one each.
    """
    share = (softmax(temperature * logits, axis=1) * likelihood).sum(axis=1)
    uniform = np.power(float(logits.shape[1]), -(1.0 if units is None else units))
    return np.asarray(np.log((1 - FLOOR) * share + FLOOR * uniform))


DRAWS = 20
# Principal components that residuals are tested against, and the level of the test. The model is never quite
# right: at a higher level noise that was drawn by class is rejected.
COMPONENTS, LEVEL = 20, 0.001


@dataclass(frozen=True)
class Bootstrap:
    """The spread of refits to data drawn from the fitted model.

    Attributes:
        stderr: (K, K) standard deviations of F's entries over the draws.
        row_tv: (median, largest) over draws of the total variation between the F refitted and the F that the
            labels were drawn by, mean over rows.
        statistic: `residual_statistic` of the data.
        p_value: P(a statistic as large | noise by class alone), from a gamma distribution of the draws' mean
            and variance.
    """

    stderr: NDArray[np.float64]
    row_tv: tuple[float, float]
    statistic: float
    p_value: float

    @property
    def by_class_alone(self) -> bool:
        """Whether noise that depends on the class alone is not rejected; it is not proved either."""
        return self.p_value >= LEVEL


def bootstrap(
    x: NDArray[np.float32],
    labels: NDArray[np.int64],
    found: LatentTruth,
    strength: float,
    shape: Shape,
    seed: int,
) -> Bootstrap:
    """Draw true classes from the probes' probabilities and labels by F, refit all, and compare.

    The refits share the form of the model. If it is wrong, as for noise that depends on the example, these
    errors are too small; the p-value tests for that.

    Args:
        x: (N, C) reduced features.
        labels: (N,) labels as given.
        found: What was fitted to them.
        strength: Inverse of the probes' penalty.
        shape: Of F.
        seed: Of the draws.
    """
    k, matrix, p = len(found.channel.matrix), found.channel.matrix, found.probabilities
    rng = np.random.default_rng([seed, 0xB007])
    drawn = [draw_classes(matrix[draw_classes(p, rng)], rng) for _ in range(DRAWS)]

    def refit(own: NDArray[np.int64]) -> LatentTruth:
        folds = min(FOLDS, len(x))
        return latent_truth(x, Observed.of(own, k), strength=strength, shape=shape, folds=folds, seed=seed)

    with one_thread_each(DRAWS) as each:
        refits = each(refit, drawn)
    matrices = np.stack([one.channel.matrix for one in refits])
    moved = 0.5 * np.abs(matrices - matrix).sum(axis=2).mean(axis=1)
    under_model = np.array([residual_statistic(x, o, f) for o, f in zip(drawn, refits, strict=True)])
    statistic = residual_statistic(x, labels, found)
    spread = max(float(under_model.var(ddof=1)), 1e-12)
    shape_, scale = float(under_model.mean()) ** 2 / spread, spread / max(float(under_model.mean()), 1e-12)
    return Bootstrap(
        matrices.std(axis=0, ddof=1),
        (float(np.median(moved)), float(moved.max())),
        statistic,
        float(gamma.sf(statistic, shape_, scale=scale)),
    )


def residual_statistic(x: NDArray[np.float32], labels: NDArray[np.int64], found: LatentTruth) -> float:
    """Return Σ_dc (Σ_i z_id r_ic)²/(N·v_c), z the leading components, r the observed values minus p·F.

    Observed are the one-hot given class, and whether it is the probe's most probable one. If noise depends on
    the class alone, r is independent of the features.

    Args:
        x: (N, C) reduced features, the leading components first.
        labels: (N,) labels as given.
        found: What was fitted to them.
    """
    expected = found.probabilities @ found.channel.matrix
    guess = found.probabilities.argmax(axis=1)[:, None]
    expected = np.append(expected, np.take_along_axis(expected, guess, axis=1), axis=1)
    observed = np.append(
        labels[:, None] == np.arange(expected.shape[1] - 1), labels[:, None] == guess, axis=1
    )
    rest = observed - expected
    variance = np.maximum((expected * (1 - expected)).mean(axis=0), 1e-9)
    z = x[:, :COMPONENTS].astype(np.float64)
    z = (z - z.mean(axis=0)) / np.maximum(z.std(axis=0), 1e-12)
    return float(((z.T @ rest) ** 2 / (len(z) * variance)).sum())
