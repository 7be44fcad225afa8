"""Fine-tuning methods: one file each, found by its name."""

from __future__ import annotations

import importlib
import pkgutil

from hesstune.errors import ConfigError, unknown_name
from hesstune.methods._base import Batch, Method, MethodSetup, Option

__all__ = ["Batch", "Method", "MethodSetup", "Option", "method_class", "method_name", "method_names"]

# Classes of users' own, by their names: known while the process lasts.
_OWN: dict[str, type[Method]] = {}


def method_names() -> list[str]:
    """List the methods' names: the files of this folder."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def method_class(name: str) -> type[Method]:
    """Return the class of a method by its name.

    Raises:
        ConfigError: If there is none, with the nearest name.
    """
    if name in _OWN:
        return _OWN[name]
    if name not in method_names():
        raise unknown_name("method", name, method_names())
    module = importlib.import_module(f"{__name__}.{name}")
    found: type[Method] = module.METHOD
    return found


def method_name(method: str | type[Method]) -> str:
    """Return the name of a method that may be given as a class.

    A class of your own goes by its `__name__`, and `method_class` finds it for as long as the process
    lasts: another process that reads its runs calls this once, too.

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
    name = method.__name__
    package, _, own = method.__module__.rpartition(".")
    if package == __name__ and not own.startswith("_"):
        name = own
    if name in method_names():
        if method is not method_class(name):
            raise ConfigError(f"the class {name} has the name of another method; give it one of its own")
        return name
    _OWN[name] = method
    return name
