"""hesstune inside other libraries' training loops."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesstune._lazy import lazily

if TYPE_CHECKING:
    from hesstune.integrations.lightning import RobustCallback
    from hesstune.integrations.peft import AdapterConstraint
    from hesstune.integrations.sklearn import RobustClassifier
    from hesstune.integrations.transformers import (
        PenaltyMixin,
        PretrainedDecayCallback,
        RobustTrainerCallback,
        consistent_loss,
        kept_reference,
    )

__all__ = [
    "AdapterConstraint",
    "PenaltyMixin",
    "PretrainedDecayCallback",
    "RobustCallback",
    "RobustClassifier",
    "RobustTrainerCallback",
    "consistent_loss",
    "kept_reference",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "AdapterConstraint": "hesstune.integrations.peft",
        "PenaltyMixin": "hesstune.integrations.transformers",
        "PretrainedDecayCallback": "hesstune.integrations.transformers",
        "RobustCallback": "hesstune.integrations.lightning",
        "RobustClassifier": "hesstune.integrations.sklearn",
        "RobustTrainerCallback": "hesstune.integrations.transformers",
        "consistent_loss": "hesstune.integrations.transformers",
        "kept_reference": "hesstune.integrations.transformers",
    },
)
