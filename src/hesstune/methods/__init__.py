"""Fine-tuning methods by name. Files without an underscore hold a table METHODS of names and classes."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from hesstune.errors import ConfigError, unknown_name
from hesstune.methods._base import TIERS, Batch, Method, MethodSetup, Option, Tier
from hesstune.methods._heads import estimator_method

__all__ = [
    "TIERS",
    "Batch",
    "Method",
    "MethodSetup",
    "Option",
    "estimator_method",
    "method_class",
    "method_name",
    "method_names",
    "methods_by_tier",
]

# Users' own classes by name, for the life of the process.
_OWN: dict[str, type[Method]] = {}


@cache
def _built_in() -> dict[str, type[Method]]:
    found: dict[str, type[Method]] = {}
    for file in pkgutil.iter_modules(__path__):
        if not file.name.startswith("_"):
            found |= importlib.import_module(f"{__name__}.{file.name}").METHODS
    return dict(sorted(found.items()))


def method_names() -> list[str]:
    """List the names of the methods that hesstune has."""
    return list(_built_in())


def methods_by_tier() -> dict[Tier, dict[str, type[Method]]]:
    """Return the methods that hesstune has, name to class, by tier: recommended, baseline, research.

    Example:
        >>> "auto" in methods_by_tier()["recommended"]
        True
    """
    built_in = _built_in().items()
    return {tier: {name: kind for name, kind in built_in if kind.tier == tier} for tier in TIERS}


def method_class(name: str) -> type[Method]:
    """Return the class of a method by its name.

    Raises:
        ConfigError: If there is none, with the nearest name.
    """
    known = {**_built_in(), **_OWN}
    if name not in known:
        raise unknown_name("method", name, list(known))
    return known[name]


def method_name(method: str | type[Method]) -> str:
    """Return the name of a method that may be given as a class.

    The name of your own class is its `__name__`. `method_class` finds it for the life of the process; another
    process that reads its runs calls this function first.

    Raises:
        ConfigError: If it is neither a name nor a subclass of Method, or has the name of another one.

    Example:
        >>> method_name(method_class("robust")), method_name("robust")
        ('robust', 'robust')
    """
    if isinstance(method, str):
        return method
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise ConfigError(f"a method is a name or a subclass of hesstune.methods.Method; got {method!r}")
    for name, kind in _built_in().items():
        if method is kind:
            return name
    name = method.__name__
    if name in _built_in():
        raise ConfigError(f"the class {name} has the name of another method; rename it")
    _OWN[name] = method
    return name
