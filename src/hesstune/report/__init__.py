"""From records to one self-contained HTML page; nothing is computed here but summaries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesstune._lazy import lazily

if TYPE_CHECKING:
    from hesstune.report.write import write_report, write_study

__all__ = [
    "write_report",
    "write_study",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "write_report": "hesstune.report.write",
        "write_study": "hesstune.report.write",
    },
)
