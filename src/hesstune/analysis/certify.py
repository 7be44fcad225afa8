"""Certify a finished run: its network, its reference and the examples it was trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hesstune.analysis.subject import InputExamples, Subject
from hesstune.analysis.trained_prior import Centred, with_trained_prior
from hesstune.bounds.noisy import NoiseConfidenceSet
from hesstune.bounds.prior import head_ratios, random_parameters
from hesstune.bounds.record import Certificate
from hesstune.data.clean import read_clean_labels
from hesstune.data.examples import Examples, Task
from hesstune.errors import ConfigError, DataError
from hesstune.inputs.batches import make_inputs
from hesstune.inputs.image_inputs import to_channels_last
from hesstune.models.load import LoadedModel
from hesstune.models.train_parts import freeze
from hesstune.noise.instance import instance_rate
from hesstune.options import make_options, takes_options
from hesstune.runs.config import FinetuneConfig
from hesstune.runs.options.analysis import CertifyOptions
from hesstune.runs.records import CERTIFICATE
from hesstune.runs.run import Run
from hesstune.runs.task import injected_noise
from hesstune.runtime.device import pick_device
from hesstune.runtime.distributed import on_main_process, rank, start_ranks
from hesstune.storage.atomic import write_json

__all__ = ["Story", "certify_run", "noise_story", "story_of"]

# The share of δ for the confidence set of a noise matrix that a clean sample estimates.
CLEAN_SAMPLE_SHARE = 0.2
BLOCK = 32


@dataclass(frozen=True)
class Story:
    """What is known of the labels' noise, and what the run did with its examples.

    Attributes:
        noise_matrix: F, a confidence set for it, or None where labels count as true.
        noise_is: How it is known, as of `hesstune.certify`.
        assumptions: What the certificate takes for true.
        leaks: Choices that were made with the examples, which it refuses.
        rows: The training examples that it may count on.
    """

    noise_matrix: Any
    noise_is: str
    assumptions: list[str]
    leaks: list[str]
    rows: NDArray[np.int64]


@takes_options(CertifyOptions)
def certify_run(
    run: Run, *, progress: Callable[[int, int, str], None] | None = None, **options: Any
) -> Certificate:
    """Certify a finished run on the examples it was trained on; write certificate.json to its folder.

    Args:
        run: A finished run.
        progress: Called with (steps done, steps in all, text).
        **options: Options of `CertifyOptions`, by name.

    Raises:
        ConfigError: If an option is wrong.
        HesstuneError: If the run has not finished, or an assumption of the certificate fails.
    """
    asked = make_options(CertifyOptions, options)
    start_ranks()
    _ = run.outcome
    task = run.task()
    target = pick_device(asked.device)
    story = story_of(run, task, asked)
    if story.noise_matrix is None and asked.noise_method != "tightest":
        raise ConfigError("--noise-method is for noisy labels, and this run's count as true; leave it out")
    centred = with_trained_prior(run, task, story.rows, asked.prior_fraction, asked.seed, target, progress)
    loaded = centred.loaded
    to_channels_last(loaded.model, target)
    freeze(loaded.model, run.config.train, loaded.head)
    assert task.train.labels is not None
    feed = make_inputs(task.train, loaded, target, max_length=run.config.max_length)
    found = Subject(
        loaded.model, centred.reference.to(target), feed, task.train.labels, centred.rows
    ).certify(
        centred.rows,
        delta=asked.delta,
        noise_matrix=story.noise_matrix,
        ratios=head_ratios(list(random_parameters(loaded.model)), loaded.head),
        posterior=_known_posterior(loaded.model, centred.posterior),
        noise_method=asked.noise_method,
        noise_is=story.noise_is,
        draws=asked.draws,
        block_size=BLOCK,
        seed=asked.seed,
        prior_data=_prior_data(task, centred, loaded, target, run.config.max_length),
        held_out=_held_out(task, loaded, target, run.config.max_length),
        repeats=asked.repeats,
        leaks=story.leaks,
        assumptions=story.assumptions,
        diagnostic=asked.diagnostic,
        progress=progress if rank() == 0 else None,
    )
    on_main_process(lambda: write_json(run.path / CERTIFICATE, found.to_dict()))
    return found


def _fed(
    part: Examples, loaded: LoadedModel, device: torch.device, max_length: int, rows: NDArray[np.int64]
) -> InputExamples:
    assert part.labels is not None
    return InputExamples(make_inputs(part, loaded, device, max_length=max_length), rows, part.labels)


def _held_out(task: Task, loaded: LoadedModel, device: torch.device, max_length: int) -> InputExamples | None:
    """Return the test examples, whose labels are never corrupted."""
    rows = np.arange(len(task.test))
    return _fed(task.test, loaded, device, max_length, rows) if len(rows) else None


def _prior_data(
    task: Task, centred: Centred, loaded: LoadedModel, device: torch.device, max_length: int
) -> InputExamples | None:
    """Return all examples that trained the prior or selected it."""
    if centred.prior_rows is None:
        return None
    prior = task.train.take(centred.prior_rows)
    assert prior.labels is not None
    assert task.val.labels is not None
    # Parts of one task share their source.
    every = Examples(
        prior.source,
        np.concatenate([prior.rows, task.val.rows]),
        [*prior.ids, *task.val.ids],
        np.concatenate([prior.labels, task.val.labels]),
    )
    return _fed(every, loaded, device, max_length, np.arange(len(every)))


def _known_posterior(model: nn.Module, posterior: dict[str, float] | None) -> dict[str, float] | None:
    if posterior is None:
        return None
    trained = random_parameters(model)
    return {name: sigma for name, sigma in posterior.items() if name in trained}


def story_of(run: Run, task: Task, asked: CertifyOptions) -> Story:
    """Read from the configuration what is known of the noise, and what used the examples.

    Raises:
        DataError: If no noise matrix can be told for the labels.
    """
    config = run.config
    leaks = [
        name
        for name, used in (
            ("normalisation", bool(config.mean or config.std)),
            ("split", task.split == "stratified"),
            ("batch_norm", config.batch_norm == "adapt"),
        )
        if used and name not in asked.vouch
    ]
    assumptions = [f"you vouch that {name} was chosen without these examples" for name in asked.vouch]
    if config.weights:
        assumptions.append(f"the weights in {config.weights} were trained on other examples")
    rows = np.arange(len(task.train))
    noise_is = noise_story(config, task, asked.noise_is)
    if asked.clean_sample is not None:
        noise, rows = _from_clean_sample(task, asked.clean_sample, asked.delta * CLEAN_SAMPLE_SHARE)
        # Its confidence set stands for an estimate; that noise depends on the input it cannot mend.
        known = "instance_dependent" if noise_is == "instance_dependent" else "known"
        return Story(noise, known, assumptions, leaks, rows)
    if noise_is == "none":
        return Story(None, "known", [*assumptions, "the given labels are the true ones"], leaks, rows)
    believed = injected_noise(config, task) if config.inject_noise else run.noise_matrix
    if believed is None:
        why = (
            "labels from votes depend on the input, which no noise matrix tells; certify on clean labels"
            if task.train.votes is not None
            else "train with --noise-matrix, or give --clean-sample"
        )
        raise DataError(f"the run in {run.path} was told no noise matrix for --noise-is {noise_is}: {why}")
    return Story(believed, noise_is, assumptions, leaks, rows)


def noise_story(config: FinetuneConfig, task: Task, told: str = "auto") -> str:
    """Return how the noise of a run's labels is known: `none`, or one of NOISE_KNOWLEDGE.

    Args:
        config: The run's configuration.
        task: Its examples, as labelled.
        told: What the user says; `auto` reads it from the configuration.

    Raises:
        DataError: If the user says otherwise than the run itself shows.
    """
    if told == "none":
        if config.inject_noise:
            raise DataError(
                f"the run put noise into its labels (--inject-noise {config.inject_noise}), so they are not "
                "the true ones; leave --noise-is out"
            )
        return told
    if task.train.votes is not None or instance_rate(config.inject_noise) is not None:
        return "instance_dependent"  # votes err on the same hard examples
    if task.train.clean is not None:
        raise DataError(
            "some labels of the run were checked by a person and others not, so no one noise matrix holds "
            "for all; give --noise-is none if all labels are now true"
        )
    estimated = (config.noise_matrix or "").startswith("estimate") and not config.inject_noise
    if told in ("auto", "known") and estimated:
        return "estimated"
    if told == "auto":
        return "known" if config.inject_noise or config.noise_matrix else "none"
    return told


def _from_clean_sample(
    task: Task, path: str | Path, delta: float
) -> tuple[NoiseConfidenceSet, NDArray[np.int64]]:
    """Count (true, given) labels of the sample; return a confidence set, and the rows outside of it."""
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
    counts = np.zeros((task.k, task.k), np.int64)
    np.add.at(counts, (np.array(list(true.values()), np.int64), task.train.labels[rows]), 1)
    return NoiseConfidenceSet(counts, delta), np.setdiff1d(np.arange(len(task.train)), rows)
