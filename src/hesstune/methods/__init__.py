"""Fine-tuning methods, found by their names: one file each, or together with others that differ little."""

from __future__ import annotations

import importlib
import pkgutil

from hesstune.errors import ConfigError, unknown_name
from hesstune.methods._base import TIERS, Batch, Method, MethodSetup, Option
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
]

# The methods of files that hold several. Every other file is a method of its name.
SHARED = {
    "baselines": ("vanilla", "early_stopping", "weight_decay", "l2_sp", "l1_sp", "mixup"),
    "constrained": ("constraint", "robust", "robust_plus", "regsl"),
    "perturbed": ("sam", "nso"),
    "phases": ("lp_ft", "wise_ft", "gradual_unfreezing"),
    "robust_losses": (
        *("consistent", "forward", "label_smoothing", "gce", "sce", "apl"),
        *("gjs", "elr", "sat"),
    ),
    "two_networks": ("co_teaching", "divide_mix"),
}
# Users' own classes by name, for the life of the process.
_OWN: dict[str, type[Method]] = {}


def _files() -> dict[str, str]:
    """Return the file of each method."""
    own = [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
    files = {name: name for name in own if name not in SHARED}
    return files | {name: file for file, names in SHARED.items() for name in names}


def method_names() -> list[str]:
    """List the names of the methods that hesstune has."""
    return sorted(_files())


def method_class(name: str) -> type[Method]:
    """Return the class of a method by its name.

    Raises:
        ConfigError: If there is none, with the nearest name.
    """
    if name in _OWN:
        return _OWN[name]
    files = _files()
    if name not in files:
        raise unknown_name("method", name, [*sorted(files), *_OWN])
    module = importlib.import_module(f"{__name__}.{files[name]}")
    found: type[Method] = module.METHODS[name] if files[name] in SHARED else module.METHOD
    return found


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
    for name in method_names():
        if method.__module__ == f"{__name__}.{_files()[name]}" and method is method_class(name):
            return name
    name = method.__name__
    if name in method_names():
        raise ConfigError(f"the class {name} has the name of another method; give it one of its own")
    _OWN[name] = method
    return name
