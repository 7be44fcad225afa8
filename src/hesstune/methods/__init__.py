"""Fine-tuning methods: one file each, found by its name."""

from __future__ import annotations

import importlib
import pkgutil

from hesstune.errors import unknown_name
from hesstune.methods._base import Batch, Method, MethodSetup, Option

__all__ = ["Batch", "Method", "MethodSetup", "Option", "method_class", "method_names"]


def method_names() -> list[str]:
    """List the methods' names: the files of this folder."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def method_class(name: str) -> type[Method]:
    """Return the class of a method by its name.

    Raises:
        ConfigError: If there is none, with the nearest name.
    """
    if name not in method_names():
        raise unknown_name("method", name, method_names())
    module = importlib.import_module(f"{__name__}.{name}")
    found: type[Method] = module.METHOD
    return found
