"""Constraints on the distance from the reference."""
