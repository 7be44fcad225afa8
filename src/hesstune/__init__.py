"""Fine-tune pretrained networks on small, noisily labelled data; say how far the result can be trusted.

Names are loaded on first use (PEP 562), so `import hesstune` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hesstune.bounds.certificate import certify
    from hesstune.constraints.distance import DistanceConstraint
    from hesstune.curvature.measure import measure
    from hesstune.curvature.result import Measure
    from hesstune.curvature.stability import noise_stability
    from hesstune.errors import HesstuneError
    from hesstune.losses.consistent import ConsistentLoss
    from hesstune.noise.matrix import NoiseMatrix
    from hesstune.reference import Reference
    from hesstune.study.compare import Comparison, compare
    from hesstune.training.finetune import finetune
    from hesstune.training.predict import predict
    from hesstune.training.programmatic import label_data
    from hesstune.training.run import Run

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "ConsistentLoss",
    "DistanceConstraint",
    "HesstuneError",
    "Measure",
    "NoiseMatrix",
    "Reference",
    "Run",
    "__version__",
    "certify",
    "compare",
    "finetune",
    "label_data",
    "measure",
    "noise_stability",
    "predict",
]

_HOMES = {
    "Comparison": "hesstune.study.compare",
    "ConsistentLoss": "hesstune.losses.consistent",
    "DistanceConstraint": "hesstune.constraints.distance",
    "HesstuneError": "hesstune.errors",
    "Measure": "hesstune.curvature.result",
    "NoiseMatrix": "hesstune.noise.matrix",
    "Reference": "hesstune.reference",
    "Run": "hesstune.training.run",
    "certify": "hesstune.bounds.certificate",
    "compare": "hesstune.study.compare",
    "finetune": "hesstune.training.finetune",
    "label_data": "hesstune.training.programmatic",
    "measure": "hesstune.curvature.measure",
    "noise_stability": "hesstune.curvature.stability",
    "predict": "hesstune.training.predict",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hesstune' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
