"""Adapters from what users have (folders, CSV files, built-in data) to examples in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesstune._lazy import lazily

if TYPE_CHECKING:
    from hesstune.data.examples import Examples, Task
    from hesstune.data.load import load_task

__all__ = ["Examples", "Task", "load_task"]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "Examples": "hesstune.data.examples",
        "Task": "hesstune.data.examples",
        "load_task": "hesstune.data.load",
    },
)
