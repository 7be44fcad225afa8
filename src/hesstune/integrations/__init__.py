"""hesstune inside other libraries' training loops."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesstune._lazy import lazily

if TYPE_CHECKING:
    from hesstune.integrations.lightning import RobustCallback
    from hesstune.integrations.peft import AdapterConstraint
    from hesstune.integrations.ray import ExtractedFeatures, ExtractionOptions, extract_features
    from hesstune.integrations.sklearn import RobustClassifier, RobustLinearClassifier
    from hesstune.integrations.transformers import (
        PretrainedDecayCallback,
        RobustTrainerCallback,
        consistent_loss,
    )

__all__ = [
    "AdapterConstraint",
    "ExtractedFeatures",
    "ExtractionOptions",
    "PretrainedDecayCallback",
    "RobustCallback",
    "RobustClassifier",
    "RobustLinearClassifier",
    "RobustTrainerCallback",
    "consistent_loss",
    "extract_features",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "AdapterConstraint": "hesstune.integrations.peft",
        "ExtractedFeatures": "hesstune.integrations.ray",
        "ExtractionOptions": "hesstune.integrations.ray",
        "PretrainedDecayCallback": "hesstune.integrations.transformers",
        "RobustCallback": "hesstune.integrations.lightning",
        "RobustClassifier": "hesstune.integrations.sklearn",
        "RobustLinearClassifier": "hesstune.integrations.sklearn",
        "RobustTrainerCallback": "hesstune.integrations.transformers",
        "consistent_loss": "hesstune.integrations.transformers",
        "extract_features": "hesstune.integrations.ray",
    },
)
