"""Noise matrices: how labels are wrong, given, simulated or estimated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesstune._lazy import lazily

if TYPE_CHECKING:
    from hesstune.noise.confidence import NoiseConfidenceSet
    from hesstune.noise.estimate import (
        ESTIMATORS,
        Estimate,
        estimate_noise,
        from_posterior,
    )
    from hesstune.noise.matrix import NoiseMatrix

__all__ = [
    "ESTIMATORS",
    "Estimate",
    "NoiseConfidenceSet",
    "NoiseMatrix",
    "estimate_noise",
    "from_posterior",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "ESTIMATORS": "hesstune.noise.estimate",
        "Estimate": "hesstune.noise.estimate",
        "NoiseConfidenceSet": "hesstune.noise.confidence",
        "NoiseMatrix": "hesstune.noise.matrix",
        "estimate_noise": "hesstune.noise.estimate",
        "from_posterior": "hesstune.noise.estimate",
    },
)
