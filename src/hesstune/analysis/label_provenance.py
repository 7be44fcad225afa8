"""What is known about a run's labels, and tests of class-conditional noise."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.analysis.measure import start_network
from hesstune.bounds.noisy import Noise, centre_of, check_floor, read_noise
from hesstune.bounds.record import Certificate
from hesstune.bounds.sample import Conditions
from hesstune.data.examples import KEPT, Examples, Task
from hesstune.data.labels import read_clean_labels, source_notes
from hesstune.data.reading import DRAWN
from hesstune.errors import DataError, HesstuneError, listed
from hesstune.inputs.features import frozen_features
from hesstune.noise.confidence import NoiseConfidenceSet
from hesstune.noise.estimate import pair_counts, simplex_projection, well_conditioned
from hesstune.noise.instance import Conditional, class_conditional, instance_rate, sure_half
from hesstune.noise.latent.copies import example_groups
from hesstune.noise.matrix import NoiseMatrix
from hesstune.noise.probes import CROSS_FIT_STRENGTHS, cross_fit, fit_probe, reduced_features
from hesstune.runs.loading import injected_noise
from hesstune.runs.options import CertifyOptions, NoiseOptions
from hesstune.runs.run import Run

# The share of δ for the confidence set of a noise matrix that a clean sample estimates.
CLEAN_SAMPLE_SHARE = 0.2


@dataclass(frozen=True)
class LabelProvenance:
    """What is known about the labels' noise, and which choices used the examples."""

    noise_matrix: Any  # F, a confidence set for it, or None if labels count as true
    noise_is: str  # How it is known, as of `hesstune.certify`
    assumptions: list[str]  # Assumptions of the certificate
    leaks: list[str]  # Choices that were made with the examples; the certificate refuses them
    failures: list[str]  # Other conditions that do not hold, for a diagnostic
    rows: NDArray[np.int64]  # The training examples that the certificate may count on
    # How the test labels are known: `true`, `noisy` as the training labels are, or `unknown`.
    test_labels: str


def read_label_provenance(run: Run, task: Task, asked: CertifyOptions) -> LabelProvenance:
    """Read from a run what is known about the noise, and which choices used the examples."""
    config = run.config
    used = {
        "normalisation": bool(config.mean or config.std),
        "split": task.split in DRAWN,
        "batch_norm": config.batch_norm == "adapt",
    }
    leaks = [name for name, is_used in used.items() if is_used and name not in asked.vouch]
    assumptions, failures = _groups(run, task, asked)
    assumptions += [f"you vouch that {name} was chosen without these examples" for name in asked.vouch]
    for name, part in (("training", task.train), ("test", task.test)):
        assumptions += [f"labels: {note}" for note in source_notes(part, name)]
    if not task.train.has_model_labels and not task.test.has_model_labels:
        assumptions.append(
            "no example was left out or relabelled because of a model's prediction; plain labels do not "
            "show such a change"
        )
    noise_is = run_noise_knowledge(config, task, asked.noise_is, run.noise_matrix)
    if config.inject_noise:
        assumptions.append(
            f"the labels were true before --inject-noise {config.inject_noise}; the bound uses its matrix, "
            "whatever matrix the loss used"
        )
    test_labels = _test_labels(config, task, asked, noise_is)
    if test_labels == "true" and len(task.test) and noise_is != "none":
        assumptions.append("the test labels are the true ones")
    noise: Any = injected_noise(task, config, config.seed) if config.inject_noise else run.noise_matrix
    rows = np.arange(len(task.train))
    if asked.clean_sample is not None:
        noise, rows = _from_clean_sample(task, asked.clean_sample, asked.delta * CLEAN_SAMPLE_SHARE)
        # The confidence set replaces an estimate; it does not help if the noise depends on the input.
        noise_is = "instance_dependent" if noise_is == "instance_dependent" else "known"
    elif noise_is == "none":
        stated = "the given labels are the true ones"
        assumptions.append(f"you state that {stated}" if asked.noise_is == "none" else stated)
        noise, noise_is = None, "known"
    elif noise is None and noise_is != "instance_dependent":
        raise DataError(
            f"the run in {run.path} has no noise matrix for --noise-is {noise_is}: train with "
            "--noise-matrix, or give --clean-sample"
        )
    elif noise is None:  # no matrix is valid; the certificate is refused
        noise = NoiseMatrix.identity(task.k)
    return LabelProvenance(noise, noise_is, assumptions, leaks, failures, rows, test_labels)


