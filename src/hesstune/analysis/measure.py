"""Measure a finished run: its network, its reference and the examples it was trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hesstune.analysis.complexity import Margins, complexity_measures, margins_of
from hesstune.analysis.subject import Subject, drawn_rows
from hesstune.curvature.result import Measure
from hesstune.curvature.sharpness import Sharpness
from hesstune.curvature.stability import Stability
from hesstune.data.examples import Task
from hesstune.inputs.batches import make_inputs
from hesstune.inputs.image_inputs import to_channels_last
from hesstune.methods import method_class
from hesstune.options import make_options, takes_options
from hesstune.runs.measure_records import MeasureRecord, StabilityRecord, StabilityRow
from hesstune.runs.options.analysis import MeasureOptions, SampleOptions, StabilityOptions
from hesstune.runs.records import MEASURE, STABILITY
from hesstune.runs.run import Run
from hesstune.runtime.device import pick_device
from hesstune.runtime.distributed import on_main_process, start_ranks, world
from hesstune.storage.stored import write_record

__all__ = ["SIGMAS", "measure_run", "stability_of_run"]

NAMES = {"val": "validation", "train": "training"}
NO_VALIDATION = "the run has no validation examples"
# The loss of a fine-tuned network begins to move at the first and is lost at the last.
SIGMAS = (0.001, 0.002, 0.005, 0.01, 0.02)


@takes_options(MeasureOptions)
def measure_run(
    run: Run,
    *,
    progress: Callable[[int, int, str], None] | None = None,
    told: Callable[[str], None] | None = None,
    **options: Any,
) -> Measure:
    """Measure every layer of a finished run, by default on its validation examples; write it beside the run.

    Args:
        run: A finished run; measure.json and measure.safetensors are written to its folder.
        progress: Called with (examples done, examples in all, text).
        told: Called with the forecast of memory before the first example is measured.
        **options: Options of `MeasureOptions`, by name.

    Raises:
        ConfigError: If an option is wrong.
        RunError: If the run has not finished, or its data has changed since.
    """
    asked = make_options(MeasureOptions, options)
    subject, task = _subject(run, asked, asked.part)
    part = "val" if asked.part == "val" and len(task.val) else "train"
    rows = subject.rows
    own = max(1, len(rows) // world())

    def shown(done: int) -> None:
        assert progress is not None
        smooth = done >= own and asked.examples == "max"
        progress(done, own, "examples; now smooth layers' maxima" if smooth else "examples")

    found = subject.measure(
        layers=asked.layers,
        method=asked.method,
        steps=asked.steps,
        tol=asked.tol,
        examples=asked.examples,
        trace=asked.trace,
        spectrum=asked.spectrum,
        seed=asked.seed,
        mean_sample=asked.mean_sample,
        skip_classes=asked.skip_classes,
        memory_mib=asked.memory_mib,
        progress=None if progress is None else shown,
        told=told,
    )
    examples = task.val if part == "val" else task.train
    if part != asked.part:
        found.notes.append(f"{NO_VALIDATION}: measured on the training examples")
    if len(rows) < len(examples):
        found.notes.append(
            f"measured on {len(rows)} of {len(examples)} {NAMES[part]} examples, drawn uniformly"
        )
    trained = subject if part == "train" else _subject(run, asked)[0]
    margins = margins_of(subject.net, iter(trained.batches()))
    sharpness = subject.sharpness()
    on_main_process(lambda: _write(run, found, subject, task, margins, sharpness, part))
    return found


def _write(
    run: Run,
    found: Measure,
    subject: Subject,
    task: Task,
    margins: Margins,
    sharpness: Sharpness,
    part: str,
) -> None:
    """Write the measurement, and the older measures, which a forward pass and the weights give."""
    rows, radii, n = subject.rows, run.outcome.radii, len(task.train)
    examples = task.val if part == "val" else task.train
    noise = run.noise_matrix if method_class(run.config.method).uses_noise() else None
    others = complexity_measures(
        found, subject.net, subject.reference, margins, n, radii, noise, run.config.norm, sharpness
    )
    found.others = [other.to_dict() for other in others]
    found.save(run.path, n=n)
    # Which examples the rows of measure.safetensors are.
    ids = [examples.ids[i] for i in rows] if len(rows) < len(examples) else None
    write_record(run.path / MEASURE, MeasureRecord(**found.to_dict(n), part=part, ids=ids))


@takes_options(StabilityOptions)
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
    subject, _ = _subject(run, asked)
    table = subject.stability(sigmas, asked.samples, run.config.seed, layers=asked.layers)
    lines = [StabilityRow(**row.to_dict()) for row in table]
    record = StabilityRecord(examples=len(subject.rows), rows=lines)
    on_main_process(lambda: write_record(run.path / STABILITY, record))
    return table


def _subject(run: Run, asked: SampleOptions, part: str = "train") -> tuple[Subject, Task]:
    """Return a finished run's network with (some of) a part's examples, as labelled then.

    Where there are no validation examples, the training examples take their place.
    """
    start_ranks()
    _ = run.outcome
    task = run.task()
    target = pick_device(asked.device)
    loaded = run.loaded()
    to_channels_last(loaded.model, target)
    examples = task.val if part == "val" and len(task.val) else task.train
    assert examples.labels is not None
    rows = drawn_rows(len(examples), asked.max_examples, run.config.seed)
    feed = make_inputs(examples, loaded, target, max_length=run.config.max_length)
    # Differences are taken a layer at a time, so the reference need not be on the device.
    return Subject(loaded.model, run.reference(), feed, examples.labels, rows), task
