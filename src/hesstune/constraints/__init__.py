"""Constraints on the distance from the reference."""

from hesstune.constraints.distance import DistanceConstraint, StartingPointPenalty

__all__ = ["DistanceConstraint", "StartingPointPenalty"]
