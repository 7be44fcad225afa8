"""What the callbacks share: the same three calls for whole weights and for peft's adapters."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from hesstune.constraints.distance import DistanceConstraint
from hesstune.errors import LayerError
from hesstune.reference import Reference


def has_adapters(model: nn.Module) -> bool:
    """Tell whether peft's adapters are in the model."""
    # Adapters come from peft, so where it is not imported there are none.
    if "peft" not in sys.modules:
        return False
    from peft.tuners.tuners_utils import BaseTunerLayer

    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


def reference_of(model: nn.Module) -> Reference:
    """Return what training starts from: all weights, or with adapters the trained copies' originals."""
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
            raise LayerError(
                "of a model with peft's adapters these and the trained copies are held; leave include out"
            )
        return AdapterConstraint(model, radius, norm, reference, warn=include is None)
    return DistanceConstraint(model, reference, radius, norm, include)


def distances_of(model: nn.Module, reference: Reference) -> dict[str, float]:
    """Return ‖v_i‖ of every layer, without a warning: the constraint has warned of what it leaves out."""
    if has_adapters(model):
        from hesstune.integrations.peft import distances

        return distances(model, reference, warn=False)
    return reference.distances(model, warn=False)
