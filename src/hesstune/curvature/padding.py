"""Padded tokens cost as much as others and change nothing: group sentences by length, cut the padding."""

from __future__ import annotations

import torch
from torch import nn

from hesstune.curvature.batches import KnownEntries, fixed_entries, rows_of
from hesstune.forward import Inputs, batch_size, logits_of

__all__ = ["by_length", "ignores_padding", "trimmed"]

_MASK = "attention_mask"


def token_lengths(inputs: Inputs) -> torch.Tensor | None:
    """Return (B,) how many leading positions reach the last attended one; None without a 2-D mask."""
    mask = None if isinstance(inputs, torch.Tensor) else inputs.get(_MASK)
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2:
        return None
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (places * (mask != 0)).amax(1).clamp_min(1)


def trimmed(inputs: Inputs) -> Inputs:
    """Cut the trailing positions that no example of the batch attends to.

    Example:
        >>> mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]])
        >>> trimmed({"input_ids": mask, "attention_mask": mask})["input_ids"].shape
        torch.Size([2, 2])
    """
    lengths = token_lengths(inputs)
    if lengths is None or isinstance(inputs, torch.Tensor):
        return inputs
    shape, longest = inputs[_MASK].shape, int(lengths.max())
    cut = {
        key: value[:, :longest]
        for key, value in inputs.items()
        if isinstance(value, torch.Tensor) and value.shape[:2] == shape
    }
    return KnownEntries({**inputs, **cut}, fixed_entries(inputs))


def batch_width(inputs: Inputs) -> int:
    """Return the number of positions of the mask; 0 without one."""
    mask = None if isinstance(inputs, torch.Tensor) else inputs.get(_MASK)
    return mask.shape[1] if isinstance(mask, torch.Tensor) and mask.ndim == 2 else 0


def by_length(inputs: Inputs) -> torch.Tensor:
    """Return the examples' indices by ascending length, (B,); their own order without a mask."""
    lengths = token_lengths(inputs)
    if lengths is None:
        return torch.arange(batch_size(inputs))
    return lengths.cpu().argsort(stable=True)


@torch.no_grad()
def ignores_padding(model: nn.Module, inputs: Inputs) -> bool:
    """Tell whether cutting the padding leaves the logits of the shorter examples as they are.

    False where there is nothing to cut. A model that averages over padded positions is found out here.
    """
    lengths = token_lengths(inputs)
    if lengths is None:
        return False
    shorter = (lengths < batch_width(inputs)).nonzero().squeeze(1)[:4]
    if not len(shorter):
        return False
    few = rows_of(inputs, shorter)
    short = trimmed(few)
    try:
        found = logits_of(model, short)
    except (RuntimeError, ValueError, IndexError):  # the model wants the full width
        return False
    wanted = logits_of(model, few)
    tolerance = 1e-9 if wanted.dtype == torch.float64 else 1e-4
    return bool(((found - wanted).abs() <= tolerance * wanted.abs().amax().clamp_min(1e-6)).all())
