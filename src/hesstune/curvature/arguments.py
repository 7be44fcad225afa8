"""The arguments of `measure`, checked, and its batches, limited."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sized
from typing import get_args

import torch

from hesstune.curvature.batches import rows_of
from hesstune.curvature.declared import ABOVE, Means, Refined, sample_fault
from hesstune.errors import ConfigError, DataError, unknown_name
from hesstune.forward import Inputs, batch_size

__all__ = ["LabelledBatch", "check_arguments", "expected_examples", "limited"]

LabelledBatch = tuple[Inputs, torch.Tensor]


def limited(batches: Iterable[LabelledBatch], most: int | None) -> Iterator[LabelledBatch]:
    """Yield the batches, checked, until `most` examples are through."""
    left = math.inf if most is None else most
    for batch in batches:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise DataError(f"batches must yield (inputs, targets); got {type(batch).__name__}")
        inputs, targets = batch
        size = batch_size(inputs)
        if size > left:
            keep = torch.arange(int(left))
            inputs, targets = rows_of(inputs, keep), targets[: int(left)]
        if batch_size(inputs):
            yield inputs, targets
        left -= size
        if left <= 0:
            return


def expected_examples(batches: Iterable[LabelledBatch], size: int, most: int | None) -> int | None:
    """Return how many examples there will be, as far as the batches tell; None where they do not."""
    if not isinstance(batches, Sized):
        return most
    return size * len(batches) if most is None else min(most, size * len(batches))


def check_arguments(
    method: str,
    examples: str,
    steps: int,
    tol: float | None,
    max_examples: int | None,
    memory_mib: float | None,
    skip_classes: float,
    mean_sample: int,
) -> None:
    """Raise ConfigError for an argument of `measure` that is out of range."""
    for kind, given, valid in (
        ("method", method, get_args(Means)),
        ("value of examples", examples, get_args(Refined)),
    ):
        if given not in valid:
            raise unknown_name(kind, given, valid)
    numbers = {
        "steps": steps,
        "tol": tol,
        "max_examples": max_examples,
        "memory_mib": memory_mib,
    }
    for name, value in numbers.items():
        if value is not None and not value > ABOVE[name]:
            raise ConfigError(f"{name} must be above {ABOVE[name]}; got {value}")
    if not 0 <= skip_classes < 1:
        raise ConfigError(f"skip_classes must be at least 0 (take all) and below 1; got {skip_classes}")
    if fault := sample_fault(mean_sample):
        raise ConfigError(f"mean_sample {fault}; got {mean_sample}")
