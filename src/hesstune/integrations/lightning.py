"""Lightning: the distance constraint as a callback; checkpoints hold its reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hesstune.constraints.distance import warn_if_outside
from hesstune.constraints.optimizers import AfterSteps
from hesstune.errors import DivergedError, MissingExtraError, ModelError
from hesstune.integrations._shared import constraint_of, reference_of
from hesstune.reference import Reference

try:
    from lightning.pytorch import Callback
except ImportError:
    raise MissingExtraError("lightning", "lightning", "hesstune.integrations.lightning") from None


class RobustCallback(Callback):
    """Keep each layer within its radius around the weights before training.

    The reference is the module when `fit` starts. Every checkpoint holds it, and a resumed training reads it
    from there. One callback serves several trainings in turn: each has its own reference.

    Layers are projected right after each optimizer step, before other callbacks see them: averages of weights
    (WeightAveraging, EMAWeightAveraging, StochasticWeightAveraging) lie within the radius in any order of
    callbacks. When `fit` ends, layers outside their radius are named in a warning.

    Args:
        radius: One radius, or {pattern: radius}, as for `DistanceConstraint`.
        norm: `frobenius` or `mars`.
        module: The attribute of the LightningModule that is constrained; default: all of it.
        include: Patterns of further parameters held like layers, as for `DistanceConstraint`.

    Attributes:
        reference: The reference of the current or last training.

    Example:
        >>> callback = RobustCallback(0.1, module="model")
        >>> # Trainer(..., callbacks=[callback])
    """

    def __init__(
        self,
        radius: float | Mapping[str, float],
        *,
        norm: str = "frobenius",
        module: str | None = None,
        include: Sequence[str] | None = None,
    ) -> None:
        self.radius, self.norm, self.module, self.include = radius, norm, module, include
        self.reference: Reference | None = None
        self.constraint: Any = None
        self._steps: AfterSteps | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Drop the reference of an earlier training; a checkpoint is read after this."""
        if stage == "fit":
            self.reference = self.constraint = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Copy the reference, unless a checkpoint had it."""
        network = self._network(pl_module)
        if self.reference is None:
            self.reference = reference_of(network)
        self.reference = self.reference.to(next(network.parameters()).device)
        self.constraint = constraint_of(network, self.reference, self.radius, self.norm, self.include)
        self._steps = AfterSteps(trainer.optimizers, self.constraint)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        """Project every layer onto its constraint, unless its optimizer's step has done so."""
        assert self._steps is not None
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, torch.Tensor) and not bool(torch.isfinite(loss).all()):
            raise DivergedError(
                f"the training loss became {float(loss.detach())}: training has diverged; go back to the "
                "last good checkpoint and lower the learning rate, or set gradient_clip_val"
            )
        self._steps.project_()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Warn of layers that training leaves outside their radius."""
        warn_if_outside(self.constraint.outside(), self.constraint.radii)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Remove the hooks from the optimizers."""
        if self._steps is not None:
            self._steps.end()

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
