"""How far F by latent-truth EM can be trusted: a parametric bootstrap, and a test of noise by class alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import gamma

from hesstune.noise.latent.channel import Shape
from hesstune.noise.latent.em import FOLDS, LatentTruth, latent_truth
from hesstune.noise.latent.observed import Observed
from hesstune.runtime.threads import one_thread_each

__all__ = ["Trust", "residual_statistic", "trust"]

DRAWS = 20
# Principal components that residuals are held against; and the level of the test, whose model is never quite
# right: at a higher one it rejects noise that was drawn by class.
COMPONENTS, LEVEL = 20, 0.001


@dataclass(frozen=True)
class Trust:
    """What refits to data drawn from the fitted model say.

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
        """Whether noise that depends on the class alone is not rejected; that it does is not shown by it."""
        return self.p_value >= LEVEL


def trust(
    x: NDArray[np.float32],
    labels: NDArray[np.int64],
    found: LatentTruth,
    strength: float,
    shape: Shape,
    seed: int,
) -> Trust:
    """Draw true classes from the probes' probabilities and labels by F, refit all, and compare.

    What the refits share is the form of the model: where that is wrong, as for noise that depends on the
    example, these errors are too small, which the p-value is there to say.

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
    drawn = [_drawn(rng, _drawn(rng, p)[:, None] == np.arange(k), matrix) for _ in range(DRAWS)]

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
    return Trust(
        matrices.std(axis=0, ddof=1),
        (float(np.median(moved)), float(moved.max())),
        statistic,
        float(gamma.sf(statistic, shape_, scale=scale)),
    )


def _drawn(
    rng: np.random.Generator,
    rows: NDArray[np.float64] | NDArray[np.bool_],
    matrix: NDArray[np.float64] | None = None,
) -> NDArray[np.int64]:
    """Draw a class a row, (N,), from rows of probabilities, (N, K), through a matrix where there is one."""
    p = rows if matrix is None else rows.astype(np.float64) @ matrix
    return np.asarray((p.cumsum(axis=1) < rng.random((len(p), 1))).sum(axis=1).clip(0, p.shape[1] - 1))


def residual_statistic(x: NDArray[np.float32], labels: NDArray[np.int64], found: LatentTruth) -> float:
    """Return Σ_dc (Σ_i z_id r_ic)²/(N·v_c), z the leading components, r what was observed minus p·F.

    Observed is each class given, and whether the class given is the probe's likeliest one. Where noise
    depends on the class alone, p·F foretells these everywhere alike, and r has nothing to do with where an
    example lies.

    Args:
        x: (N, C) reduced features, the leading components first.
        labels: (N,) labels as given.
        found: What was fitted to them.
    """
    told = found.probabilities @ found.channel.matrix
    guess = found.probabilities.argmax(axis=1)[:, None]
    told = np.append(told, np.take_along_axis(told, guess, axis=1), axis=1)
    observed = np.append(labels[:, None] == np.arange(told.shape[1] - 1), labels[:, None] == guess, axis=1)
    rest = observed - told
    variance = np.maximum((told * (1 - told)).mean(axis=0), 1e-9)
    z = x[:, :COMPONENTS].astype(np.float64)
    z = (z - z.mean(axis=0)) / np.maximum(z.std(axis=0), 1e-12)
    return float(((z.T @ rest) ** 2 / (len(z) * variance)).sum())
