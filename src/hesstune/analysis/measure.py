"""Measure a finished run: its network, its reference and the examples it was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hesstune.analysis.complexity import Margins, complexity_measures, margins_of
from hesstune.analysis.gather_measure import merged, own_batches
from hesstune.curvature.measure import measure
from hesstune.curvature.result import Measure
from hesstune.curvature.stability import Stability, noise_stability_table
from hesstune.data.examples import Task
from hesstune.forward import Inputs
from hesstune.inputs.batches import ModelInputs, make_inputs
from hesstune.inputs.image_inputs import to_channels_last
from hesstune.methods import method_class
from hesstune.runs.records import MEASURE, STABILITY, MeasureRecord, StabilityRecord, StabilityRow
from hesstune.runs.run import Run
from hesstune.runtime.device import pick_device
from hesstune.runtime.distributed import all_reduce_sum, on_main_process, start_ranks, world
from hesstune.storage.stored import write_record

__all__ = ["SIGMAS", "measure_run", "stability_of_run"]

BATCH = 32
# The loss of a fine-tuned network begins to move at the first and is lost at the last.
SIGMAS = (0.001, 0.002, 0.005, 0.01, 0.02)


def measure_run(
    run: Run,
    *,
    layers: Sequence[str] | None = None,
    examples: str = "max",
    max_examples: int | None = None,
    trace: bool | Literal["exact"] = "exact",
    mean_sample: int = 8,
    memory_mib: float = 512.0,
    device: str = "auto",
    progress: Callable[[int, int, str], None] | None = None,
    **options: Any,
) -> Measure:
    """Measure every layer of a finished run on its training examples; write the result beside it.

    Args:
        run: A finished run; measure.json and measure.safetensors are written to its folder.
        layers: Names or patterns of layers; all where None.
        examples: `max` or `all`, see `hesstune.measure`.
        max_examples: At most so many training examples, drawn uniformly.
        trace: Also Tr H_i⁺: of all layers, of exact ones only (`exact`), or not.
        mean_sample: Examples drawn at random for the means of layers whose maximum is screened.
        memory_mib: Memory for activations.
        device: Where to compute.
        progress: Called with (examples done, examples in all, text).
        **options: Passed on to `hesstune.measure`.

    Raises:
        RunError: If the run has not finished, or its data has changed since.
    """
    setting = _setting(run, max_examples, device)
    rows, task = setting.rows, setting.task
    shown = None if progress is None else lambda done: progress(done, len(rows) // world(), "examples")
    found = measure(
        setting.model,
        run.reference(),  # differences are taken a layer at a time, so it need not be on the device
        setting.batches(),
        layers=layers,
        examples="all" if examples == "all" else "max",
        trace=trace,
        mean_sample=mean_sample,
        memory_mib=memory_mib,
        progress=shown,
        plan_on=setting.first(),
        **options,
    )
    found = merged(found, setting.order)
    if len(rows) < len(task.train):
        found.notes.append(f"measured on {len(rows)} of {len(task.train)} training examples, drawn uniformly")
    margins = margins_of(setting.model, setting.batches())
    on_main_process(lambda: _write(run, found, setting, margins))
    return found


def _write(run: Run, found: Measure, setting: _Setting, margins: Margins) -> None:
    """Write the measurement, and the older measures, which a forward pass and the weights give."""
    task, rows = setting.task, setting.rows
    reference, radii = run.reference(), run.outcome.radii
    noise = run.noise_matrix if method_class(run.config.method).uses_noise() else None
    others = complexity_measures(found, setting.model, reference, margins, len(task.train), radii, noise)
    found.others = [other.to_dict() for other in others]
    found.save(run.path, n=len(task.train))
    if len(rows) < len(task.train):  # which examples the rows of measure.safetensors are
        record = MeasureRecord(**found.to_dict(len(task.train)), ids=[task.train.ids[i] for i in rows])
        write_record(run.path / MEASURE, record)


def stability_of_run(
    run: Run,
    sigmas: Sequence[float] = SIGMAS,
    *,
    layers: Sequence[str] | None = None,
    max_examples: int | None = None,
    samples: int = 16,
    device: str = "auto",
) -> list[Stability]:
    """Measure a finished run's noise stability over a range of σ; write noise_stability.json beside it.

    Arguments are those of `measure_run` and of `hesstune.noise_stability`.

    Raises:
        RunError: If the run has not finished, or its data has changed since.
    """
    setting = _setting(run, max_examples, device)
    table = noise_stability_table(
        setting.model,
        setting.batches(),
        sigmas,
        samples,
        run.config.seed,
        layers=layers,
        all_reduce_sum=all_reduce_sum,
    )
    lines = [StabilityRow(**row.to_dict()) for row in table]
    record = StabilityRecord(examples=len(setting.rows), rows=lines)
    on_main_process(lambda: write_record(run.path / STABILITY, record))
    return table


@dataclass(frozen=True)
class _Setting:
    """A finished run's network and (some of) the examples it was trained on, as labelled then.

    Several processes share the examples: `own` are the batches of this one, `order` all of them.
    """

    model: nn.Module
    feed: ModelInputs
    task: Task
    rows: NDArray[np.int64]
    own: list[NDArray[np.int64]]
    order: list[NDArray[np.int64]]
    device: torch.device

    def first(self) -> Inputs:
        """The first batch of all, on every rank."""
        return self.feed.inputs(self.rows[self.order[0]])

    def batches(self) -> Iterator[tuple[Inputs, torch.Tensor]]:
        """This rank's batches."""
        assert self.task.train.labels is not None
        labels = torch.from_numpy(self.task.train.labels)
        for batch in self.own:
            some = self.rows[batch]  # in their own order, as the result's rows are
            yield self.feed.inputs(some), labels[some]


def _setting(run: Run, max_examples: int | None, device: str) -> _Setting:
    start_ranks()
    _ = run.outcome
    task = run.task()
    target = pick_device(device)
    loaded = run.loaded()
    to_channels_last(loaded.model, target)
    rows = np.arange(len(task.train))
    if max_examples is not None and max_examples < len(rows):
        rows = np.sort(np.random.default_rng(run.config.seed).permutation(rows)[:max_examples])
    feed = make_inputs(task.train, loaded, target, max_length=run.config.max_length)
    return _Setting(loaded.model, feed, task, rows, *own_batches(len(rows), BATCH), target)
