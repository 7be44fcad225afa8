"""What a comparison keeps as JSON, typed."""

from __future__ import annotations

from typing import ClassVar

from hesstune.storage.stored import Stored

__all__ = ["HeadCertificate", "Observed"]


class HeadCertificate(Stored):
    """A certificate of a comparison's cell in short; without a risk, `why` there is none."""

    risk: float | None
    why: str | None = None
    empirical: float | None = None
    delta: float | None = None
    vacuous: bool | None = None
    labels: str | None = None


class Observed(Stored):
    """observed.json: what a comparison measured of a trained network; None where not asked for."""

    what: ClassVar[str] = "a cell's measurements"
    mend: ClassVar[str] = "run the comparison again with --overwrite"

    val_gap: float | None
    measure: float | None = None
    measure_mean: float | None = None
    stability: float | None = None
    stability_taylor: float | None = None
    certificate: HeadCertificate | None = None
    max_loss: float | None = None
