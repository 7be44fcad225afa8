"""Lightning: the constraint as a callback whose reference travels in the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hesstune.errors import MissingExtraError, ModelError
from hesstune.integrations._balls import constraint_of, reference_of
from hesstune.reference import Reference

try:
    from lightning.pytorch import Callback
except ImportError:
    raise MissingExtraError("lightning", "lightning", "hesstune.integrations.lightning") from None

__all__ = ["RobustCallback"]


class RobustCallback(Callback):
    """Keep each layer inside its ball around the weights that training started from.

    The reference is the module as `fit` starts; it goes into every checkpoint, and a resumed training
    takes it from there.

    Args:
        radius: One radius, or {pattern: radius}, as for `DistanceConstraint`.
        norm: `frobenius` or `mars`.
        module: The attribute of the LightningModule that is constrained; all of it where None.

    Example:
        >>> callback = RobustCallback(0.1, module="model")
        >>> # Trainer(..., callbacks=[callback])
    """

    def __init__(
        self, radius: float | Mapping[str, float], *, norm: str = "frobenius", module: str | None = None
    ) -> None:
        self.radius, self.norm, self.module = radius, norm, module
        self.reference: Reference | None = None
        self.constraint: Any = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Take the reference, unless a checkpoint brought it."""
        network = self._network(pl_module)
        if self.reference is None:
            self.reference = reference_of(network)
        self.reference = self.reference.to(next(network.parameters()).device)
        self.constraint = constraint_of(network, self.reference, self.radius, self.norm)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        """Project every layer that has left its ball."""
        assert self.constraint is not None
        self.constraint.project_()

    def state_dict(self) -> dict[str, Any]:
        """Return the reference, for the checkpoint."""
        if self.reference is None:
            return {}
        tensors = {name: self.reference[name].detach().cpu() for name in self.reference.names()}
        return {"tensors": tensors, "layers": self.reference.layers()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the reference from a checkpoint."""
        if state_dict:
            tensors: dict[str, torch.Tensor] = state_dict["tensors"]
            self.reference = Reference(tensors, list(state_dict["layers"]))

    def _network(self, pl_module: nn.Module) -> nn.Module:
        if self.module is None:
            return pl_module
        found = getattr(pl_module, self.module, None)
        if not isinstance(found, nn.Module):
            raise ModelError(f"the LightningModule has no module '{self.module}'; give its attribute's name")
        return found
