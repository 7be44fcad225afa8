"""What goes into a linear head, of every training example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hesstune.forward import logits_of
from hesstune.methods._setup import MethodSetup

__all__ = ["linear_head", "training_features"]


def linear_head(setup: MethodSetup) -> nn.Linear | None:
    """Return the head if it is one plain linear layer."""
    if setup.other_heads:
        return None
    module = setup.model.get_submodule(setup.head)
    return module if type(module) is nn.Linear else None


def training_features(
    setup: MethodSetup, head: nn.Linear, predict: Callable[[nn.Module], torch.Tensor]
) -> torch.Tensor:
    """Return the head's inputs for all training examples, (n, D), by the loop's `predict`."""
    whole = setup.network is not head
    return predict(_Features(setup.network, head) if whole else nn.Identity())


class _Features(nn.Module):
    """What goes into the head, in place of the logits."""

    def __init__(self, network: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward(self, inputs: Any = None, **named: Any) -> torch.Tensor:
        """Run the network and return the head's inputs, (N, D)."""
        seen: list[torch.Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            logits_of(self.network, named or inputs)
        finally:
            handle.remove()
        return seen[0]
