"""The Hessian distance measure: v_iᵀ H_i⁺ v_i per example and layer, exactly where that is possible."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesstune._lazy import lazily

if TYPE_CHECKING:
    from hesstune.curvature.engine import CurvatureEngine
    from hesstune.curvature.objective import Objective
    from hesstune.curvature.result import Measure
    from hesstune.curvature.stability import Stability, noise_stability, noise_stability_table

__all__ = [
    "CurvatureEngine",
    "Measure",
    "Objective",
    "Stability",
    "noise_stability",
    "noise_stability_table",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "CurvatureEngine": "hesstune.curvature.engine",
        "Objective": "hesstune.curvature.objective",
        "Measure": "hesstune.curvature.result",
        "Stability": "hesstune.curvature.stability",
        "noise_stability": "hesstune.curvature.stability",
        "noise_stability_table": "hesstune.curvature.stability",
    },
)
