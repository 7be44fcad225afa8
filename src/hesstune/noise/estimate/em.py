"""F by latent-truth EM: the noise matrix under which features foretell noisy labels best."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hesstune.noise.estimate.record import Estimate, row_stderr
from hesstune.noise.latent.bootstrap import DRAWS, trust
from hesstune.noise.latent.choose import MORE
from hesstune.noise.latent.em import FOLDS, latent_truth
from hesstune.noise.latent.head import MOST, robust_head
from hesstune.noise.latent.observed import Observed
from hesstune.noise.latent.reduction import Reduction
from hesstune.noise.matrix import NoiseMatrix

__all__ = ["latent_truth_estimate", "with_trust"]


def latent_truth_estimate(features: ArrayLike, labels: NDArray[np.int64], k: int, seed: int = 0) -> Estimate:
    """Estimate F by EM over true classes, cross-fitted probes and F; shape and penalty by hold-out.

    Where labels are best foretold as they are, F is the symmetric matrix through which a plain probe
    foretells them best: near the identity without noise. Standard errors are multinomial, of the rows'
    expected counts; `with_trust` has better ones.

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
        notes=(f"em: {found.choice.candidate.name}, of {found.choice.tried} candidates",),
        details=found.choice.details(),
    )


def with_trust(found: Estimate, features: ArrayLike, labels: NDArray[np.int64], seed: int = 0) -> Estimate:
    """Return an estimate by EM with bootstrap errors, and with the test whether noise is by class alone.

    Args:
        found: By `latent_truth_estimate`, of the same features and labels.
        features: (N, D).
        labels: Noisy labels, (N,).
        seed: Of folds and draws.
    """
    chosen = next(one for one in MORE if one.name == found.details["chosen"])
    reduction = Reduction.of(features)
    x, given, whole = reduction.apply(features), labels, len(labels)
    if whole > MOST:  # refits of a part say enough; errors shrink with the root of the number
        rows = np.sort(np.random.default_rng([seed, 0xB0]).permutation(whole)[:MOST])
        x, given = x[rows], labels[rows]
    observed = Observed.of(given, found.matrix.k)
    truth = latent_truth(
        x, observed, strength=chosen.strength, shape=chosen.shape, folds=min(FOLDS, len(x)), seed=seed
    )
    told = trust(x, given, truth, chosen.strength, chosen.shape, seed)
    shrink = float(np.sqrt(len(given) / whole))
    notes = [f"by bootstrap its rows are off by {shrink * told.row_tv[0]:.3f} in total variation on average"]
    if not told.by_class_alone:
        notes.append(
            f"the noise does not depend on the class alone (p = {told.p_value:.2g}): F is a mean over "
            "examples, and its errors are larger than the bootstrap's"
        )
    details = {
        **found.details,
        "bootstrap": {
            "draws": DRAWS,
            "row_tv": {"median": shrink * told.row_tv[0], "largest": shrink * told.row_tv[1]},
        },
        "by_class_alone": {"statistic": told.statistic, "p_value": told.p_value},
    }
    return replace(found, stderr=shrink * told.stderr, notes=(*found.notes, *notes), details=details)
