"""The eigenvalues of a run's layers on its page."""

from __future__ import annotations

from typing import NamedTuple

from hesstune.errors import counted
from hesstune.report.figures import spectra
from hesstune.report.layers import LayerRow

__all__ = ["Spectrum", "spectrum"]

SHOWN = 3


class Spectrum(NamedTuple):
    """The mean spectra of the layers with the largest shares: curves, (layer, its numbers) and words."""

    svg: str
    rows: list[tuple[str, list[str]]]
    columns: int
    words: str


def spectrum(rows: list[LayerRow]) -> Spectrum | None:
    """Return the mean eigenvalues of the layers with the largest shares; None where none were measured.

    Args:
        rows: The layers, largest share first.
    """
    known = [(row.layer.name, row.layer.spectrum) for row in rows if row.layer.spectrum is not None]
    first = known[:SHOWN]
    if not first:
        return None
    title = ("Largest eigenvalues of H, mean over the examples", "j-th largest", "eigenvalue")
    lines = [(name, found.mean, [2 * (error or 0.0) for error in found.stderr]) for name, found in first]
    numbers = [
        (
            name,
            [
                f"{mean:.3g}" + ("" if error is None else f" ± {error:.1g}")
                for mean, error in zip(found.mean, found.stderr, strict=True)
            ],
        )
        for name, found in known
    ]
    name, found = first[0]
    total = sum(found.mean) or 1.0
    words = f"In {name} the largest is {numbers[0][1][0]} (± its standard error)"
    if len(found.mean) > 1:
        words += f", {found.mean[0] / total:.0%} of the sum of the first {len(found.mean)}"
    if without := [row.layer.name for row in rows if row.layer.spectrum is None]:
        words += (
            f". No eigenvalues of {counted(len(without), 'layer')}: they are computed by the exact path only"
        )
    return Spectrum(spectra("spectrum", lines, title), numbers, max(len(v) for _, v in numbers), words + ".")
