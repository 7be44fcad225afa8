"""What the methods share that train two networks, each on what the other one trusts."""

from __future__ import annotations

import copy

import torch
from torch import nn

from hesstune.methods._base import RESISTANT, Method
from hesstune.methods._setup import MethodSetup
from hesstune.storage.tensors import Tree

__all__ = ["HEAD_NOISE", "TwoNetworks"]

# Standard deviation of the twin's head: two equal networks would pick the same examples for ever.
HEAD_NOISE = 0.01


class TwoNetworks(Method):
    """A second network beside the run's own, with a head that starts elsewhere.

    The run's result is the first network. Both are stepped by one optimizer: their losses are summed,
    and no parameter is in both.
    """

    takes_soft = False
    weighs_classes = False
    head_penalty = RESISTANT

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        self.twin = copy.deepcopy(setup.network)
        generator = torch.Generator().manual_seed(int(setup.counts.sum()))
        head = {id(p) for name, p in setup.model.named_parameters() if setup.in_head(name)}
        with torch.no_grad():
            for own, other in zip(setup.network.parameters(), self.twin.parameters(), strict=True):
                if id(own) in head:
                    other.add_(HEAD_NOISE * torch.randn(own.shape, generator=generator).to(other))

    def networks(self) -> list[nn.Module]:
        """Return the twin."""
        return [self.twin]

    def state(self) -> Tree:
        """Return the twin's weights."""
        return {"twin": dict(self.twin.state_dict())}

    def load_state(self, state: Tree) -> None:
        """Take them back."""
        self.twin.load_state_dict(state["twin"])
