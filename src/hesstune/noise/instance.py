"""Label noise that depends on the example: how to draw it, and a test for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hesstune.checks import class_count, integer_labels, unit_interval
from hesstune.errors import DataError, NoiseMatrixError
from hesstune.noise.matrix import NoiseMatrix

# Standard deviation of the examples' flip rates (Xia et al. 2020).
SPREAD = 0.1
KIND = "instance:"


def instance_rate(text: str | None) -> float | None:
    """Return the rate of `instance:RATE`; None if the text is another kind of noise.

    Raises:
        NoiseMatrixError: If the rate is no number in [0, 1].
    """
    if text is None or not text.startswith(KIND):
        return None
    return unit_interval("the noise rate", text.removeprefix(KIND), NoiseMatrixError)


def instance_transitions(
    features: ArrayLike, labels: ArrayLike, k: int, rate: float, seed: int = 0
) -> NDArray[np.float64]:
    """Return each example's P(noisy = j | example), (N, K), of instance-dependent noise.

    An example of class y changes with probability q, drawn from a normal distribution around the rate,
    deviation 0.1, truncated to [0, 1] and placed so that its mean is the rate; to class j ≠ y with
    probability q·softmax(x W_y)_j, W_y a (D, K) matrix of standard normals. Source: Xia et al. 2020,
    algorithm 2 (which centres the untruncated distribution on the rate).

    Args:
        features: x, (N, D), such as standardised pixels.
        labels: True labels, (N,).
        k: Number of classes.
        rate: The mean probability that a label changes.
        seed: Of W and q. The same seed and features give the same W.

    Example:
        >>> p = instance_transitions(np.eye(4), [0, 1, 2, 0], 3, 0.3)
        >>> p.shape, bool(np.allclose(p.sum(axis=1), 1))
        ((4, 3), True)
    """
    from scipy.special import softmax

    k = class_count(k)
    true = integer_labels(labels, k, "labels")
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or len(x) != len(true) or not np.isfinite(x).all():
        raise DataError(f"features must be finite, ({len(true)}, D), one row a label; got shape {x.shape}")
    rate = unit_interval("the noise rate", rate, NoiseMatrixError)
    weights = np.random.default_rng([seed, 0x1D]).standard_normal((k, x.shape[1], k))
    flip = _flip_rates(rate, len(true), np.random.default_rng([seed, len(true), 0xF11]))
    logits = np.empty((len(true), k))
    for label in range(k):
        own = true == label
        logits[own] = x[own] @ weights[label]
    every = np.arange(len(true))
    logits[every, true] = -np.inf
    found = flip[:, None] * softmax(logits, axis=1)
    found[every, true] = 1 - flip
    return np.asarray(found)


def _flip_rates(rate: float, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw a flip rate in [0, 1] for each of n examples, with the mean `rate`."""
    from scipy.optimize import brentq
    from scipy.stats import truncnorm

    def around(centre: float) -> object:
        return truncnorm(-centre / SPREAD, (1 - centre) / SPREAD, loc=centre, scale=SPREAD)

    if rate < 0.005 or rate > 0.995:  # no room for a spread
        return np.full(n, rate)
    centre = brentq(lambda c: around(c).mean() - rate, -2.0, 3.0)  # type: ignore[attr-defined]
    return np.asarray(around(float(centre)).rvs(n, random_state=rng))  # type: ignore[attr-defined]


def average(transitions: NDArray[np.float64], labels: ArrayLike, k: int) -> NoiseMatrix:
    """Return the class-conditional part: F[i, j] is the mean of P(noisy = j | example) over class i."""
    true = integer_labels(labels, k, "labels")
    matrix = np.eye(k)
    for label in np.unique(true):
        matrix[label] = transitions[true == label].mean(axis=0)
    return NoiseMatrix(matrix, "instance_dependent")


NEIGHBOURS, FEWEST = 10, 20
# Dependence is reported if it is both significant and large enough to matter.
LEVEL, LEAST_EXCESS = 0.01, 0.03


@dataclass(frozen=True)
class Conditional:
    """The agreement of noisy labels among neighbours of the same class.

    Attributes:
        agreement: Share of neighbours, within a class, that have the same noisy label.
        expected: The same share after labels are permuted within each class.
        p_value: P(an agreement as large | labels independent of the features within each class).
        examples: Examples it was computed from.
    """

    agreement: float
    expected: float
    p_value: float
    examples: int

    @property
    def depends(self) -> bool:
        """Whether labels depend on the example beyond its class: certain (1 %), and by 3 points."""
        return self.p_value < LEVEL and self.agreement - self.expected >= LEAST_EXCESS


def class_conditional(
    features: ArrayLike, noisy: ArrayLike, classes: ArrayLike, k: int, *, draws: int = 300, seed: int = 0
) -> Conditional:
    """Test whether noisy labels are independent of the features within each class, by permutation.

    Class-conditional noise chooses the wrong label by the class alone: within a class, neighbours in the
    features agree no more often than any two examples do. The permutation keeps each class's counts, so
    the test is exact for true classes. Estimated classes that mix two true ones look dependent at their
    borders: give only examples with a certain class.

    Args:
        features: (N, D).
        noisy: Noisy labels, (N,).
        classes: True or estimated classes, (N,).
        k: Number of classes.
        draws: Permutations.
        seed: Theirs.

    Raises:
        DataError: If no class has enough examples.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(400, 2))
        >>> class_conditional(x, (x[:, 0] > 0).astype(int), np.zeros(400, int), 2).depends
        True
    """
    from sklearn.neighbors import NearestNeighbors

    x = np.asarray(features, dtype=np.float64)
    given, true = integer_labels(noisy, k, "noisy labels"), integer_labels(classes, k, "classes")
    rng = np.random.default_rng([seed, 0xCC])
    seen, total, drawn = 0, 0.0, np.zeros(draws)
    for label in range(k):
        rows = np.flatnonzero(true == label)
        if len(rows) < FEWEST:
            continue
        near = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(x[rows]).kneighbors(return_distance=False)
        own = given[rows]
        seen += len(rows)
        total += float((own[near] == own[:, None]).mean(axis=1).sum())
        for at in range(draws):
            mixed = rng.permutation(own)
            drawn[at] += (mixed[near] == mixed[:, None]).mean(axis=1).sum()
    if not seen:
        raise DataError(
            f"no class has {FEWEST} examples, too few to test whether noise depends on the example"
        )
    p = (1 + int((drawn >= total - 1e-9).sum())) / (draws + 1)
    return Conditional(total / seen, float(drawn.mean() / seen), p, seen)


def sure_half(posterior: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the half of the examples of each most probable class that is most probable, sorted."""
    best, top = posterior.argmax(axis=1), posterior.max(axis=1)
    kept = []
    for label in np.unique(best):
        rows = np.flatnonzero(best == label)
        kept.append(rows[np.argsort(-top[rows], kind="stable")[: (len(rows) + 1) // 2]])
    return np.sort(np.concatenate(kept))