def _groups(run: Run, task: Task, asked: CertifyOptions) -> tuple[list[str], list[str]]:
    """Return the assumptions on columns that may group the examples, and the failures of a diagnostic."""
    # A column that was removed after training still groups the examples.
    groups = {**run.facts.possible_groups, **task.possible_groups}
    if asked.no_groups:
        shared = f"the column {listed(groups)}" if groups else "any property"
        return [f"you state that rows that share a value of {shared} are independent draws"], []
    if not groups:
        return [], []
    name = next(iter(groups))
    error = DataError(
        "the data has columns whose values may group its rows ("
        f"{listed(f'{column}: {count} groups' for column, count in groups.items())}), and every bound needs "
        f"independent draws: keep one row a group; or state by --no-groups that rows that share {name} are "
        f"independent; or train with --split group:{name} for a test accuracy on new groups, without a "
        "certificate"
    )
    if not asked.diagnostic:
        raise error
    return [], [str(error)]


def run_noise_knowledge(
    options: NoiseOptions, task: Task, stated: str = "auto", matrix: NoiseMatrix | None = None
) -> str:
    """Return how the noise of a run's labels is known: `none`, or one of NOISE_KNOWLEDGE.

    `stated` is what the user states; `auto` reads it from the run's options. Labels of a label model are true
    only if the user states `none`. `matrix` is that of the run's loss, with its origin. If noise was
    injected, the bound uses the injected matrix, which is known. An estimated matrix that the user gave in a
    file still counts: it means that the labels were noisy before. An estimate that the run made itself does
    not count.
    """
    if stated == "none":
        if options.inject_noise:
            raise DataError(
                f"the run put noise into its labels (--inject-noise {options.inject_noise}), so they are not "
                "the true ones; leave --noise-is out"
            )
        return stated
    # Errors of votes, and of probabilities made from votes, occur on the same hard examples.
    if task.train.has_model_labels or instance_rate(options.inject_noise) is not None:
        return "instance_dependent"
    if task.train.clean is not None:
        raise DataError(
            "some labels of the run were checked by a person and others not, so no single noise matrix is "
            "valid for all; give --noise-is none if all labels are now true"
        )
    origin = "stated" if matrix is None else matrix.origin
    by_run = options.noise_matrix is None or options.noise_matrix.startswith("estimate")
    if options.noise_matrix is not None and by_run and origin == "stated":
        origin = "estimated"
    counts = not (options.inject_noise and by_run)
    if counts and stated in ("auto", "known") and origin in ("estimated", "instance_dependent"):
        return origin
    if stated == "auto":
        return "known" if options.inject_noise or options.noise_matrix else "none"
    return stated


def _test_labels(options: NoiseOptions, task: Task, asked: CertifyOptions, noise_is: str) -> str:
    """Return how the labels of the test part are known."""
    if asked.test_labels != "auto":
        return asked.test_labels
    part = task.test
    all_checked = part.clean is not None and bool(part.clean.all())
    if asked.noise_is == "none" or (all_checked and not part.count_source(KEPT)):
        return "true"
    if part.has_model_labels:
        return "unknown"
    if noise_is == "none" or options.inject_noise:
        return "true"  # noise goes into training and validation labels alone
    return "unknown" if noise_is == "instance_dependent" else "noisy"


def _from_clean_sample(
    task: Task, path: str | Path, delta: float
) -> tuple[NoiseConfidenceSet, NDArray[np.int64]]:
    """Count (true, given) labels of the sample; return a confidence set and the other rows."""
    assert task.train.labels is not None
    true = read_clean_labels(path, task.classes)
    place = {example: row for row, example in enumerate(task.train.ids)}
    missing = [example for example in true if example not in place]
    if missing:
        raise DataError(
            f"{path} names '{missing[0]}' ({len(missing)} in all), which is no training example of the run; "
            "ids are those of its labels.csv"
        )
    rows = np.array([place[example] for example in true], np.int64)
    counts = pair_counts(list(true.values()), task.train.labels[rows], task.k)
    return NoiseConfidenceSet(counts, delta), np.setdiff1d(np.arange(len(task.train)), rows)


