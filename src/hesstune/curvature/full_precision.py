"""Weights stored in half precision, measured in float32: products of a Hessian need its digits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from hesstune.forward import Inputs

__all__ = ["bytes_in_full", "full_precision", "in_full"]

_HALF = (torch.bfloat16, torch.float16)


def _stored_in_half(model: nn.Module) -> list[torch.Tensor]:
    return [t for t in (*model.parameters(), *model.buffers()) if t.dtype in _HALF]


def bytes_in_full(model: nn.Module) -> int:
    """Return the bytes of the float32 copies that `full_precision` makes."""
    return sum(4 * tensor.numel() for tensor in _stored_in_half(model))


@contextmanager
def full_precision(model: nn.Module) -> Iterator[None]:
    """Let float32 copies stand in for the parameters and buffers that are stored in half precision.

    Every number is the same in float32; activations, gradients and products are no longer rounded to 8 or
    11 bits. The stored tensors are back afterwards, as they were. Parameters stay the same objects.

    Example:
        >>> model = torch.nn.Linear(2, 2).bfloat16()
        >>> with full_precision(model):
        ...     model(torch.ones(1, 2)).dtype
        torch.float32
        >>> model.weight.dtype
        torch.bfloat16
    """
    stored = [(tensor, tensor.data) for tensor in _stored_in_half(model)]
    try:
        for tensor, data in stored:
            tensor.data = data.float()
        yield
    finally:
        for tensor, data in stored:
            tensor.data = data


def in_full(inputs: Inputs) -> Inputs:
    """Return the inputs with tensors of half precision as float32."""
    if isinstance(inputs, torch.Tensor):
        return inputs.float() if inputs.dtype in _HALF else inputs
    half = {k: v.float() for k, v in inputs.items() if isinstance(v, torch.Tensor) and v.dtype in _HALF}
    return {**inputs, **half} if half else inputs
