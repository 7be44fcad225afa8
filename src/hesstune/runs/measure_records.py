"""The JSON records of the measurements in a run folder."""

# ruff: noqa: RUF012  (pydantic copies defaults)
from __future__ import annotations

from typing import ClassVar

from hesstune.storage.stored import Stored

__all__ = [
    "LayerMeasure",
    "LayerSpectrum",
    "MeanMeasure",
    "MeasureRecord",
    "MeasureValue",
    "StabilityRecord",
    "StabilityRow",
]


class LayerSpectrum(Stored):
    """The mean of the j-th largest eigenvalue of H over the examples, j = 1, 2, …, and its standard error."""

    mean: list[float]
    stderr: list[float | None]


class LayerMeasure(Stored):
    """One layer of a measurement; None if a number does not exist."""

    name: str
    maximum: float | None
    maximum_bounds: tuple[float | None, float | None] | None = None
    mean: float | None = None
    mean_stderr: float | None = None
    p99: float | None = None
    distance: float | None = None
    trace_max: float | None = None
    trace_mean: float | None = None
    exact: bool = False
    method: str = "–"
    reason: str = ""
    refined: int | None = None
    spectrum: LayerSpectrum | None = None

    @property
    def how(self) -> str:
        """The word in tables: `exact`, the method, or `probed` if classes were skipped."""
        if self.exact:
            return "exact"
        return "probed" if self.method == "exact" else self.method


class MeasureValue(Stored):
    """The Hessian distance measure, the size of the training set, and the bound on the loss."""

    n: int
    C: float
    value: float


class MeanMeasure(Stored):
    """Σ √(C·mean/n) over the measured examples; None if a layer's mean is unknown."""

    n: int
    C: float
    value: float | None
    stderr: float | None = None


class MeasureRecord(Stored):
    """measure.json: the summary of a measurement; `ids` if not all examples of the part were measured.

    `tensors` is the checksum of measure.safetensors.
    """

    what: ClassVar[str] = "a measurement"
    mend: ClassVar[str] = "make it again with hesstune measure"

    examples: int | None = None
    part: str
    measure: MeasureValue
    mean_measure: MeanMeasure | None = None
    losses: dict[str, float] = {}
    layers: list[LayerMeasure]
    notes: list[str] = []
    not_layers: list[str] = []
    statement: str
    ids: list[str] | None = None
    tensors: str | None = None


class StabilityRow(Stored):
    """The rise of the loss under noise of one size, and its Taylor prediction."""

    sigma: float
    value: float
    stderr: float
    taylor: float
    taylor_stderr: float = 0.0
    ratio: float | None = None
    samples: int | None = None
    examples: int | None = None


class StabilityRecord(Stored):
    """noise_stability.json: a row a size of noise."""

    what: ClassVar[str] = "noise stability"
    mend: ClassVar[str] = "make it again with hesstune measure --stability"

    examples: int
    rows: list[StabilityRow]
