"""The section of docs/benchmarks.md about sizes."""

from __future__ import annotations

from statistics import median
from typing import Any

__all__ = ["scale"]


def scale(record: dict[str, Any]) -> str:
    """Return the section; parts that have no record are left out."""
    lines = ["## Sizes", "", "`python benchmarks/scale.py`; one thread a process.", ""]
    if part := record.get("ranks"):
        ratios = part["speed_ups"]
        line = (
            f"- `measure` on two ranks is {median(ratios):.2f} times as fast as on one, the median of "
            f"{len(ratios)} turns ({min(ratios):.2f} to {max(ratios):.2f}; {part['examples']:,} digits, "
            f"{part['model']}); the goal is 1.6."
        )
        if cpu := part.get("speed_ups_cpu"):
            line += (
                f" In CPU time of the slower rank, which other work on the machine does not change, it is "
                f"{min(cpu):.2f} to {max(cpu):.2f} times."
            )
        lines.append(line)
    if part := record.get("classes"):
        lines.append(
            f"- A head of {part['classes']:,} classes, {part['layers']} layers: K − 1 backward passes take "
            f"{part['backward_to_forward']:.2f} times as long as one forward-mode product a layer, which "
            "`measure` takes where twice the layers are fewer than K − 1; the two agree to "
            f"{part['largest_relative_difference']:.0e}."
        )
    if part := record.get("examples"):
        budgets = ", ".join(f"{b:.0f}" for b in part["budgets_mib"])
        for what, peaks in part["peaks_beyond_start_mib"].items():
            told = ", ".join(f"{p:.0f}" for p in peaks)
            lines.append(
                f"- `measure` {what} on {part['examples']:,} examples in batches of {part['batch']:,} with "
                f"`memory_mib` of {budgets}: {told} MiB at the peak beyond what the process held before, "
                "inputs and results included."
            )
    if part := record.get("runs"):
        held = part["resident_mib"]
        lines.append(
            f"- {part['runs']} short runs in one process: {held[0]:.0f} MiB resident after the first tenth, "
            f"{held[-1]:.0f} after the last."
        )
    return "\n".join([*lines, ""])
