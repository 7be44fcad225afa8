"""Measure a finished run: its network, its reference and the examples it was trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hesstune.analysis.subject import Subject, drawn_rows
from hesstune.curvature.result import Measure
from hesstune.curvature.stability import Stability
from hesstune.data.examples import Examples, Task
from hesstune.inputs.batches import make_inputs, to_channels_last
from hesstune.models.load import LoadedModel
from hesstune.options import make_options, takes_options
from hesstune.reference import Reference
from hesstune.runs.measure_records import StabilityRecord, StabilityRow
from hesstune.runs.options.analysis import MeasureOptions, SampleOptions, StabilityOptions
from hesstune.runs.records import STABILITY
from hesstune.runs.run import Run
from hesstune.runtime.device import pick_device
from hesstune.runtime.distributed import joined_ranks, on_main_process, world
from hesstune.storage.stored import write_record

__all__ = ["SIGMAS", "measure_run", "stability_of_run"]

NAMES = {"val": "validation", "train": "training"}
NO_VALIDATION = "the run has no validation examples"
# The loss of a fine-tuned network begins to move at the first and is lost at the last.
SIGMAS = (0.001, 0.002, 0.005, 0.01, 0.02)


@takes_options(MeasureOptions)
@joined_ranks()
def measure_run(
    run: Run,
    *,
    progress: Callable[[int, int, str], None] | None = None,
    on_forecast: Callable[[str], None] | None = None,
    **options: Any,
) -> Measure:
    """Measure every layer of a finished run, by default on its validation examples; write it beside the run.

    Args:
        run: A finished run; measure.json and measure.safetensors are written to its folder.
        progress: Called with (examples done, examples in all, text).
        on_forecast: Called with the memory forecast before the first example is measured.
        **options: Options of `MeasureOptions`, by name.

    Raises:
        ConfigError: If an option is wrong.
        RunError: If the run has not finished, or its data has changed since.
    """
    asked = make_options(MeasureOptions, options)
    opened = _Opened.of(run, asked)
    part = "val" if asked.part == "val" and len(opened.task.val) else "train"
    subject, examples = opened.subject(part), opened.examples(part)
    rows = subject.rows
    own = max(1, len(rows) // world())
    own_options = set(MeasureOptions.model_fields) - {"part", "max_examples", "device"}
    found = subject.measure(
        **{name: getattr(asked, name) for name in own_options},
        progress=None if progress is None else lambda done: progress(done, own, "examples"),
        on_forecast=on_forecast,
    )
    if part != asked.part:
        found.notes.append(f"{NO_VALIDATION}: measured on the training examples")
    if len(rows) < len(examples):
        found.notes.append(
            f"measured on {len(rows)} of {len(examples)} {NAMES[part]} examples, drawn uniformly"
        )
    # Which examples the rows of measure.safetensors are.
    ids = [examples.ids[i] for i in rows] if len(rows) < len(examples) else None
    on_main_process(lambda: found.save(run.path, n=len(opened.task.train), part=part, ids=ids))
    return found


@takes_options(StabilityOptions)
@joined_ranks()
def stability_of_run(run: Run, sigmas: Sequence[float] = SIGMAS, **options: Any) -> list[Stability]:
    """Measure a finished run's noise stability over a range of σ; write noise_stability.json beside it.

    Args:
        run: A finished run.
        sigmas: Standard deviations of the noise on the weights.
        **options: Options of `StabilityOptions`, by name.

    Raises:
        ConfigError: If an option is wrong.
        RunError: If the run has not finished, or its data has changed since.
    """
    asked = make_options(StabilityOptions, options)
    subject = _Opened.of(run, asked).subject("train")
    table = subject.stability(sigmas, asked.samples, run.config.seed, layers=asked.layers)
    lines = [StabilityRow(**row.to_dict()) for row in table]
    record = StabilityRecord(examples=len(subject.rows), rows=lines)
    on_main_process(lambda: write_record(run.path / STABILITY, record))
    return table


@dataclass(frozen=True)
class _Opened:
    """A finished run's network, its reference and its examples, read once for all that is measured."""

    run: Run
    asked: SampleOptions
    task: Task
    loaded: LoadedModel
    reference: Reference
    device: torch.device

    @classmethod
    def of(cls, run: Run, asked: SampleOptions) -> _Opened:
        """Read a run; its labels are those of training."""
        _ = run.outcome
        task, target, loaded = run.task(), pick_device(asked.device), run.loaded()
        to_channels_last(loaded.model, target)
        # Differences are taken a layer at a time, so the reference need not be on the device.
        return cls(run, asked, task, loaded, run.reference(), target)

    def examples(self, part: str) -> Examples:
        """Return a part's examples."""
        return self.task.val if part == "val" else self.task.train

    def subject(self, part: str) -> Subject:
        """Return the network with (some of) a part's examples."""
        examples, seed = self.examples(part), self.run.config.seed
        assert examples.labels is not None
        rows = drawn_rows(len(examples), self.asked.max_examples, seed)
        feed = make_inputs(examples, self.loaded, self.device, max_length=self.run.config.max_length)
        return Subject(self.loaded.model, self.reference, feed, examples.labels, rows)
