"""What methods share that start from a solved head: it is put into the network, and may be all there is."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hesstune.methods._base import Method
from hesstune.methods._setup import MethodSetup

__all__ = ["SolvedHeadMethod", "takes_solution"]


def takes_solution(head: nn.Module, k: int, d: int) -> bool:
    """Tell whether a head is a linear layer from d features to k classes."""
    return type(head) is nn.Linear and tuple(head.weight.shape) == (k, d) and head.bias is not None


class SolvedHeadMethod(Method):
    """Cross-entropy from a head that was solved on frozen features."""

    solves_head = True
    head_penalty = 0.0
    weighs_classes = False

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        if setup.solved is not None:
            head = setup.model.get_submodule(setup.head)
            assert isinstance(head, nn.Linear)  # as `takes_solution` says
            with torch.no_grad():
                head.weight.copy_(torch.from_numpy(setup.solved.weight))
                head.bias.copy_(torch.from_numpy(setup.solved.bias))

    @property
    def goes_on(self) -> bool:
        """Whether steps follow: where there is more to train than the head that was solved, or none was."""
        if self.setup.solved is None:
            return True
        alone = self.head_alone or self.setup.alone
        return not alone and any(not self.setup.in_head(name) for name in self.setup.trained)

    @classmethod
    def defaults(cls, head_only: bool) -> dict[str, Any]:
        """Return the choice of weights: the best on validation, the start among them."""
        return {} if cls.head_alone else {"select": "best"}
