"""Weights that optimizers keep beside those of the model: averages, slow weights, copies in float32."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from hesstune.errors import ConfigError, LayerError

# Names under which the state of a parameter holds weights: schedule-free averages and iterates, averaged SGD,
# the slow weights of Lookahead, and copies in another precision.
WEIGHTS = frozenset({
    "z", "x", "ax", "lookahead_slow_buff", "slow_buffer", "slow_buff", "slow_param", "slow_weights",
    "cached_params", "master_param", "master_params", "master_weight", "master_weights", "fp32_param",
    "ema", "ema_param", "param_ema",
})  # fmt: skip


@dataclass
class Kept:
    """A weight that an optimizer keeps beside a parameter; it is written to in place.

    An average that is not stored, x = (y − (1 − β)·z) / β of a schedule-free optimizer, is made from the
    parameter y and the iterate z; `beta` and `z` are None for stored weights.
    """

    name: str
    tensor: torch.Tensor
    beta: float | None = None
    z: torch.Tensor | None = None

    def write_into(self, parameter: torch.Tensor) -> None:
        """Set the parameter of an average that is not stored to y = β·x + (1 − β)·z."""
        if self.z is not None and self.beta is not None:
            parameter.copy_(self.tensor.lerp(self.z.to(self.tensor), 1 - self.beta))


class Optimizers:
    """The optimizers that step some parameters, by {name: parameter}: the given one, and those seen at a
    step.

    torch calls hooks after each step of any optimizer (`register_optimizer_step_post_hook`). The hook of this
    object ends with the object. Wrappers that are no torch optimizers, such as `ScheduleFreeWrapper`, have to
    be given; LayerError if a given one steps none of the parameters.
    """

    def __init__(self, parameters: dict[str, torch.Tensor], given: Any = None) -> None:
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._found: list[weakref.ref[Any]] = []
        self.given = _inner(given)
        if given is not None and not any(True for _ in self._groups(self.given)):
            raise LayerError(
                f"the optimizer {type(given).__name__} steps none of the constrained layers (it may step "
                "copies in another precision): leave optimizer= out, call project_() after the copies were "
                "written into the model, and copy the projected weights back"
            )
        own = weakref.ref(self)

        def see(optimizer: Any, args: Any, kwargs: Any) -> None:
            found = own()
            if found is not None:
                found.see(optimizer)

        weakref.finalize(self, register_optimizer_step_post_hook(see).remove)

    def see(self, optimizer: Any) -> None:
        """Remember an optimizer if it steps one of the parameters."""
        if all(known() is not optimizer for known in self._found) and any(self._groups(optimizer)):
            self._found = [known for known in self._found if known() is not None] + [weakref.ref(optimizer)]

    def kept(self) -> list[Kept]:
        """Return the weights kept beside the parameters; ConfigError if an unknown wrapper decides what these
        hold.
        """
        base = getattr(self.given, "base", None)
        every = [*([] if self.given is None else [self.given])]
        every += [o for known in self._found if (o := known()) is not None and o is not base]
        return [kept for optimizer in dict.fromkeys(every) for kept in self._weights_kept_by(optimizer)]

    def _weights_kept_by(self, optimizer: Any) -> Iterator[Kept]:
        """Yield the weights in the state of an optimizer, such as averages."""
        for name, parameter, group in self._groups(optimizer):
            state = optimizer.state.get(parameter, {})
            for key in WEIGHTS & state.keys():
                if isinstance(state[key], torch.Tensor) and state[key].shape == parameter.shape:
                    yield Kept(name, state[key])
            if "z" in state and "x" not in state:
                beta = _interpolation(optimizer, group)
                if beta is not None:
                    y = parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32))
                    x = torch.lerp(y, state["z"].to(y), 1 - 1 / beta)
                    yield Kept(name, x, beta, state["z"])

    def _groups(self, optimizer: Any) -> Iterator[tuple[str, torch.Tensor, dict[str, Any]]]:
        """Iterate over (name, parameter, its group) of the parameters that the optimizer steps."""
        for group in getattr(optimizer, "param_groups", ()):
            for parameter in group["params"]:
                if (name := self._names.get(id(parameter))) is not None:
                    yield name, parameter, group


def _interpolation(optimizer: Any, group: dict[str, Any]) -> float | None:
    """Return β if the parameters of a schedule-free optimizer are y = β·x + (1 − β)·z; None if they are x."""
    wrapper = hasattr(optimizer, "base") and hasattr(optimizer, "momentum")
    if wrapper:
        training, beta = optimizer.train_mode, optimizer.momentum
    elif "train_mode" in group:
        training, beta = group["train_mode"], group["betas"][0] if "betas" in group else group["momentum"]
    elif type(optimizer).__module__.startswith("torch."):
        raise ConfigError(
            f"the state of {type(optimizer).__name__} holds the iterates of a schedule-free wrapper, which "
            "decides what the weights of the model are: give it, DistanceConstraint(…, optimizer=wrapper)"
        )
    else:  # variants with a closure hold x outside of a step
        return None
    return float(beta) if training and beta else None


def _inner(optimizer: Any) -> Any:
    """Return the optimizer inside the wrappers of accelerate and Lightning."""
    while type(optimizer).__module__.startswith(("accelerate.", "lightning.", "pytorch_lightning.")):
        optimizer = getattr(optimizer, "optimizer", None) or optimizer._optimizer
    return optimizer


class AfterSteps:
    """Project after each step of some optimizers, before any callback of a training loop sees the weights."""

    def __init__(self, optimizers: Iterable[Any], constraint: Any) -> None:
        self.constraint = constraint
        self._projected = False
        found = [_inner(optimizer) for optimizer in optimizers if optimizer is not None]
        # Wrappers that are no torch optimizers call no hooks.
        self._handles = [
            o.register_step_post_hook(self._project_after_step)
            for o in found
            if isinstance(o, torch.optim.Optimizer) and getattr(type(o).step, "hooked", False)
        ]

    def _project_after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self.constraint.project_()
        self._projected = True

    def project_(self) -> None:
        """Project now if no step of the optimizers has done it since the last call."""
        if not self._projected:
            self.constraint.project_()
        self._projected = False

    def end(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
