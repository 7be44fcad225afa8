"""Which blocks of examples a process counts, where several share a certificate, and how counts are added."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

__all__ = ["Share"]


def _same(values: torch.Tensor) -> torch.Tensor:
    return values


def _alone(rows: torch.Tensor) -> list[torch.Tensor]:
    return [rows]


@dataclass(frozen=True)
class Share:
    """One process's share of a certificate's blocks: every world-th, from its rank.

    Attributes:
        rank: This process's number, from 0.
        world: The number of processes.
        all_reduce_sum: Adds a tensor up over the processes.
        all_gather: Returns the rows of every process, by rank.

    Example:
        >>> Share(1, 2).blocks(5)
        [1, 3]
    """

    rank: int = 0
    world: int = 1
    all_reduce_sum: Callable[[torch.Tensor], torch.Tensor] = _same
    all_gather: Callable[[torch.Tensor], list[torch.Tensor]] = _alone

    def blocks(self, count: int) -> list[int]:
        """List this process's blocks among `count`."""
        return list(range(self.rank, count, self.world))

    def together(self, rows: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        """Return the rows of all blocks, in the blocks' order, from each process's own.

        Args:
            rows: (n_own, …), of this process's blocks one after the other.
            sizes: The sizes of all blocks.
        """
        if self.world == 1:
            return rows
        parts: dict[int, torch.Tensor] = {}
        for rank, found in enumerate(self.all_gather(rows)):
            own = list(range(rank, len(sizes), self.world))
            parts |= dict(zip(own, found.split([sizes[b] for b in own]), strict=True))
        return torch.cat([parts[b] for b in range(len(sizes))])
