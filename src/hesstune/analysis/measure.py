"""Measure a finished run: its network, its reference and the examples it was trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from hesstune.analysis.complexity import Margins, complexity_measures, margins_of
from hesstune.analysis.subject import Subject, drawn_rows
from hesstune.curvature.result import Measure
from hesstune.curvature.stability import Stability
from hesstune.data.examples import Task
from hesstune.inputs.batches import make_inputs
from hesstune.inputs.image_inputs import to_channels_last
from hesstune.methods import method_class
from hesstune.runs.records import MEASURE, STABILITY, MeasureRecord, StabilityRecord, StabilityRow
from hesstune.runs.run import Run
from hesstune.runtime.device import pick_device
from hesstune.runtime.distributed import on_main_process, start_ranks, world
from hesstune.storage.stored import write_record

__all__ = ["SIGMAS", "measure_run", "stability_of_run"]

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
    subject, task = _subject(run, max_examples, device)
    rows = subject.rows
    shown = None if progress is None else lambda done: progress(done, len(rows) // world(), "examples")
    found = subject.measure(
        layers=layers,
        examples="all" if examples == "all" else "max",
        trace=trace,
        mean_sample=mean_sample,
        memory_mib=memory_mib,
        progress=shown,
        **options,
    )
    if len(rows) < len(task.train):
        found.notes.append(f"measured on {len(rows)} of {len(task.train)} training examples, drawn uniformly")
    margins = margins_of(subject.net, subject.batches())
    on_main_process(lambda: _write(run, found, subject, task, margins))
    return found


def _write(run: Run, found: Measure, subject: Subject, task: Task, margins: Margins) -> None:
    """Write the measurement, and the older measures, which a forward pass and the weights give."""
    rows, radii = subject.rows, run.outcome.radii
    noise = run.noise_matrix if method_class(run.config.method).uses_noise() else None
    others = complexity_measures(
        found, subject.net, subject.reference, margins, len(task.train), radii, noise
    )
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
    subject, _ = _subject(run, max_examples, device)
    table = subject.stability(sigmas, samples, run.config.seed, layers=layers)
    lines = [StabilityRow(**row.to_dict()) for row in table]
    record = StabilityRecord(examples=len(subject.rows), rows=lines)
    on_main_process(lambda: write_record(run.path / STABILITY, record))
    return table


def _subject(run: Run, max_examples: int | None, device: str) -> tuple[Subject, Task]:
    """Return a finished run's network with (some of) the examples it was trained on, as labelled then."""
    start_ranks()
    _ = run.outcome
    task = run.task()
    target = pick_device(device)
    loaded = run.loaded()
    to_channels_last(loaded.model, target)
    assert task.train.labels is not None
    rows = drawn_rows(len(task.train), max_examples, run.config.seed)
    feed = make_inputs(task.train, loaded, target, max_length=run.config.max_length)
    # Differences are taken a layer at a time, so the reference need not be on the device.
    return Subject(loaded.model, run.reference(), feed, task.train.labels, rows), task
