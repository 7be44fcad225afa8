"""What a run was started from, as checksums: classes, examples by part, weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hesstune.data.examples import Task
from hesstune.runs.data_record import DataRecord
from hesstune.storage.tensors import digest

__all__ = ["fingerprints"]


def fingerprints(task: Task, injected: bool, start: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return checksums of a task (classes; ids, contents and labels by part) and of the starting weights."""
    return {**DataRecord.of(task, injected).checksums(), "weights": digest(start)}
