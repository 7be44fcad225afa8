"""The Hessian distance measure: v_iᵀ H_i⁺ v_i per example and layer, exactly where that is possible."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesstune._lazy import lazily

if TYPE_CHECKING:
    from hesstune.curvature.engine import CurvatureEngine
    from hesstune.curvature.exact.forms import ExactForms
    from hesstune.curvature.objective import Objective
    from hesstune.curvature.result import Measure
    from hesstune.curvature.smooth.lanczos import LanczosForms, Traces
    from hesstune.curvature.smooth.ranking import Ranking
    from hesstune.curvature.smooth.stopping import Stopping
    from hesstune.curvature.stability import Stability, noise_stability, noise_stability_table

__all__ = [
    "CurvatureEngine",
    "ExactForms",
    "LanczosForms",
    "Measure",
    "Objective",
    "Ranking",
    "Stability",
    "Stopping",
    "Traces",
    "noise_stability",
    "noise_stability_table",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "CurvatureEngine": "hesstune.curvature.engine",
        "ExactForms": "hesstune.curvature.exact.forms",
        "LanczosForms": "hesstune.curvature.smooth.lanczos",
        "Measure": "hesstune.curvature.result",
        "Objective": "hesstune.curvature.objective",
        "Ranking": "hesstune.curvature.smooth.ranking",
        "Stability": "hesstune.curvature.stability",
        "Stopping": "hesstune.curvature.smooth.stopping",
        "Traces": "hesstune.curvature.smooth.lanczos",
        "noise_stability": "hesstune.curvature.stability",
        "noise_stability_table": "hesstune.curvature.stability",
    },
)
