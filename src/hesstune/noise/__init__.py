"""Noise matrices: how labels are wrong, given, simulated or estimated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesstune._lazy import lazily

if TYPE_CHECKING:
    from hesstune.noise.estimate import (
        ESTIMATORS,
        ConfidenceSet,
        Estimate,
        confidence_set,
        estimate_noise,
        from_posterior,
    )
    from hesstune.noise.matrix import NoiseMatrix

__all__ = [
    "ESTIMATORS",
    "ConfidenceSet",
    "Estimate",
    "NoiseMatrix",
    "confidence_set",
    "estimate_noise",
    "from_posterior",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "ConfidenceSet": "hesstune.noise.estimate",
        "ESTIMATORS": "hesstune.noise.estimate",
        "Estimate": "hesstune.noise.estimate",
        "NoiseMatrix": "hesstune.noise.matrix",
        "confidence_set": "hesstune.noise.estimate",
        "estimate_noise": "hesstune.noise.estimate",
        "from_posterior": "hesstune.noise.estimate",
    },
)
