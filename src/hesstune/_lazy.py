"""Names of packages that are loaded on first use (PEP 562), so that importing a package costs nothing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazily(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's `__getattr__` and `__dir__`, for names that live in its modules.

    A name must not be that of a module of the package: importing the module would replace it.

    Args:
        package: The package's `__name__`.
        homes: Each name's module.

    Example:
        >>> load, names = lazily("hesstune", {"HesstuneError": "hesstune.errors"})
        >>> load("HesstuneError").__name__, names()
        ('HesstuneError', ['HesstuneError'])
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        value = getattr(importlib.import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return load, lambda: sorted(homes)
