"""The Hessian distance measure: v_iᵀ H_i⁺ v_i for each example and layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesstune._lazy import lazily

if TYPE_CHECKING:
    from hesstune.curvature.callback import MeasureCallback
    from hesstune.curvature.engine import CurvatureEngine
    from hesstune.curvature.exact import ExactForms
    from hesstune.curvature.lanczos import LanczosForms, Traces
    from hesstune.curvature.objective import Objective
    from hesstune.curvature.quadrature import Stopping
    from hesstune.curvature.quantities import Quantity

__all__ = [
    "CurvatureEngine",
    "ExactForms",
    "LanczosForms",
    "MeasureCallback",
    "Objective",
    "Quantity",
    "Stopping",
    "Traces",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "CurvatureEngine": "hesstune.curvature.engine",
        "ExactForms": "hesstune.curvature.exact",
        "LanczosForms": "hesstune.curvature.lanczos",
        "MeasureCallback": "hesstune.curvature.callback",
        "Objective": "hesstune.curvature.objective",
        "Quantity": "hesstune.curvature.quantities",
        "Stopping": "hesstune.curvature.quadrature",
        "Traces": "hesstune.curvature.lanczos",
    },
)
