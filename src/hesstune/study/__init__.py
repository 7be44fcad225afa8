"""Studies: tasks, many runs of many methods on them, and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesstune._lazy import lazily

if TYPE_CHECKING:
    from hesstune.study.compare import Comparison
    from hesstune.study.options import CompareOptions

__all__ = ["CompareOptions", "Comparison"]

__getattr__, __dir__ = lazily(
    __name__, {"CompareOptions": "hesstune.study.options", "Comparison": "hesstune.study.compare"}
)
