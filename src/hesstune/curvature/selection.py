"""Which layers a pattern asks for."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from hesstune.errors import LayerError, unknown_name

__all__ = ["selected_layers"]


def selected_layers(names: list[str], patterns: str | Sequence[str] | None) -> list[str]:
    """Return the layers that match any of the patterns, in their own order; all where None.

    Raises:
        LayerError: If there are no layers at all, or a pattern matches none.

    Example:
        >>> selected_layers(["stem.weight", "head.weight"], "head.*")
        ['head.weight']
    """
    if not names:
        raise LayerError("the model has no layers (Linear, ConvNd, Conv1D or attention weights)")
    if patterns is None:
        return names
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in wanted:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise unknown_name("layer or pattern", pattern, names, LayerError)
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted)]
