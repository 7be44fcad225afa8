"""Which parameters are trained: all, the head, the last N layers, all from a module on, or a pattern."""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import nn

from hesstune.errors import ConfigError, unknown_name
from hesstune.reference import layer_names

__all__ = ["freeze", "trains_head_only"]


def freeze(model: nn.Module, train: str, head: str) -> list[str]:
    """Freeze every parameter that `train` does not name; return the names of those trained.

    Raises:
        ConfigError: As `_chosen`.
    """
    chosen = _chosen(model, train, head)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return [name for name, _ in model.named_parameters() if name in chosen]


def trains_head_only(model: nn.Module, train: str, head: str) -> bool:
    """Return whether `train` names exactly the parameters of the head, however it is written.

    Raises:
        ConfigError: As `_chosen`.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> [trains_head_only(model, train, "2") for train in ("last:1", "2.*", "from:2", "last:2", "2.bias")]
        [True, True, True, False, False]
    """
    return _chosen(model, train, head) == _chosen(model, "head", head)


def _chosen(model: nn.Module, train: str, head: str) -> set[str]:
    """Return the names of the parameters that `train` names.

    Args:
        model: The network.
        train: `all`, `head`, `last:N` (the last N layers and every parameter defined after the first
            of them), `from:NAME` (a module and every parameter defined after its first), or an fnmatch
            pattern on parameter names.
        head: The name of the head's module.

    Raises:
        ConfigError: If the pattern matches no parameter, N is no positive integer, or no such module has
            parameters.
    """
    names = [name for name, _ in model.named_parameters()]
    if train == "all":
        chosen = set(names)
    elif train == "head":
        chosen = {name for name in names if name.startswith(f"{head}." if head else "")}
    elif train.startswith("last:"):
        count = train.removeprefix("last:")
        layers = layer_names(model)
        if not count.isdigit() or not 1 <= int(count) <= len(layers):
            raise ConfigError(f"train '{train}' must be last:N with N from 1 to {len(layers)}")
        chosen = set(names[names.index(layers[-int(count)]) :])
    elif train.startswith("from:"):
        chosen = set(names[_first_of(train.removeprefix("from:"), model, names) :])
    else:
        chosen = {name for name in names if fnmatchcase(name, train)}
        if not chosen:
            raise unknown_name(
                "pattern of parameters to train", train, ["all", "head", "last:N", "from:MODULE", *names]
            )
    return chosen


def _first_of(module: str, model: nn.Module, names: list[str]) -> int:
    """Return where the parameters of a module begin among the names of all."""
    at = next((i for i, name in enumerate(names) if name.startswith(f"{module}.")), None)
    if at is None:
        holders = [n for n, m in model.named_modules() if n and next(m.parameters(), None) is not None]
        raise unknown_name("module to train from", module, holders)
    return at
