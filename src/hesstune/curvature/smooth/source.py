"""Where the Lanczos recurrences of a batch start: one graph for all layers that can share it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from hesstune.curvature.smooth.products import LayerProducts
from hesstune.curvature.smooth.quadrature import Krylov
from hesstune.curvature.smooth.weight_space import WeightProducts

__all__ = ["BatchSource", "HessianSource"]


class HessianSource(Protocol):
    """Anything that starts the Lanczos recurrence of a layer for a batch of examples."""

    def krylov(self, name: str, delta: torch.Tensor) -> Krylov:
        """Start at v = delta: the weight's shape, or one for each example, (B, *weight.shape)."""
        ...


class BatchSource:
    """Captured layers share one graph; for any other one a graph is made when it is asked for.

    Args:
        shared: The products of the captured layers; None where there are none.
        weight_space: layer -> its products. Those of the layer asked for last are kept.
    """

    def __init__(self, shared: LayerProducts | None, weight_space: Callable[[str], WeightProducts]) -> None:
        self._shared, self._weight_space = shared, weight_space
        self._last: tuple[str, WeightProducts] | None = None

    def krylov(self, name: str, delta: torch.Tensor) -> Krylov:
        """Start at v = delta: the weight's shape, or one for each example, (B, *weight.shape)."""
        if self._shared is not None and name in self._shared.layers:
            return self._shared.krylov(name, delta)
        if self._last is None or self._last[0] != name:
            self._last = None  # at most one such graph is alive
            self._last = name, self._weight_space(name)
        return self._last[1].krylov(name, delta)
