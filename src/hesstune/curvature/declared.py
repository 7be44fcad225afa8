"""What is declared of `measure` once, without torch: for its arguments, a run's options and its files."""

from __future__ import annotations

from typing import Literal

__all__ = [
    "ABOVE",
    "CHECKSUM",
    "FORECAST",
    "MEASURE",
    "MEASURE_TENSORS",
    "SKIP_CLASSES",
    "Means",
    "Refined",
    "sample_fault",
]

Means = Literal["auto", "exact", "lanczos"]
Refined = Literal["max", "all"]
# Numbers must be above these, where they are given.
ABOVE = {"steps": 0, "tol": 0, "max_examples": 0, "memory_mib": 0}
# What classes left out may add to an entry by default, as a share of it.
SKIP_CLASSES = 0.01
# What `Measure.save` writes: a summary, and all tensors.
MEASURE, MEASURE_TENSORS = "measure.json", "measure.safetensors"
# The entry of the tensors' metadata that the summary has as `tensors`.
CHECKSUM = "checksum"

# How the note with the forecast of a measurement's memory begins.
FORECAST = "memory forecast:"


def sample_fault(mean_sample: int) -> str | None:
    """Return what is wrong with a number of examples for the mean, or None."""
    return "must be 0, or at least 2 to tell an error" if mean_sample < 0 or mean_sample == 1 else None
