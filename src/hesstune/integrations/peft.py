"""LoRA by peft: distances without the product, the constraint by scaling, the measure of merged weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from hesstune.constraints.adapters import (
    AdapterConstraint,
    base_reference,
    distances,
    merged,
    trained_copies,
)
from hesstune.curvature.measure import measure as measure_layers
from hesstune.curvature.result import Measure

__all__ = [
    "AdapterConstraint",
    "base_reference",
    "distances",
    "measure_adapters",
    "merged",
    "trained_copies",
]


def measure_adapters(model: nn.Module, batches: Any, **options: Any) -> Measure:
    """Measure v_iᵀ H_i⁺ v_i with v_i the merged change of each layer.

    Args:
        model: A peft model; it is left as it is, and a merged copy is measured.
        batches: Iterable of (inputs, targets), as for `hesstune.measure`.
        **options: Of `hesstune.measure`.
    """
    reference = base_reference(model)
    plain = merged(model)
    return measure_layers(plain, reference, batches, **options)
