"""A run on disk: its configuration, folder, records and checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesstune._lazy import lazily

if TYPE_CHECKING:
    from hesstune.runs.config import FinetuneConfig
    from hesstune.runs.options import CertifyOptions, MeasureOptions, PredictOptions
    from hesstune.runs.predictions import Predictions

__all__ = ["CertifyOptions", "FinetuneConfig", "MeasureOptions", "PredictOptions", "Predictions"]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "FinetuneConfig": "hesstune.runs.config",
        "CertifyOptions": "hesstune.runs.options",
        "MeasureOptions": "hesstune.runs.options",
        "PredictOptions": "hesstune.runs.options",
        "Predictions": "hesstune.runs.predictions",
    },
)
