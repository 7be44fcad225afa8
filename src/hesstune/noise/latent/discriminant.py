"""A linear discriminant of class probabilities: its errors differ from those of softmax regression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hesstune.noise.latent.channel import Observed
from hesstune.noise.latent.em import FOLDS, fold_rows, mean_scores
from hesstune.noise.probes import Linear
from hesstune.runtime.device import one_thread

# Share of the pooled covariance that is replaced by a multiple of the identity.
SHRINKAGE = 0.1
TEMPERATURES = tuple(np.geomspace(0.05, 5.0, 30))
# Rows that are converted to double precision at a time.
CHUNK = 16384


@dataclass(frozen=True)
class _Sums:
    """Sums over examples from which a discriminant follows.

    Attributes:
        mass: (K,) Σ q_ic.
        first: (K, C) Σ q_ic x_i.
        second: (C, C) Σ (Σ_c q_ic) x_i x_iᵀ.
    """

    mass: NDArray[np.float64]
    first: NDArray[np.float64]
    second: NDArray[np.float64]

    @classmethod
    def of(cls, x: NDArray[np.floating], targets: NDArray[np.float64]) -> _Sums:
        k, c = targets.shape[1], x.shape[1]
        mass, first, second = targets.sum(axis=0), np.zeros((k, c)), np.zeros((c, c))
        for at in range(0, len(x), CHUNK):
            rows, q = x[at : at + CHUNK].astype(np.float64), targets[at : at + CHUNK]
            first += q.T @ rows
            second += (rows * q.sum(axis=1)[:, None]).T @ rows
        return cls(mass, first, second)

    def combined(self, other: _Sums, sign: int) -> _Sums:
        """Return the sums with those of other examples added, or taken away."""
        return _Sums(
            self.mass + sign * other.mass, self.first + sign * other.first, self.second + sign * other.second
        )

    def discriminants(self, shrinkages: Sequence[float]) -> list[Linear]:
        """Return weight S⁻¹μ_c and bias −μ_cᵀS⁻¹μ_c/2 + ln π_c of each class, for each shrinkage of S."""
        total = max(float(self.mass.sum()), 1e-12)
        means = self.first / np.maximum(self.mass, 1e-9)[:, None]
        scatter = (self.second - (means.T * self.mass) @ means) / total
        scale = max(float(np.trace(scatter)) / len(scatter), 1e-9)
        logs, found = np.log(np.maximum(self.mass / total, 1e-9)), []
        for shrinkage in shrinkages:
            covariance = (1 - shrinkage) * scatter + shrinkage * scale * np.eye(len(scatter))
            axes = np.asarray(np.linalg.solve(covariance, means.T), dtype=np.float64)
            found.append(Linear(axes, -0.5 * (means * axes.T).sum(axis=1) + logs))
        return found


@dataclass(frozen=True)
class Discriminant:
    """A linear discriminant, and what it predicts for examples that it was not fitted to.

    Attributes:
        linear: Fitted to all examples; weight (C, K) and bias (K,).
        logits: (N, K) of each example, fitted to the other folds.
    """

    linear: Linear
    logits: NDArray[np.float64]

    def scaled(self, labels: Observed, likelihood: NDArray[np.float64]) -> Discriminant:
        """Return it with logits times the temperature of the largest likelihood of the given labels.

        Args:
            labels: Of the examples.
            likelihood: P(given | class), (N, K).
        """
        scores = mean_scores(self.logits, [likelihood], labels.given.sum(axis=1), TEMPERATURES)
        best = TEMPERATURES[int(scores.argmax())]
        return Discriminant(Linear(best * self.linear.weight, best * self.linear.bias), best * self.logits)


def fit_discriminant(
    x: NDArray[np.floating],
    targets: NDArray[np.float64],
    *,
    folds: int = FOLDS,
    weight: NDArray[np.float64] | None = None,
    seed: int = 0,
) -> Discriminant:
    """Return `fit_discriminants` with the shrinkage SHRINKAGE."""
    return fit_discriminants(x, targets, (SHRINKAGE,), folds=folds, weight=weight, seed=seed)[0]


@one_thread()
def fit_discriminants(
    x: NDArray[np.floating],
    targets: NDArray[np.float64],
    shrinkages: Sequence[float],
    *,
    folds: int = FOLDS,
    weight: NDArray[np.float64] | None = None,
    seed: int = 0,
) -> list[Discriminant]:
    """Fit linear discriminants to class probabilities, and by cross-fitting.

    Means μ_c and shares π_c of the classes are weighted by the targets; the covariance S is shared and
    shrunk towards a multiple of the identity. Logits are xᵀS⁻¹μ_c − μ_cᵀS⁻¹μ_c/2 + ln π_c.

    Args:
        x: (N, C) features.
        targets: (N, K) class probabilities.
        shrinkages: The share of S that is replaced, for each discriminant.
        folds: Number of folds, at most N.
        weight: (N,) how much each example counts; None: once.
        seed: Of the folds.
    """
    counted = targets if weight is None else targets * weight[:, None]
    parts = fold_rows(len(x), min(folds, len(x)), seed)
    own = [_Sums.of(x[rows], counted[rows]) for rows in parts]
    whole = own[0]
    for other in own[1:]:
        whole = whole.combined(other, 1)
    logits = [np.empty(targets.shape) for _ in shrinkages]
    for rows, sums in zip(parts, own, strict=True):
        held = x[rows].astype(np.float64)
        for found, linear in zip(logits, whole.combined(sums, -1).discriminants(shrinkages), strict=True):
            found[rows] = linear.logits(held)
    return [Discriminant(*one) for one in zip(whole.discriminants(shrinkages), logits, strict=True)]
