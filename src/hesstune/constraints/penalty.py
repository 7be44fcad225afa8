"""Penalties on the distance from the reference: the soft counterpart of the constraint."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from hesstune.checks import one_of
from hesstune.errors import ConfigError
from hesstune.forward import named_parameters
from hesstune.reference import Reference

__all__ = ["StartingPointPenalty"]

POWERS = {"l2": 2, "l1": 1}


class StartingPointPenalty:
    """Pull weights towards their reference: L2-SP, α/2 ‖w − w⁽ˢ⁾‖² + β/2 ‖h − h⁽ˢ⁾‖², or L1-SP.

    w are the parameters that the pretrained network has, h the head's. L1-SP takes α ‖w − w⁽ˢ⁾‖₁
    + β ‖h − h⁽ˢ⁾‖₁. Only parameters that train are penalised. Source: Li, Grandvalet, Davoine 2018,
    equations 2 and 4; there the head is pulled to 0, which is the reference of a zero head.

    Args:
        model: The network that is trained.
        ref: Its reference, taken before training.
        kind: `l2` or `l1`.
        alpha: Strength for all parameters but the head's.
        beta: Strength for the head.
        head: Tells whether a parameter, by its name, belongs to the head.

    Raises:
        LayerError: If the model does not match the reference.
        ConfigError: If a strength is negative, or no parameter trains.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> penalty = StartingPointPenalty(model, Reference.of(model), "l2", alpha=0.5)
        >>> with torch.no_grad():
        ...     _ = model.weight.add_(2.0)
        >>> round(float(penalty().detach()), 4)  # 0.5 / 2 · (4 + 4)
        2.0
    """

    def __init__(
        self,
        model: nn.Module,
        ref: Reference,
        kind: str,
        *,
        alpha: float,
        beta: float = 0.0,
        head: Callable[[str], bool] = lambda name: False,
    ) -> None:
        ref.check(model)
        self.kind = one_of("kind of penalty", kind, tuple(POWERS))
        if alpha < 0 or beta < 0:
            raise ConfigError(f"alpha and beta must be at least 0; got {alpha:g} and {beta:g}")
        groups: dict[float, list[tuple[nn.Parameter, torch.Tensor]]] = {}
        for name, parameter in named_parameters(model).items():
            if parameter.requires_grad:
                strength = float(beta if head(name) else alpha)
                groups.setdefault(strength, []).append((parameter, ref[name].to(parameter)))
        if not groups:
            raise ConfigError("no parameter of the model trains, so there is nothing to penalise")
        self._groups = groups

    def __call__(self) -> torch.Tensor:
        """Return the penalty, a scalar with gradient."""
        return torch.stack([s * self._norm(pairs) for s, pairs in self._groups.items()]).sum()

    def _norm(self, pairs: Iterable[tuple[nn.Parameter, torch.Tensor]]) -> torch.Tensor:
        differences = [parameter - anchor for parameter, anchor in pairs]
        if self.kind == "l1":
            return torch.stack([d.abs().sum() for d in differences]).sum()
        return 0.5 * torch.stack([d.square().sum() for d in differences]).sum()