# The shares of each half, the most confident predictions first, on which the noise floor is tested.
CONFIDENT = (1.0, 0.5, 0.25)
HALVES_KEY = 0x4A1F


def add_class_conditional_test(
    certificate: Certificate,
    run: Run,
    part: Examples,
    noise_matrix: Any,
    asked: CertifyOptions,
    device: torch.device,
) -> Certificate:
    """Test whether the noise of a bound's examples depends on their inputs, on features of the reference.

    The test of confident predictions can refuse the certificate. The permutation test is exact for true
    classes only: it also rejects if features mix the classes, so its result is only printed. Noise that
    hesstune injected depends on the true class alone and is not tested.
    """
    if noise_matrix is None:
        return certificate
    if run.config.inject_noise:
        text = "hesstune injected the noise by the true class alone; that is not tested"
        return certificate.replaced(assumptions=[*certificate.assumptions, text])
    assert part.labels is not None
    labels, k, noise = part.labels, len(run.classes), read_noise(noise_matrix)
    conditions, assumptions, numbers = Conditions(asked.diagnostic), list[str](), dict[str, float]()
    start = start_network(run, device)
    try:
        features = frozen_features(start, part, device, run.config.max_length).astype(np.float64)
        reduced = reduced_features(features, len(labels))
        groups = example_groups(features, part.copies)
        probs = cross_fit(features, labels, k, seed=asked.seed, groups=groups)
    except HesstuneError as error:
        assumptions.append(f"whether the noise depends on the input could not be tested: {error}")
    else:
        conditions.attempt(lambda: check_confident(reduced, labels, k, noise, asked.delta, asked.seed))
        true = part.true if part.clean is None else None
        matrix = NoiseMatrix(centre_of(noise))
        test = dependence_on_input(reduced, labels, probs, matrix, true, asked.seed)
        if test is None:
            assumptions.append("whether the noise depends on the input could not be tested: too few examples")
        else:
            numbers = {**asdict(test), "depends": float(test.depends)}
        if test is not None and test.depends:
            assumptions.append(
                "the noise depends on the true class alone although a permutation test rejects that (p = "
                f"{test.p_value:.2g}); the test also rejects if the features mix the classes. hesstune check "
                "and certify --checked-labels need no noise matrix"
            )
    return certificate.replaced(
        noise_dependence=numbers,
        assumptions=[*certificate.assumptions, *assumptions],
        failures=[*certificate.failures, *conditions.failures],
    )


def dependence_on_input(
    features: NDArray[np.float64],
    labels: NDArray[np.int64],
    probs: NDArray[np.float64],
    noise_matrix: NoiseMatrix,
    true: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> Conditional | None:
    """Test the labels within true classes, or within the most probable classes of confident examples.

    `probs`, (N, K), are out-of-sample probabilities of the given labels. None if every class is too small.
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
    noise: Noise,
    delta: float,
    seed: int = 0,
) -> None:
    """Test the noise floor on the most confident predictions of a probe trained on the other half.

    Under class-conditional noise the floor holds for any selection of inputs, so also for the inputs whose
    class is easiest. A matrix that overstates the noise there is refuted, even if it is right on average.
    Given the inputs, the labels of the halves are independent, so the tests are exact; their levels sum to
    at most the level of one test.
    """
    order = np.random.default_rng([seed, HALVES_KEY]).permutation(len(labels))
    first, second = np.array_split(order, 2)
    if not len(second):
        return
    for fitted, tested in ((first, second), (second, first)):
        probe = fit_probe(features[fitted], labels[fitted], k, strength=CROSS_FIT_STRENGTHS[1])
        probs = probe.probabilities(features[tested])
        ranked, guess = np.argsort(-probs.max(axis=1), kind="stable"), probs.argmax(axis=1)
        for share in CONFIDENT:
            some = ranked[: int(np.ceil(share * len(ranked)))]
            confusion = pair_counts(labels[tested[some]], guess[some], k)
            check_floor(confusion, noise, delta / (2 * len(CONFIDENT)), "a probe's most confident")
