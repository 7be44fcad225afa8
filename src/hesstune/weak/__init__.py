"""Programmatic labels: votes of rules, crowds and weak models, and the models that combine them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesstune._lazy import lazily

if TYPE_CHECKING:
    from hesstune.weak.label_models import label
    from hesstune.weak.vote_sources import apply_functions
    from hesstune.weak.votes import Votes

__all__ = ["Votes", "apply_functions", "label"]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "Votes": "hesstune.weak.votes",
        "apply_functions": "hesstune.weak.vote_sources",
        "label": "hesstune.weak.label_models",
    },
)
