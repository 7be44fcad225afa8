"""Adapters from model names to torch modules with their preprocessing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesstune._lazy import lazily

if TYPE_CHECKING:
    from hesstune.models.heads import freeze
    from hesstune.models.load import LoadedModel, load_model

__all__ = [
    "LoadedModel",
    "freeze",
    "load_model",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "LoadedModel": "hesstune.models.load",
        "freeze": "hesstune.models.heads",
        "load_model": "hesstune.models.load",
    },
)
