"""Names and limits of `measure` that its options and files need; this module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MethodChoice = Literal["auto", "exact", "lanczos", "gauss_newton"]
ExamplesChoice = Literal["max", "all"]


@dataclass(frozen=True)
class FormNames:
    """The names of the quadratic form of a measurement, for tables, reports and messages.

    Attributes:
        matrix: The matrix: H, with eigenvalues that may be negative, or G.
        form: The quadratic form of a layer and example.
        trace: The trace of the form's matrix.
        measure: The sum over layers of the square roots.
    """

    matrix: str
    form: str
    trace: str
    measure: str


FormKind = Literal["positive_form", "gauss_newton"]
FORMS: dict[FormKind, FormNames] = {
    "positive_form": FormNames("H", "vᵀH⁺v", "Tr H⁺", "Hessian distance measure"),
    "gauss_newton": FormNames("G", "vᵀGv", "Tr G", "Gauss–Newton distance measure"),
}
# A given number must be larger than this.
ABOVE = {"steps": 0, "tol": 0, "max_examples": 0, "memory_mib": 0, "trace_passes": 1}
# The default of `skip_classes`: the share of an entry that skipped classes may add.
SKIP_CLASSES = 0.01
# The default of `trace_passes`: with more classes a trace in closed form is an estimate.
TRACE_PASSES = 12
# The files that `Measure.save` writes: a summary, and all tensors.
MEASURE, MEASURE_TENSORS = "measure.json", "measure.safetensors"
# The entry of the tensors' metadata that the summary has as `tensors`.
CHECKSUM = "checksum"
# The first words of the note with the memory forecast.
FORECAST = "memory forecast:"


def sample_fault(mean_sample: int) -> str | None:
    """Return why a sample size is not valid, or None."""
    return "must be 0, or at least 2 for a standard error" if mean_sample < 0 or mean_sample == 1 else None
