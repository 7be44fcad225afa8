"""Names and limits of `measure` that its options and files need; this module does not import torch."""

from __future__ import annotations

from typing import Literal

MethodChoice = Literal["auto", "exact", "lanczos"]
ExamplesChoice = Literal["max", "all"]
# A given number must be larger than this.
ABOVE = {"steps": 0, "tol": 0, "max_examples": 0, "memory_mib": 0}
# The default of `skip_classes`: the share of an entry that skipped classes may add.
SKIP_CLASSES = 0.01
# The files that `Measure.save` writes: a summary, and all tensors.
MEASURE, MEASURE_TENSORS = "measure.json", "measure.safetensors"
# The entry of the tensors' metadata that the summary has as `tensors`.
CHECKSUM = "checksum"
# The first words of the note with the memory forecast.
FORECAST = "memory forecast:"


def sample_fault(mean_sample: int) -> str | None:
    """Return why a sample size is not valid, or None."""
    return "must be 0, or at least 2 for a standard error" if mean_sample < 0 or mean_sample == 1 else None
