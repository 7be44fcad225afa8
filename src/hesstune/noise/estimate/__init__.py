"""Estimate the noise matrix without clean labels, or with a few."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hesstune.checks import integer_labels, one_of
from hesstune.errors import ConfigError, NoiseMatrixError
from hesstune.noise.estimate.em import latent_truth_estimate, with_trust
from hesstune.noise.estimate.fit import best_by_likelihood, calibrate, log_likelihoods, well_conditioned
from hesstune.noise.estimate.holdout import ConfidenceSet, confidence_set, holdout
from hesstune.noise.estimate.labelmodel import from_posterior
from hesstune.noise.estimate.posteriors import (
    anchor,
    check_probabilities,
    confident,
    dual_t,
    smoothable_dual_t,
)
from hesstune.noise.estimate.record import Estimate
from hesstune.noise.estimate.request import ESTIMATORS, PERCENTILE
from hesstune.noise.estimate.volmin import volmin

__all__ = [
    "ESTIMATORS",
    "ConfidenceSet",
    "Estimate",
    "anchor",
    "calibrate",
    "confidence_set",
    "confident",
    "dual_t",
    "estimate_noise",
    "from_posterior",
    "holdout",
    "tempered_dual_t",
    "volmin",
    "well_conditioned",
]

# A label model that says so much more noise than features do has collapsed: its matrix is not believed.
COLLAPSED = 0.15
TEMPERS = (1.0, 0.75, 0.5, 0.25, 0.0)


def estimate_noise(
    probs: ArrayLike,
    labels: ArrayLike,
    method: str = "auto",
    *,
    features: ArrayLike | None = None,
    posterior: ArrayLike | None = None,
    clean: tuple[ArrayLike, ArrayLike] | None = None,
    percentile: float = PERCENTILE,
    seed: int = 0,
    errors: bool = True,
) -> Estimate:
    """Estimate the noise matrix from out-of-sample probabilities of the noisy labels.

    The probabilities are calibrated by a temperature on the noisy labels, the estimator is applied,
    and its matrix is smoothed towards the identity as little as the noisy likelihood allows (for
    `holdout` and `labelmodel`, as little as the condition number allows).

    Args:
        probs: g(x)[j] = P(noisy = j | x), (N, K), out of sample: probabilities of a network on its
            own training examples ruin every estimator.
        labels: Noisy labels, (N,).
        method: One of ESTIMATORS. `auto` takes `holdout` where there are checked labels; with features
            `labelmodel` where there are votes, unless features see far less noise, else `em`; and where
            probabilities are all there is, among the matrices whose noisy likelihood is within one standard
            error of the best, that of least volume |det F|: likelihood alone never speaks for noise.
        features: (N, D), for `em` and `volmin`.
        posterior: P(true | votes), (N, K), of a label model, for `labelmodel`.
        clean: (rows, true labels) of examples a person has checked, for `holdout`.
        percentile: For `anchor`.
        seed: Of the folds and draws of `em`.
        errors: Whether `em` has a bootstrap's errors, and a test, beside it: they take as long again.

    Raises:
        ConfigError: If the method is unknown, or lacks what it needs.
        NoiseMatrixError: If the estimate cannot be inverted even after smoothing.

    Example:
        >>> g = np.array([[0.8, 0.2], [0.3, 0.7]] * 50)
        >>> estimate_noise(g, np.arange(100) % 2, "anchor").matrix.k
        2
    """
    one_of("estimator", method, ESTIMATORS)
    g, temperature = calibrate(probs, labels)
    given = integer_labels(labels, g.shape[1], "noisy labels")
    makers = _makers(g, given, features, posterior, clean, percentile, seed)
    if method == "auto":
        chosen = _auto(makers, g, given, temperature)
        if errors and features is not None and chosen.method == "em":
            return with_trust(chosen, features, given, seed)
        return chosen
    if method not in makers:
        needs = {"em": "features", "volmin": "features", "labelmodel": "votes", "holdout": "clean labels"}[
            method
        ]
        raise ConfigError(f"the estimator {method} needs {needs}; give them, or choose anchor or dual_t")
    found = makers[method]()
    if method == "em" and features is not None and errors:
        found = with_trust(found, features, given, seed)
    return _finished(found, g, given, temperature)


Maker = Callable[[], Estimate]


def _makers(
    g: NDArray[np.float64],
    given: NDArray[np.int64],
    features: ArrayLike | None,
    posterior: ArrayLike | None,
    clean: tuple[ArrayLike, ArrayLike] | None,
    percentile: float,
    seed: int,
) -> dict[str, Maker]:
    n, k = g.shape
    makers: dict[str, Maker] = {
        "anchor": lambda: Estimate(anchor(g, percentile), "anchor", n),
        "dual_t": lambda: tempered_dual_t(g, given),
        "confident": lambda: Estimate(confident(g, given), "confident", n),
    }
    if features is not None:
        makers["em"] = lambda: latent_truth_estimate(features, given, k, seed)
        makers["volmin"] = lambda: Estimate(volmin(features, given, k), "volmin", n)
    if posterior is not None:
        makers["labelmodel"] = lambda: from_posterior(posterior, given)
    if clean is not None:
        rows, true = np.asarray(clean[0], dtype=np.int64), clean[1]
        prior = None if posterior is None else from_posterior(posterior, given).matrix
        makers["holdout"] = lambda: holdout(true, given[rows], k, prior=prior)
    return makers


def tempered_dual_t(probs: ArrayLike, labels: ArrayLike) -> Estimate:
    """Estimate by `dual_t` with the weight of T♣ that the noisy likelihood allows.

    Of the weights 1 (as published), 3/4, 1/2, 1/4 and 0, the largest whose matrix is within one
    standard error of the best likelihood: F² encloses fewer probabilities than F, and loses.
    """
    g = check_probabilities(probs)
    matrices = [smoothable_dual_t(g, labels, weight) for weight in TEMPERS]
    near, _ = best_by_likelihood(matrices, g, labels)
    at = near[0] if near else len(TEMPERS) - 1
    return Estimate(matrices[at], "dual_t", len(g), details={"weight": TEMPERS[at]})


def _finished(
    found: Estimate, g: NDArray[np.float64], given: NDArray[np.int64], temperature: float
) -> Estimate:
    if found.method in ("em", "holdout", "labelmodel"):
        # These know more than the probabilities; judged by likelihood, they were smoothed to nothing.
        matrix, ridge = well_conditioned(found.matrix)
    else:
        matrix, ridge = well_conditioned(found.matrix, g, given)
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


def _informed(makers: dict[str, Maker]) -> tuple[Estimate, str] | None:
    """Return the estimate that knows most, and why it is taken; None where probabilities are all there is."""
    if "holdout" in makers:
        return makers["holdout"](), "since there are clean labels"
    if "em" not in makers:
        return None
    em = makers["em"]()
    if "labelmodel" not in makers:
        return em, "which chooses by features among believing the labels and noise by class"
    voted = makers["labelmodel"]()
    if voted.matrix.rate <= em.matrix.rate + COLLAPSED:
        return voted, "since there are votes"
    why = f"since votes say a rate of {voted.matrix.rate:.2f} and features {em.matrix.rate:.2f}"
    return em, why


def _auto(
    makers: dict[str, Maker], g: NDArray[np.float64], given: NDArray[np.int64], temperature: float
) -> Estimate:
    if informed := _informed(makers):
        chosen, why = informed
        done = _finished(chosen, g, given, temperature)
        return replace(done, notes=(f"auto: {chosen.method}, {why}", *done.notes))
    found: dict[str, Estimate] = {}
    failed: list[str] = []
    for name, make in makers.items():
        try:
            found[name] = _finished(make(), g, given, temperature)
        except (NoiseMatrixError, ImportError) as error:
            failed.append(f"{name} left out: {error}")
    if not found:
        raise NoiseMatrixError(f"no estimator could be used ({'; '.join(failed)})")
    names = list(found)
    near, means = best_by_likelihood([found[n].matrix for n in names], g, given)
    volumes = [abs(float(np.linalg.det(found[n].matrix.array))) for n in names]
    at = min(near or range(len(names)), key=lambda i: volumes[i])
    shown = ", ".join(
        f"{n} {'-' if m is None else format(m, '.4f')}" for n, m in zip(names, means, strict=True)
    )
    why = (
        f"auto: {names[at]}, of least volume among those within one standard error of the best mean "
        f"log-likelihood of held-out noisy labels ({shown})"
    )
    details: dict[str, Any] = {
        **found[names[at]].details,
        "candidates": {
            n: {"log_likelihood": m, "volume": v} for n, m, v in zip(names, means, volumes, strict=True)
        },
    }
    return replace(found[names[at]], notes=(why, *failed, *found[names[at]].notes), details=details)
