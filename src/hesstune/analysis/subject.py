"""A trained network and its examples in memory: measured and certified here, of a run or of a comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hesstune.analysis.gather_measure import gathered_measure, own_batches
from hesstune.bounds.certificate import certify
from hesstune.bounds.partition import Share
from hesstune.bounds.record import Certificate
from hesstune.curvature.measure import measure
from hesstune.curvature.result import Measure
from hesstune.curvature.stability import Stability, noise_stability_table
from hesstune.forward import Inputs
from hesstune.inputs.batches import ModelInputs
from hesstune.reference import Reference
from hesstune.runtime.distributed import all_gather, all_reduce_sum, rank, world

__all__ = ["InputExamples", "Subject", "drawn_rows"]

BATCH = 32


def drawn_rows(n: int, most: int | None, seed: int) -> NDArray[np.int64]:
    """Return the indices of n examples, or of at most so many of them, drawn uniformly; in order."""
    if most is None or most >= n:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).permutation(n)[:most])


class InputExamples:
    """Examples as the network is fed them, map-style, for `hesstune.certify`.

    Args:
        feed: Their inputs, without augmentation.
        rows: Which of them.
        labels: (N,) labels of all of the feed's examples.
    """

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
    """Batches of (inputs, targets), made as they are asked for."""

    feed: ModelInputs
    labels: torch.Tensor
    rows: list[NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[Inputs, torch.Tensor]]:
        for some in self.rows:
            yield self.feed.inputs(some), self.labels[some]


@dataclass(frozen=True)
class Subject:
    """A trained network, its reference, and labelled examples as its inputs.

    Several processes share the examples: each computes on its own batches, and all have the result.

    Attributes:
        net: The network, or its head if the inputs are features.
        reference: The weights before fine-tuning, of the same names as the network's.
        feed: The examples' inputs, without augmentation.
        labels: (N,) int64, of all of the feed's examples.
        rows: Those that are measured.
        batch: Examples that are measured together.
    """

    net: nn.Module
    reference: Reference
    feed: ModelInputs
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]
    batch: int = BATCH

    def batches(self) -> _Batches:
        """Return this process's batches of (inputs, targets): counted, and made anew each time."""
        own, _ = own_batches(len(self.rows), self.batch)
        # In their own order, as the result's rows are.
        return _Batches(self.feed, torch.from_numpy(self.labels), [self.rows[batch] for batch in own])

    def measure(self, **options: Any) -> Measure:
        """Measure the rows; options are those of `hesstune.measure`."""
        _, order = own_batches(len(self.rows), self.batch)
        # The plan is made on the first batch of all, by every process alike.
        first = self.feed.inputs(self.rows[order[0]])
        found = measure(self.net, self.reference, self.batches(), plan_on=first, **options)
        return gathered_measure(found, order)

    def stability(self, sigmas: Sequence[float], samples: int, seed: int, **options: Any) -> list[Stability]:
        """Measure the noise stability on the rows; options are those of `hesstune.noise_stability`."""
        return noise_stability_table(
            self.net, self.batches(), sigmas, samples, seed, all_reduce_sum=all_reduce_sum, **options
        )

    def certify(self, rows: NDArray[np.int64] | None = None, **options: Any) -> Certificate:
        """Certify on all examples, or on some; options are those of `hesstune.certify`."""
        rows = np.arange(len(self.labels)) if rows is None else rows
        examples = InputExamples(self.feed, rows, self.labels)
        share = Share(rank(), world(), all_reduce_sum, all_gather)
        return certify(self.net, self.reference, examples, share=share, **options)
