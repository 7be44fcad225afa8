"""Certify a finished run: its network, its reference and the examples it was trained on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hesstune.analysis.label_story import story_of
from hesstune.analysis.subject import InputExamples, Subject
from hesstune.analysis.trained_prior import Centred, with_trained_prior
from hesstune.bounds.prior import head_ratios, random_parameters
from hesstune.bounds.record import Certificate
from hesstune.data.examples import Examples, Task
from hesstune.errors import ConfigError
from hesstune.inputs.batches import make_inputs
from hesstune.inputs.image_inputs import to_channels_last
from hesstune.models.load import LoadedModel
from hesstune.models.train_parts import freeze
from hesstune.options import make_options, takes_options
from hesstune.runs.options.analysis import CertifyOptions
from hesstune.runs.records import CERTIFICATE
from hesstune.runs.run import Run
from hesstune.runtime.device import pick_device
from hesstune.runtime.distributed import on_main_process, rank, start_ranks
from hesstune.storage.atomic import write_json

__all__ = ["certify_run"]

BLOCK = 32


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
        held_out_labels=story.test_labels,
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
    """Return the test examples; the run's story says what their labels are worth."""
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
