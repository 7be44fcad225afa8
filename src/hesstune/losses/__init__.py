"""Losses that stay consistent under label noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesstune._lazy import lazily

if TYPE_CHECKING:
    from hesstune.losses.consistent import ConsistentLoss
    from hesstune.losses.robust import (
        ActivePassiveLoss,
        ForwardLoss,
        GeneralizedCrossEntropy,
        JensenShannonLoss,
        SymmetricCrossEntropy,
    )

__all__ = [
    "ActivePassiveLoss",
    "ConsistentLoss",
    "ForwardLoss",
    "GeneralizedCrossEntropy",
    "JensenShannonLoss",
    "SymmetricCrossEntropy",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "ActivePassiveLoss": "hesstune.losses.robust",
        "ConsistentLoss": "hesstune.losses.consistent",
        "ForwardLoss": "hesstune.losses.robust",
        "GeneralizedCrossEntropy": "hesstune.losses.robust",
        "JensenShannonLoss": "hesstune.losses.robust",
        "SymmetricCrossEntropy": "hesstune.losses.robust",
    },
)
