"""Two example inputs of a network that has seen no data yet."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hesstune.forward import Inputs

__all__ = ["probe"]

DEFAULT_SIZE = 224
TEXTS = ("a short text", "another text of a few words")


def probe(model: nn.Module, tokenizer: Any, image_size: int | None) -> Inputs:
    """Return inputs for two examples: tokenised texts, or random images, (2, 3, S, S), in the weights' type.

    Args:
        model: The network.
        tokenizer: What turns texts into inputs; None for a network that reads images.
        image_size: S; None: the size that the network's configuration names, or 224.
    """
    if tokenizer is not None:
        rows = [tokenizer(text, truncation=True, max_length=16) for text in TEXTS]
        return dict(tokenizer.pad([dict(row) for row in rows], return_tensors="pt"))
    size = image_size or _own_size(model)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, *(size if isinstance(size, tuple) else (size, size)), generator=generator)
    like = next((p for p in model.parameters() if p.is_floating_point()), images)
    return (images - 0.5).to(like)


def _own_size(model: nn.Module) -> int | tuple[int, int]:
    """Return the image size that timm's or transformers' configuration names."""
    timm = getattr(model, "pretrained_cfg", None)
    if isinstance(timm, dict) and timm.get("input_size"):
        return int(timm["input_size"][-2]), int(timm["input_size"][-1])
    size = getattr(getattr(model, "config", None), "image_size", None)
    if isinstance(size, list | tuple) and len(size) == 2:
        return int(size[0]), int(size[1])
    return size if isinstance(size, int) and size > 0 else DEFAULT_SIZE
