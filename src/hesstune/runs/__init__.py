"""A run on disk: its configuration, folder, records and checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesstune._lazy import lazily

if TYPE_CHECKING:
    from hesstune.runs.config import FinetuneConfig, make_config
    from hesstune.runs.options import (
        CertifyOptions,
        MeasureOptions,
        NoiseCheckOptions,
        PredictOptions,
        StabilityOptions,
    )
    from hesstune.runs.predictions import Predictions
    from hesstune.runs.run import Run

__all__ = [
    "CertifyOptions",
    "FinetuneConfig",
    "MeasureOptions",
    "NoiseCheckOptions",
    "PredictOptions",
    "Predictions",
    "Run",
    "StabilityOptions",
    "make_config",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "FinetuneConfig": "hesstune.runs.config",
        "CertifyOptions": "hesstune.runs.options",
        "MeasureOptions": "hesstune.runs.options",
        "NoiseCheckOptions": "hesstune.runs.options",
        "PredictOptions": "hesstune.runs.options",
        "StabilityOptions": "hesstune.runs.options",
        "Predictions": "hesstune.runs.predictions",
        "Run": "hesstune.runs.run",
        "make_config": "hesstune.runs.config",
    },
)
