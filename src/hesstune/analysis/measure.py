"""Measure a finished run or a network in memory, on one process or several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hesstune.bounds.kinds.pac_bayes import certify
from hesstune.bounds.record import Certificate
from hesstune.curvature.measure import measure
from hesstune.curvature.result import Measure
from hesstune.curvature.stability import Stability, noise_stability_table
from hesstune.data.examples import Examples, Task
from hesstune.forward import Inputs
from hesstune.inputs.batches import ModelInputs, make_inputs, to_channels_last
from hesstune.models.load import LoadedModel
from hesstune.options import make_options, takes_options
from hesstune.reference import Reference
from hesstune.runs.keywords import MeasureKeywords, StabilityKeywords
from hesstune.runs.options import MeasureOptions, SampleOptions, StabilityOptions
from hesstune.runs.records import STABILITY, StabilityRecord, StabilityRow
from hesstune.runs.run import Run
from hesstune.runtime.device import pick_device
from hesstune.runtime.distributed import (
    all_gather,
    all_reduce_sum,
    joined_ranks,
    on_main_process,
    rank,
    world,
)
from hesstune.storage.stored import write_record

_ELSEWHERE = "examples of another process use it in another way"


def own_batches(n: int, size: int) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Split n examples into batches; return this rank's batches and all batches rank by rank.

    The batches are those of one process, unless there would not be one for every rank.
    """
    size = min(size, max(1, -(-n // world())))
    batches = [np.arange(start, min(start + size, n)) for start in range(0, n, size)]
    return batches[rank() :: world()], [b for r in range(world()) for b in batches[r :: world()]]


def gathered_measure(own: Measure, order: list[NDArray[np.int64]]) -> Measure:
    """Return the measurement of all examples, on every rank.

    Rows are gathered; a sampled mean is the mean over ranks, weighted by their examples.
    """
    if world() == 1:
        return own
    place = torch.from_numpy(np.concatenate(order)).argsort()
    found = own.with_rows(lambda rows: torch.cat(all_gather(rows))[place])
    share = len(own.losses) / len(place)
    if own.sampled_mean is not None:
        found.sampled_mean = all_reduce_sum(share * own.sampled_mean)
    for key in ("sampled_stderr", "sampling_stderr"):
        if (error := getattr(own, key)) is not None:
            setattr(found, key, all_reduce_sum((share * error).square()).sqrt())
    if own.skipped is not None:
        found.skipped = torch.stack([part.reshape(2) for part in all_gather(own.skipped)]).amax(0)
    # A layer that one process moved to weight space is not exact on any.
    apart = all_reduce_sum(torch.tensor([int(method == "weight_space") for method in own.methods])).tolist()
    pairs = zip(own.methods, own.reasons, apart, strict=True)
    chosen = [("weight_space", _ELSEWHERE) if a and m != "weight_space" else (m, why) for m, why, a in pairs]
    found.methods, found.reasons = ([pair[i] for pair in chosen] for i in range(2))
    own_notes = own.quantity_notes()
    found.notes = found.quantity_notes() + [note for note in own.notes if note not in own_notes]
    return found


BATCH = 32


def drawn_rows(n: int, most: int | None, seed: int) -> NDArray[np.int64]:
    """Return the indices of n examples, or of at most so many of them, drawn uniformly; in order."""
    if most is None or most >= n:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).permutation(n)[:most])


class InputExamples:
    """Examples as inputs of the network, map-style, for `hesstune.certify`."""

    def __init__(self, feed: ModelInputs, rows: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
        self._feed, self._rows, self._labels = feed, rows, labels

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Inputs, int]:
        inputs, labels = self.batch([index])
        one = inputs[0] if isinstance(inputs, torch.Tensor) else {k: v[0] for k, v in inputs.items()}
        return one, int(labels[0])

    def batch(self, indices: Sequence[int]) -> tuple[Inputs, NDArray[np.int64]]:
        """Return the inputs and labels of some examples."""
        rows = self._rows[list(indices)]
        return self._feed.inputs(rows), self._labels[rows]


@dataclass(frozen=True)
class _Batches:
    """Batches of (inputs, targets), made on request."""

    feed: ModelInputs
    labels: torch.Tensor
    rows: list[NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[Inputs, torch.Tensor]]:
        for some in self.rows:
            yield self.feed.inputs(some), self.labels[some]


@dataclass(frozen=True)
class MeasuredNetwork:
    """A trained network, its reference, and labelled examples as its inputs.

    Several processes share the examples: each computes on its own batches, and all get the result.
    """

    net: nn.Module  # The network, or its head if the inputs are features
    reference: Reference  # The weights before fine-tuning, of the same names as the network's
    feed: ModelInputs  # The examples' inputs, without augmentation
    labels: NDArray[np.int64]  # (N,) int64, of all of the feed's examples
    rows: NDArray[np.int64]  # Those that are measured
    batch: int = BATCH  # Examples that are measured together

    def batches(self) -> _Batches:
        """Return this process's batches of (inputs, targets): with a length, made again in each pass."""
        own, _ = own_batches(len(self.rows), self.batch)
        # In their own order, as the result's rows are.
        return _Batches(self.feed, torch.from_numpy(self.labels), [self.rows[batch] for batch in own])

    def measure(self, **options: Any) -> Measure:
        """Measure the rows; options are those of `hesstune.measure`."""
        _, order = own_batches(len(self.rows), self.batch)
        # Every process makes the plan on the same first batch.
        first = self.feed.inputs(self.rows[order[0]])
        most = len(self.rows)
        own = measure(self.net, self.reference, self.batches(), plan_on=first, max_examples=most, **options)
        return gathered_measure(own, order)

    def stability(self, sigmas: Sequence[float], samples: int, seed: int, **options: Any) -> list[Stability]:
        """Measure the noise stability on the rows; options are those of `hesstune.noise_stability`."""
        return noise_stability_table(
            self.net, self.batches(), sigmas, samples, seed, all_reduce_sum=all_reduce_sum, **options
        )

    def certify(self, **options: Any) -> Certificate:
        """Certify on all examples; options are those of `hesstune.certify`."""
        examples = InputExamples(self.feed, np.arange(len(self.labels)), self.labels)
        return certify(self.net, self.reference, examples, distributed=True, **options)


NAMES = {"val": "validation", "train": "training"}
# From the first value the loss of a fine-tuned network changes; at the last it is near that of guessing.
SIGMAS = (0.001, 0.002, 0.005, 0.01, 0.02)


@takes_options(MeasureOptions)
@joined_ranks()
def measure_run(
    run: Run,
    *,
    progress: Callable[[int, int, str], None] | None = None,
    on_forecast: Callable[[str], None] | None = None,
    **options: Unpack[MeasureKeywords],
) -> Measure:
    """Measure every layer of a finished run, by default on its validation examples; write it beside the run.

    Args:
        run: A finished run; measure.json and measure.safetensors are written to its folder.
        progress: Called with (examples done, examples in all, text).
        on_forecast: Called with the memory forecast before the first example is measured.
        **options: Options of `MeasureOptions`, by name.
    """
    asked = make_options(MeasureOptions, options)
    task, examples, network = _measured(run, asked, asked.part)
    part, rows = "val" if examples is task.val else "train", network.rows
    own = max(1, len(rows) // world())
    own_options = set(MeasureOptions.model_fields) - {"part", "max_examples", "device"}
    measured = network.measure(
        **{name: getattr(asked, name) for name in own_options},
        progress=None if progress is None else lambda done: progress(done, own, "examples"),
        on_forecast=on_forecast,
    )
    if part != asked.part:
        measured.notes.append("the run has no validation examples: measured on the training examples")
    if len(rows) < len(examples):
        measured.notes.append(
            f"measured on {len(rows)} of {len(examples)} {NAMES[part]} examples, drawn uniformly"
        )
    # Which examples the rows of measure.safetensors are.
    ids = [examples.ids[i] for i in rows] if len(rows) < len(examples) else None
    on_main_process(lambda: measured.save(run.path, n=len(task.train), part=part, ids=ids))
    return measured


@takes_options(StabilityOptions)
@joined_ranks()
def stability_of_run(
    run: Run, sigmas: Sequence[float] = SIGMAS, **options: Unpack[StabilityKeywords]
) -> list[Stability]:
    """Measure a finished run's noise stability over a range of σ; write noise_stability.json beside it.

    Args:
        run: A finished run.
        sigmas: Standard deviations of the noise on the weights.
        **options: Options of `StabilityOptions`, by name.
    """
    asked = make_options(StabilityOptions, options)
    network = _measured(run, asked, "train")[2]
    table = network.stability(sigmas, asked.samples, run.config.seed, layers=asked.layers)
    lines = [StabilityRow(**row.to_dict()) for row in table]
    record = StabilityRecord(examples=len(network.rows), rows=lines)
    on_main_process(lambda: write_record(run.path / STABILITY, record))
    return table


def start_network(run: Run, device: torch.device) -> LoadedModel:
    """Return a run's network with its weights before training, on a device."""
    loaded = run.loaded()
    run.reference().restore_(loaded.model)
    to_channels_last(loaded.model, device)
    return loaded


def _measured(run: Run, asked: SampleOptions, part: str) -> tuple[Task, Examples, MeasuredNetwork]:
    """Return a finished run's task, a part of it, and the network with (some of) the part's examples."""
    _ = run.outcome
    task, device, loaded = run.task(), pick_device(asked.device), run.loaded()
    to_channels_last(loaded.model, device)
    examples = task.val if part == "val" and len(task.val) else task.train
    assert examples.labels is not None
    rows = drawn_rows(len(examples), asked.max_examples, run.config.seed)
    feed = make_inputs(examples, loaded, device, max_length=run.config.max_length)
    # Differences are taken a layer at a time, so the reference need not be on the device.
    return task, examples, MeasuredNetwork(loaded.model, run.reference(), feed, examples.labels, rows)
