"""Estimate the noise matrix without true labels, or with a few."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hesstune.checks import integer_labels, one_of
from hesstune.errors import ConfigError, NoiseMatrixError
from hesstune.noise.estimate.em import latent_truth_estimate, with_trust
from hesstune.noise.estimate.fit import calibrate, log_likelihoods, well_conditioned
from hesstune.noise.estimate.holdout import ConfidenceSet, confidence_set, holdout
from hesstune.noise.estimate.labelmodel import from_posterior
from hesstune.noise.estimate.posteriors import confident
from hesstune.noise.estimate.record import Estimate
from hesstune.noise.estimate.request import ESTIMATORS

__all__ = [
    "ESTIMATORS",
    "ConfidenceSet",
    "Estimate",
    "calibrate",
    "confidence_set",
    "confident",
    "estimate_noise",
    "from_posterior",
    "holdout",
    "well_conditioned",
]

# A label model whose noise rate exceeds that of features by more has lost the classes.
COLLAPSED = 0.15


def estimate_noise(
    probs: ArrayLike,
    labels: ArrayLike,
    method: str = "auto",
    *,
    features: ArrayLike | None = None,
    posterior: ArrayLike | None = None,
    clean: tuple[ArrayLike, ArrayLike] | None = None,
    seed: int = 0,
    errors: bool = True,
) -> Estimate:
    """Estimate the noise matrix from given labels.

    The result is smoothed to ((1 − λ)F + λI), with the least λ that its condition number allows, and for
    `confident` the likelihood of the given labels.

    Args:
        probs: g(x)[j] = P(given label = j | x), (N, K), out of sample.
        labels: (N,) given labels.
        method: One of ESTIMATORS. `em` uses features, `confident` the probabilities, `labelmodel` votes and
            `holdout` human-checked labels. `auto` is `holdout` if there are human-checked labels; with
            features `labelmodel` if there are votes and features see about as much noise, else `em`; and
            otherwise `confident`.
        features: (N, D), for `em`.
        posterior: P(true | votes), (N, K), of a label model, for `labelmodel`.
        clean: (rows, true labels) of human-checked examples, for `holdout`.
        seed: Seed of the folds and draws of `em`.
        errors: Whether `em` adds bootstrap errors and a test, which take as long again.

    Raises:
        ConfigError: If the method is unknown, or lacks what it needs.
        NoiseMatrixError: If the estimate is singular even after smoothing.

    Example:
        >>> g = np.array([[0.8, 0.2], [0.3, 0.7]] * 50)
        >>> estimate_noise(g, np.arange(100) % 2, "confident").matrix.k
        2
    """
    one_of("estimator", method, ESTIMATORS)
    g, temperature = calibrate(probs, labels)
    n, k = g.shape
    given = integer_labels(labels, k, "noisy labels")
    needs = {
        "em": (features, "features"),
        "labelmodel": (posterior, "votes"),
        "holdout": (clean, "human-checked labels"),
    }
    if method in needs and needs[method][0] is None:
        raise ConfigError(f"the estimator {method} needs {needs[method][1]}; give them, or choose confident")

    def make(name: str) -> Estimate:
        if name == "em" and features is not None:
            return latent_truth_estimate(features, given, k, seed)
        if name == "labelmodel" and posterior is not None:
            return from_posterior(posterior, given)
        if name == "holdout" and clean is not None:
            rows, true = np.asarray(clean[0], dtype=np.int64), clean[1]
            prior = None if posterior is None else from_posterior(posterior, given).matrix
            return holdout(true, given[rows], k, prior=prior)
        return Estimate(confident(g, given), "confident", n)

    available = {name for name, (given_input, _) in needs.items() if given_input is not None}
    found = _best_informed(make, available) if method == "auto" else make(method)
    if found.method == "em" and features is not None and errors:
        found = with_trust(found, features, given, seed)
    return _finished(found, g, given, temperature)


def _best_informed(make: Callable[[str], Estimate], available: set[str]) -> Estimate:
    """Return the estimate of `auto`, with the reason as its first note."""
    if "holdout" in available:
        name, why = "holdout", "since there are human-checked labels"
    elif "em" not in available:
        name, why = "confident", "since there are probabilities alone"
    else:
        name, why = "em", "which chooses by features between correct labels and noise by class"
    found = make(name)
    if name == "em" and "labelmodel" in available:
        voted = make("labelmodel")
        why = f"since votes say a rate of {voted.matrix.rate:.2f} and features {found.matrix.rate:.2f}"
        if voted.matrix.rate <= found.matrix.rate + COLLAPSED:
            found, why = voted, "since there are votes"
    return replace(found, notes=(f"auto: {found.method}, {why}", *found.notes))


def _finished(
    found: Estimate, g: NDArray[np.float64], given: NDArray[np.int64], temperature: float
) -> Estimate:
    by_probabilities = found.method == "confident"
    matrix, ridge = well_conditioned(found.matrix, *((g, given) if by_probabilities else ()))
    if matrix.condition == float("inf"):
        raise NoiseMatrixError(
            f"the estimate by {found.method} is singular even after smoothing; choose another estimator"
        )
    return replace(
        found,
        matrix=matrix,
        smoothing=ridge,
        temperature=temperature,
        log_likelihood=float(log_likelihoods(matrix, g, given).mean()),
        stderr=None if found.stderr is None else (1 - ridge) * found.stderr,
    )
