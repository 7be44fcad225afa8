"""Losses that stay consistent under label noise."""

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
