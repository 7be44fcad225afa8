"""Weights in files, as torch, its wrappers, Lightning and training scripts leave them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from hesstune.checks import readable_file
from hesstune.errors import ModelError, listed
from hesstune.storage.reading import one_line

__all__ = ["fitting_names", "read_weights"]

# What checkpoints call the state dict that they hold beside others, the likeliest first.
_HELD_AS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights")
# What wrappers put into names, wherever the wrapped module is.
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a state dict from safetensors, or from a torch file with weights_only=True.

    Of a checkpoint that holds more (`state_dict`, `model`, …) that entry is taken.

    Raises:
        ModelError: If the file is missing, damaged, or holds anything but tensors.
    """
    path = readable_file(path, "the weights file")
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds on damaged or unsafe files
        raise ModelError(f"{path} cannot be read as weights: {one_line(error)}") from error
    if not isinstance(state, dict):
        raise ModelError(f"{path} is not a state dict of tensors")
    if _is_state(state):
        return state
    for name in _HELD_AS:
        if _is_state(state.get(name)):
            return dict(state[name])
    raise ModelError(
        f"{path} is not a state dict of tensors, and holds none as {listed(_HELD_AS)}; it holds "
        f"{listed(state)}"
    )


def _is_state(value: Any) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in value.items())


def fitting_names(
    state: Mapping[str, torch.Tensor], own: Iterable[str]
) -> tuple[dict[str, torch.Tensor], str | None]:
    """Return weights by the model's names, without what wrappers put before or into them, and what that was.

    A prefix is taken off where, with it, no name is the model's, and without it some are: `module.` of
    DistributedDataParallel, `model.` of a Lightning module, or any other. A name that it does not begin
    stays, to be told of as unexpected.

    Args:
        state: Weights as read.
        own: Names of the model's parameters and buffers.

    Example:
        >>> found, prefix = fitting_names({"module.weight": torch.zeros(1)}, ["weight"])
        >>> list(found), prefix
        (['weight'], 'module.')
    """
    names = set(own)
    if names & set(state):
        return dict(state), None
    plain: dict[str, torch.Tensor] = {}
    inside: set[str] = set()
    for name, tensor in state.items():
        for wrapper in _WRAPPERS:
            if wrapper in name:
                inside.add(wrapper)
                name = name.replace(wrapper, "")
        plain[name] = tensor
    if len(plain) < len(state):
        return dict(state), None  # two names would become one
    prefix = "" if names & set(plain) else _prefix(plain, names)
    if prefix is None:
        return dict(state), None
    found = {name.removeprefix(prefix): tensor for name, tensor in plain.items()}
    if len(found) < len(plain):
        return dict(state), None
    removed = sorted(inside) + ([prefix] if prefix else [])
    return found, listed(removed) if removed else None


def _prefix(given: Iterable[str], names: set[str]) -> str | None:
    """Return what stands before most of the model's names."""
    counts: Counter[str] = Counter()
    for name in given:
        parts = name.split(".")
        counts.update(
            ".".join(parts[:at]) + "." for at in range(1, len(parts)) if ".".join(parts[at:]) in names
        )
    return counts.most_common(1)[0][0] if counts else None
