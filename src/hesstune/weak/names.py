"""The label models by name."""

from __future__ import annotations

from typing import Literal, get_args

__all__ = ["LABEL_MODELS", "LabelModel", "PosteriorModel"]

# Those whose answers are probabilities, from which the labels' noise can be estimated.
PosteriorModel = Literal[
    "auto",
    "soft",
    "calibrated",
    "majority",
    "weighted",
    "dawid_skene",
    "mace",
    "latent",
    "features",
    "soft_features",
    "snorkel",
]
LabelModel = Literal[PosteriorModel, "amcl"]
LABEL_MODELS: tuple[str, ...] = get_args(LabelModel)
