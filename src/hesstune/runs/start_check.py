"""Checks that a run is resumed from the data and weights that it was started from."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch

from hesstune.errors import HesstuneWarning, RunError
from hesstune.reference import Reference
from hesstune.runs.data_check import check_data
from hesstune.runs.data_record import DataRecord
from hesstune.runs.records import REFERENCE
from hesstune.runs.run import Run
from hesstune.storage.seen_examples import SeenExamples
from hesstune.storage.tensors import digest

__all__ = ["check_start", "check_weights"]


def check_weights(run: Run, start: Mapping[str, torch.Tensor]) -> None:
    """Check that weights are those that a run's training started from.

    Raises:
        RunError: If they are not.
    """
    if run.facts.checksums.get("weights") != digest(start):
        raise RunError(
            f"cannot resume the run in {run.path}: the weights that training starts from of --model "
            f"{run.config.model} changed since it was started; restore them, or start over with --overwrite"
        )


def check_start(before: Run, now: DataRecord, reference: Reference, seen: SeenExamples) -> None:
    """Check that a run is resumed from the same data and weights; restore a damaged reference file.

    Args:
        before: The run as it was started.
        now: The record of the examples as they are now.
        reference: The weights that training starts from.
        seen: The examples that these weights have seen.

    Raises:
        RunError: Naming what is no longer what the run was started from.
    """
    check_data(before.records, now)
    check_weights(before, {name: reference[name] for name in reference.names()})
    try:
        kept = before.reference()
        same = digest({name: kept[name] for name in kept.names()}) == before.facts.checksums["weights"]
    except RunError:
        same = False
    if not same:
        path = before.path / REFERENCE
        warnings.warn(f"{path} was damaged; it is written anew", HesstuneWarning, stacklevel=2)
        reference.save(path, seen.metadata())
