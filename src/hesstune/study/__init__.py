"""Studies: tasks, many runs of many methods on them, and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesstune._lazy import lazily

if TYPE_CHECKING:
    from hesstune.study.compare import Comparison
    from hesstune.study.options import CompareOptions, Settings
    from hesstune.study.plan import StudyPlan, make_study_plan

__all__ = [
    "CompareOptions",
    "Comparison",
    "Settings",
    "StudyPlan",
    "make_study_plan",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "CompareOptions": "hesstune.study.options",
        "Comparison": "hesstune.study.compare",
        "Settings": "hesstune.study.options",
        "StudyPlan": "hesstune.study.plan",
        "make_study_plan": "hesstune.study.plan",
    },
)
