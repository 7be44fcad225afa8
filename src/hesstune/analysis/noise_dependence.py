"""Tests of the assumption that label noise depends on the true class alone, not on the input."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.bounds.conditions import Conditions
from hesstune.bounds.noisy import NoiseConfidenceSet
from hesstune.bounds.record import Certificate
from hesstune.bounds.refute import check_floor
from hesstune.data.examples import Examples
from hesstune.errors import DataError, HesstuneError
from hesstune.inputs.batches import to_channels_last
from hesstune.inputs.features import frozen_features
from hesstune.noise.estimate import simplex_projection, well_conditioned
from hesstune.noise.instance import Conditional, class_conditional, sure_half
from hesstune.noise.linear_probe import STRENGTHS, cross_fit, fit_probe, reduced_features
from hesstune.noise.matrix import NoiseMatrix
from hesstune.runs.options.analysis import CertifyOptions
from hesstune.runs.run import Run

__all__ = ["check_confident", "dependence_on_input", "tested_noise"]

# The shares of each half, the most confident predictions first, on which the noise floor is tested.
CONFIDENT = (1.0, 0.5, 0.25)
HALVES_KEY = 0x4A1F


def tested_noise(
    found: Certificate,
    run: Run,
    part: Examples,
    rows: NDArray[np.int64],
    noise_matrix: Any,
    asked: CertifyOptions,
    device: torch.device,
) -> Certificate:
    """Test whether the noise of a bound's examples depends on their inputs, on features of the reference.

    The test of confident predictions refuses. The permutation test is exact for true classes only: on digits
    it rejected up to 5 of 5 draws of class-conditional noise if blurred features mixed the classes, so its
    result is printed. Both see the bound's labels, and the bound stays as it is.

    Args:
        found: The certificate.
        run: A finished run.
        part: The examples that the rows belong to.
        rows: The examples that the bound counts on.
        noise_matrix: Their known matrix or `NoiseConfidenceSet`; None for true labels: nothing is tested.
        asked: The options.
        device: Where the features are computed.

    Returns:
        The certificate with the permutation test's numbers, or with a line on why it was not run.

    Raises:
        RefutedNoiseError: If the test of confident predictions rejects, unless a diagnostic is asked for.
    """
    if noise_matrix is None:
        return found
    conditions, numbers = Conditions(asked.diagnostic), dict[str, float]()
    told: list[str] = []
    try:
        test = _run_tests(conditions, run, part.take(rows), noise_matrix, asked, device)
    except _NotTestedError as error:
        told = [str(error)]
    else:
        numbers = {**asdict(test), "depends": float(test.depends)}
        if test.depends:
            told = [_rejected(test)]
    return replace(
        found,
        noise_dependence=numbers,
        assumptions=[*found.assumptions, *told],
        failures=[*found.failures, *conditions.failures],
    )


class _NotTestedError(Exception):
    """The permutation test was not run; the text says why."""


def _run_tests(
    conditions: Conditions,
    run: Run,
    part: Examples,
    noise_matrix: Any,
    asked: CertifyOptions,
    device: torch.device,
) -> Conditional:
    """Run both tests; report a refuted floor, and return the permutation test."""
    if run.config.inject_noise:
        raise _NotTestedError("hesstune injected the noise by the true class alone; that is not tested")
    assert part.labels is not None
    labels, k = part.labels, len(run.classes)
    loaded = run.loaded()
    run.reference().restore_(loaded.model)
    to_channels_last(loaded.model, device)
    try:
        features = frozen_features(loaded, part, device, run.config.max_length).astype(np.float64)
        reduced = reduced_features(features, len(labels))
        probs = cross_fit(features, labels, k, seed=asked.seed)
    except HesstuneError as error:
        why = f"whether the noise depends on the input could not be tested: {error}"
        raise _NotTestedError(why) from error
    conditions.attempt(lambda: check_confident(reduced, labels, k, noise_matrix, asked.delta, asked.seed))
    known = noise_matrix.centre if isinstance(noise_matrix, NoiseConfidenceSet) else noise_matrix
    matrix = NoiseMatrix(getattr(known, "array", known))
    true = part.true if part.clean is None else None
    test = dependence_on_input(reduced, labels, probs, matrix, true, asked.seed)
    if test is None:
        raise _NotTestedError("whether the noise depends on the input could not be tested: too few examples")
    return test


def _rejected(test: Conditional) -> str:
    return (
        "the noise depends on the true class alone although a permutation test rejects that (p = "
        f"{test.p_value:.2g}); the test also rejects if the features mix the classes. hesstune check and "
        "certify --checked need no noise matrix"
    )


def dependence_on_input(
    features: NDArray[np.float64],
    labels: NDArray[np.int64],
    probs: NDArray[np.float64],
    noise_matrix: NoiseMatrix,
    true: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> Conditional | None:
    """Test the labels within true classes, or within the most probable classes of the surest examples.

    Args:
        features: (N, C) reduced features.
        labels: (N,) given labels.
        probs: (N, K) out-of-sample probabilities of the given labels.
        noise_matrix: F, by which the probabilities of the true classes follow from them.
        true: (N,) true labels, if known.
        seed: Of the permutations.

    Returns:
        The test, or None if every class has too few examples.
    """
    if true is not None:
        rows, classes = np.arange(len(features)), true
    else:
        usable = well_conditioned(noise_matrix)[0]
        posterior = simplex_projection(probs @ usable.inverse)
        rows, classes = sure_half(posterior), posterior.argmax(axis=1)
    try:
        return class_conditional(features[rows], labels[rows], classes[rows], probs.shape[1], seed=seed)
    except DataError:
        return None


def check_confident(
    features: NDArray[np.float64],
    labels: NDArray[np.int64],
    k: int,
    noise_matrix: Any,
    delta: float,
    seed: int = 0,
) -> None:
    """Test the noise floor on the most confident predictions of a probe trained on the other half.

    Under class-conditional noise the floor holds for any selection of inputs, so also for the inputs whose
    class is easiest. Noise that is rarer there than the matrix says is refuted, even if the matrix is right
    on average. Given the inputs, the labels of the halves are independent: the tests are exact, and their
    union is paid.

    Args:
        features: (N, C) reduced features, made without the labels.
        labels: (N,) given labels.
        k: Number of classes.
        noise_matrix: As of `check_floor`.
        delta: As there.
        seed: Of the halves.

    Raises:
        RefutedNoiseError: If a test rejects.
    """
    order = np.random.default_rng([seed, HALVES_KEY]).permutation(len(labels))
    first, second = np.array_split(order, 2)
    if not len(second):
        return
    for fitted, judged in ((first, second), (second, first)):
        probe = fit_probe(features[fitted], labels[fitted], k, strength=STRENGTHS[len(STRENGTHS) // 2])
        probs = probe.probabilities(features[judged])
        ranked, guess = np.argsort(-probs.max(axis=1), kind="stable"), probs.argmax(axis=1)
        for share in CONFIDENT:
            some = ranked[: int(np.ceil(share * len(ranked)))]
            confusion = np.zeros((k, k), np.int64)
            np.add.at(confusion, (labels[judged[some]], guess[some]), 1)
            check_floor(confusion, noise_matrix, delta / (2 * len(CONFIDENT)), "a probe's most confident")
