"""Programmatic labels: votes of rules, crowds and weak models, and the models that combine them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesstune._lazy import lazily

if TYPE_CHECKING:
    from hesstune.weak.label_models import LABEL_MODELS, Labelled, label
    from hesstune.weak.vote_sources import apply_functions, load_functions
    from hesstune.weak.votes import ABSTAIN, Votes

__all__ = [
    "ABSTAIN",
    "LABEL_MODELS",
    "Labelled",
    "Votes",
    "apply_functions",
    "label",
    "load_functions",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "ABSTAIN": "hesstune.weak.votes",
        "LABEL_MODELS": "hesstune.weak.label_models",
        "Labelled": "hesstune.weak.label_models",
        "Votes": "hesstune.weak.votes",
        "apply_functions": "hesstune.weak.vote_sources",
        "label": "hesstune.weak.label_models",
        "load_functions": "hesstune.weak.vote_sources",
    },
)
