"""Reference, constraint and distances of a model, for whole weights and for peft's adapters."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from hesstune.constraints.distance import DistanceConstraint
from hesstune.errors import LayerError
from hesstune.reference import Reference


def has_adapters(model: nn.Module) -> bool:
    """Return whether the model has peft's adapters."""
    if "peft" not in sys.modules:
        return False
    from peft.tuners.tuners_utils import BaseTunerLayer

    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


def reference_of(model: nn.Module) -> Reference:
    """Return the weights before training: all weights, or with adapters the originals of trained copies."""
    if has_adapters(model):
        from hesstune.integrations.peft import trained_copies

        return trained_copies(model)
    return Reference.of(model)


def constraint_of(
    model: nn.Module,
    reference: Reference,
    radius: float | Mapping[str, float],
    norm: str,
    include: Sequence[str] | None = None,
) -> Any:
    """Return the constraint that fits the model, with `project_`."""
    if has_adapters(model):
        from hesstune.integrations.peft import AdapterConstraint

        if include:
            raise LayerError("include does not apply to a model with peft's adapters; leave it out")
        return AdapterConstraint(model, radius, norm, reference, warn=include is None)
    return DistanceConstraint(model, reference, radius, norm, include)


def distances_of(model: nn.Module, reference: Reference) -> dict[str, float]:
    """Return ‖v_i‖ of every layer, without the warning that the constraint has already given."""
    if has_adapters(model):
        from hesstune.integrations.peft import distances

        return distances(model, reference, warn=False)
    return reference.distances(model, warn=False)
