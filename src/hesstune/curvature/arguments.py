"""The arguments of `measure`, checked, and its batches, limited."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch

from hesstune.curvature.capture import rows_of
from hesstune.errors import ConfigError, DataError, unknown_name
from hesstune.forward import Inputs, batch_size

__all__ = ["LabelledBatch", "check_arguments", "limited"]

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


def check_arguments(
    method: str,
    examples: str,
    steps: int,
    tol: float | None,
    max_examples: int | None,
    memory_mib: float,
    skip_classes: float | None,
    mean_sample: int,
) -> None:
    """Raise ConfigError for an argument of `measure` that is out of range."""
    for kind, given, valid in (
        ("method", method, ("auto", "exact", "lanczos")),
        ("value of examples", examples, ("all", "max")),
    ):
        if given not in valid:
            raise unknown_name(kind, given, valid)
    positive = {
        "steps": steps,
        "tol": tol,
        "max_examples": max_examples,
        "memory_mib": memory_mib,
        "skip_classes": skip_classes,
    }
    for name, value in positive.items():
        if value is not None and not value > 0:
            raise ConfigError(f"{name} must be positive; got {value}")
    if mean_sample < 0 or mean_sample == 1:
        raise ConfigError(f"mean_sample must be 0, or at least 2 to tell an error; got {mean_sample}")
