"""The state of a network and its optimizer as plain tensors: of sharded ones, this process's parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hesstune.runtime.sharding import is_sharded, like, local
from hesstune.storage.tensors import Tree

__all__ = ["Partial", "load_optimizer", "optimizer_state", "restore", "state_of"]


@dataclass
class Partial:
    """An epoch that is under way.

    Attributes:
        epoch: The epoch, from 0.
        batches: Batches done.
        loss: Summed loss of their examples.
        hits: Examples of theirs that were classified as labelled.
        rate: The learning rate of the last step.
        seconds: Time spent on them.
    """

    epoch: int
    batches: int = 0
    loss: float = 0.0
    hits: int = 0
    rate: float = 0.0
    seconds: float = 0.0


def state_of(net: nn.Module, trained: Sequence[str], copy: bool = True) -> dict[str, torch.Tensor]:
    """Return what training may change: trained parameters and all buffers, copied unless told otherwise."""
    parameters = dict(net.named_parameters())
    found = {**{name: parameters[name] for name in trained}, **dict(net.named_buffers())}
    parts = {name: local(tensor).detach() for name, tensor in found.items()}
    return {name: part.clone() for name, part in parts.items()} if copy else parts


@torch.no_grad()
def restore(net: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Set them back."""
    own = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    for name, tensor in state.items():
        local(own[name]).copy_(tensor)


def optimizer_state(optimizer: torch.optim.Optimizer) -> Tree:
    """Return the optimizer's state."""
    found: Tree = optimizer.state_dict()
    return {**found, "state": {i: _mapped(kept, local) for i, kept in found["state"].items()}}


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Set it back."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    kept = {}
    for index, values in state["state"].items():
        parameter = parameters[int(index)]
        shape = local(parameter).shape

        def cut(value: torch.Tensor, p: torch.Tensor = parameter, s: torch.Size = shape) -> torch.Tensor:
            # A step count has no parts.
            return like(value, p) if is_sharded(p) and value.ndim and value.shape == s else value

        kept[index] = _mapped(values, cut)
    optimizer.load_state_dict({**state, "state": kept})


def _mapped(values: Mapping[str, Any], change: Any) -> Tree:
    return {k: change(v) if isinstance(v, torch.Tensor) else v for k, v in values.items()}
