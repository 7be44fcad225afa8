"""Features: what the head of a frozen network is given for each example, computed once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hesstune.forward import Inputs, evaluating, logits_of
from hesstune.inputs.batches import EVAL_BATCH, ModelInputs, batches_of, in_order

__all__ = ["FeatureInputs", "cached_features"]


class FeatureInputs:
    """Features in front of the head, computed once."""

    def __init__(self, features: torch.Tensor) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    @property
    def lengths(self) -> None:
        """None: all are alike."""

    def start_epoch(self, epoch: int) -> None:
        """Do nothing: features are the same in every epoch."""

    def inputs(self, indices: NDArray[np.int64], augment: bool = False, view: int = 0) -> torch.Tensor:
        """Return features, (B, D); they are the same in every view."""
        return self.features[torch.from_numpy(indices).to(self.features.device)]


@torch.no_grad()
def cached_features(
    model: nn.Module, heads: Sequence[nn.Module], feed: ModelInputs, rows: NDArray[np.int64] | None = None
) -> FeatureInputs | None:
    """Compute the inputs of the head for every example, or for some, in eval mode.

    Args:
        model: The network.
        heads: Its classifier, or all layers that its logits are made of: their inputs are concatenated.
        feed: The network's inputs.
        rows: Which examples, ascending; all where None.

    Returns:
        The features, or None if the one head is not the network's last operation on them, so that
        features alone do not determine the logits, or if a head has other inputs than one row an example.
    """
    seen: list[torch.Tensor] = []
    handles = [h.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach())) for h in heads]
    parts: list[torch.Tensor] = []
    batches = batches_of(feed, np.arange(len(feed)) if rows is None else rows, EVAL_BATCH)
    try:
        with evaluating(model):
            for indices in batches:
                seen.clear()
                logits_of(model, feed.inputs(indices))
                if len(seen) != len(heads) or any(x.ndim != 2 or len(x) != len(indices) for x in seen):
                    return None
                one = heads[0] if len(heads) == 1 else None
                row, features = feed.inputs(indices[:2]), torch.cat(seen, dim=1)
                if not parts and one is not None and not _determines(model, one, row):
                    return None
                parts.append(features)
    finally:
        for handle in handles:
            handle.remove()
    return FeatureInputs(in_order(parts, batches) if parts else torch.zeros((0, 1)))


def _determines(model: nn.Module, head: nn.Module, inputs: Inputs) -> bool:
    """Tell whether the logits are the head's own output, whatever its weights: a zero head hides it."""
    seen: list[torch.Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    kept = [p.detach().clone() for p in head.parameters()]
    generator = torch.Generator().manual_seed(0)
    try:
        for p in head.parameters():
            p.copy_(torch.randn(p.shape, generator=generator).to(p))
        logits = logits_of(model, inputs)
        return len(seen) == 1 and torch.equal(_apply(head, seen[0]), logits)
    finally:
        handle.remove()
        for p, value in zip(head.parameters(), kept, strict=True):
            p.copy_(value)


def _apply(head: nn.Module, features: torch.Tensor) -> torch.Tensor:
    # Without the hook's recording: the module's own forward.
    result: torch.Tensor = type(head).forward(head, features)
    return result
