"""Where to compute."""

from __future__ import annotations

import os

import torch

from hesstune.errors import ConfigError

__all__ = ["free_memory", "pick_device"]


def pick_device(name: str) -> torch.device:
    """Return the device by name; `auto` takes CUDA, then Apple's GPU, then the CPU.

    Raises:
        ConfigError: If there is no such device here.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto" and cuda and (place := os.environ.get("LOCAL_RANK")):
        return torch.device("cuda", int(place) % torch.cuda.device_count())  # torchrun: one each
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device '{name}'; valid: auto, cpu, cuda, mps") from None
    present = {"cpu": True, "cuda": cuda, "mps": mps}.get(device.type, False)
    if not present:
        raise ConfigError(f"device '{name}' is not available here; use --device cpu")
    return device


def free_memory(device: torch.device) -> int | None:
    """Return how many bytes a device has left, as its system says; None where it does not say."""
    if device.type == "cuda":
        left: int = torch.cuda.mem_get_info(device)[0]
        return left + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    import psutil  # type: ignore[import-untyped]

    return int(psutil.virtual_memory().available)
