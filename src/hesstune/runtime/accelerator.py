"""accelerate's part: the accelerator of a run, and the random state of its devices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from hesstune.errors import RunError

__all__ = ["loss_scale", "make_accelerator", "random_state", "scale_gradients_", "set_random_state"]


def make_accelerator(mixed_precision: str, device: torch.device, toggles_requires_grad: bool) -> Any:
    """Return an Accelerator for this device; of several processes, each gets one that knows the others.

    Args:
        mixed_precision: `no`, `bf16` or `fp16`.
        device: Where training runs.
        toggles_requires_grad: Whether parameters are frozen and thawed while training, so that some get no
            gradient.

    Raises:
        RunError: If the precision does not work there.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState, GradientState, PartialState

    # accelerate keeps its state for the whole process; another run may want another precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    GradientState._reset_state()
    try:
        return Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=mixed_precision,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=toggles_requires_grad)],
        )
    except ValueError as error:
        raise RunError(f"mixed precision {mixed_precision} does not work on {device}: {error}") from error


def loss_scale(accelerator: Any) -> float:
    """Return the factor of the loss in fp16 training, 1 without it.

    It is a power of 2, so that gradients are scaled without rounding.
    """
    return 1.0 if accelerator.scaler is None else float(accelerator.scaler.get_scale())


def scale_gradients_(tensors: Iterable[torch.Tensor], factor: float) -> None:
    """Multiply the gradients of these tensors in place."""
    if factor != 1.0:
        for tensor in tensors:
            if tensor.grad is not None:
                tensor.grad.mul_(factor)


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the state of the global generators that training on a device draws from."""
    found = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return found


def set_random_state(states: dict[str, torch.Tensor], device: torch.device) -> None:
    """Set them back."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
