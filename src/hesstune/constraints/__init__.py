"""Constraints on the distance from the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesstune._lazy import lazily

if TYPE_CHECKING:
    from hesstune.constraints.distance import DistanceConstraint, StartingPointPenalty

__all__ = [
    "DistanceConstraint",
    "StartingPointPenalty",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "DistanceConstraint": "hesstune.constraints.distance",
        "StartingPointPenalty": "hesstune.constraints.distance",
    },
)
