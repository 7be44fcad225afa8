"""Which parameters are trained: all, the head, the last N layers, all from a module on, or a pattern."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from hesstune.checks import parse_integer
from hesstune.errors import ConfigError, unknown_name
from hesstune.reference import in_modules, layer_names

__all__ = ["freeze", "trains_head_only"]


def freeze(model: nn.Module, train: str, heads: str | Sequence[str]) -> list[str]:
    """Freeze every parameter that `train` does not name; return the names of those trained.

    Raises:
        ConfigError: As `_chosen`.
    """
    chosen = _chosen(model, train, heads)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return [name for name, _ in model.named_parameters() if name in chosen]


def trains_head_only(model: nn.Module, train: str, heads: str | Sequence[str]) -> bool:
    """Return whether `train` names exactly the parameters of the head, however it is written.

    Raises:
        ConfigError: As `_chosen`.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> [trains_head_only(model, train, "2") for train in ("last:1", "2.*", "from:2", "last:2", "2.bias")]
        [True, True, True, False, False]
    """
    return _chosen(model, train, heads) == _chosen(model, "head", heads)


def _chosen(model: nn.Module, train: str, heads: str | Sequence[str]) -> set[str]:
    """Return the names of the parameters that `train` names.

    Args:
        model: The network.
        train: `all`, `head`, `last:N` (the head, and of the other layers the N - 1 defined last with every
            parameter defined after the first of them), `from:NAME` (a module and every parameter defined
            after its first), or an fnmatch pattern on parameter names.
        heads: The name of the head's module, or of all modules that are the head together.

    Raises:
        ConfigError: If the pattern matches no parameter, N is no positive integer, or no such module has
            parameters.
    """
    names = [name for name, _ in model.named_parameters()]
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    of_head = {name for name in names if in_modules(name, heads)}
    if train == "all":
        chosen = set(names)
    elif train == "head":
        chosen = of_head
    elif train.startswith("last:"):
        count = parse_integer(train.removeprefix("last:"))
        body = [name for name in layer_names(model) if name not in of_head]
        most = len(body) + bool(of_head)
        if count is None or not 1 <= count <= most:
            raise ConfigError(f"train '{train}' must be last:N with N from 1 to {most}")
        others = count - bool(of_head)
        chosen = of_head | set(names[names.index(body[-others]) :] if others else ())
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
