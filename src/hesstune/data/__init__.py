"""Adapters from what users have (folders, CSV files, built-in data) to examples in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesstune._lazy import lazily

if TYPE_CHECKING:
    from hesstune.data.augment import Augmentation
    from hesstune.data.examples import Examples, Listing, Task, Texts
    from hesstune.data.load import load_examples, load_task

__all__ = [
    "Augmentation",
    "Examples",
    "Listing",
    "Task",
    "Texts",
    "load_examples",
    "load_task",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "Augmentation": "hesstune.data.augment",
        "Examples": "hesstune.data.examples",
        "Listing": "hesstune.data.examples",
        "Task": "hesstune.data.examples",
        "Texts": "hesstune.data.examples",
        "load_examples": "hesstune.data.load",
        "load_task": "hesstune.data.load",
    },
)
