"""Fine-tune pretrained networks on small, noisily labelled data; say how far the result can be trusted.

Names are loaded on first use (PEP 562), so `import hesstune` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesstune._lazy import lazily
from hesstune._version import __version__

if TYPE_CHECKING:
    from hesstune.analysis.predict import predict
    from hesstune.bounds.kinds.pac_bayes import certify
    from hesstune.constraints.distance import DistanceConstraint
    from hesstune.curvature.measure import measure
    from hesstune.curvature.result import Measure
    from hesstune.curvature.stability import noise_stability
    from hesstune.errors import HesstuneError
    from hesstune.labeling.clean import clean
    from hesstune.labeling.label_data import label_data
    from hesstune.losses.consistent import ConsistentLoss
    from hesstune.noise.matrix import NoiseMatrix
    from hesstune.reference import Reference
    from hesstune.runs.run import Run
    from hesstune.study.compare import Comparison, compare
    from hesstune.training.finetune import finetune

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
    "clean",
    "compare",
    "finetune",
    "label_data",
    "measure",
    "noise_stability",
    "predict",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "Comparison": "hesstune.study.compare",
        "ConsistentLoss": "hesstune.losses.consistent",
        "DistanceConstraint": "hesstune.constraints.distance",
        "HesstuneError": "hesstune.errors",
        "Measure": "hesstune.curvature.result",
        "NoiseMatrix": "hesstune.noise.matrix",
        "Reference": "hesstune.reference",
        "Run": "hesstune.runs.run",
        "certify": "hesstune.bounds.kinds.pac_bayes",
        "clean": "hesstune.labeling.clean",
        "compare": "hesstune.study.compare",
        "finetune": "hesstune.training.finetune",
        "label_data": "hesstune.labeling.label_data",
        "measure": "hesstune.curvature.measure",
        "noise_stability": "hesstune.curvature.stability",
        "predict": "hesstune.analysis.predict",
    },
)
