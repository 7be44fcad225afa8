"""The options of a report."""

from __future__ import annotations

from pydantic import Field

from hesstune.options import DEVICE, Options

__all__ = ["ReportOptions"]


class ReportOptions(Options):
    """What a page about a run or a comparison is made with."""

    baseline: str | None = Field(
        None,
        description="baseline method of a comparison's differences; default: the comparison's own",
    )
    device: str = DEVICE
