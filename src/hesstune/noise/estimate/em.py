"""F by latent-truth EM: the noise matrix under which features foretell noisy labels best."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hesstune.noise.estimate.record import Estimate, row_stderr
from hesstune.noise.latent.head import robust_head
from hesstune.noise.latent.observed import Observed
from hesstune.noise.matrix import NoiseMatrix

__all__ = ["latent_truth_estimate"]


def latent_truth_estimate(features: ArrayLike, labels: NDArray[np.int64], k: int, seed: int = 0) -> Estimate:
    """Estimate F by EM over true classes, cross-fitted probes and F; shape and penalty by hold-out.

    Where labels are best foretold as they are, F is the symmetric matrix through which a plain probe
    foretells them best: near the identity without noise. Standard errors are multinomial, of the rows'
    expected counts.

    Args:
        features: (N, D).
        labels: Noisy labels, (N,).
        k: Number of classes.
        seed: Of folds.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = np.arange(600) % 2
        >>> x = np.eye(2)[y] + 0.2 * rng.normal(size=(600, 2))
        >>> noisy = np.where((y == 0) & (rng.random(600) < 0.4), 1, y)
        >>> latent_truth_estimate(x, noisy, 2).matrix.array.round(1).tolist()
        [[0.6, 0.4], [0.0, 1.0]]
    """
    found = robust_head(features, Observed.of(labels, k), doubting=True, seed=seed)
    matrix = found.truth.channel.matrix
    counts = found.truth.posterior.sum(axis=0)
    return Estimate(
        NoiseMatrix(matrix, "estimated"),
        "em",
        len(labels),
        stderr=row_stderr(matrix, counts),
        temperature=found.truth.temperature,
        notes=(f"em: {found.choice.candidate.name}, of {len(found.choice.scores)} candidates",),
        details=found.choice.details(),
    )
