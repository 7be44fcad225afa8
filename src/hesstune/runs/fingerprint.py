"""What a run was started from, as checksums: classes, examples by part, weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hesstune.runs.data_record import DataRecord
from hesstune.storage.tensors import digest

__all__ = ["fingerprints"]


def fingerprints(record: DataRecord, start: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return checksums of a run's classes, of its examples by part, and of its starting weights."""
    return {**record.checksums(), "weights": digest(start)}
