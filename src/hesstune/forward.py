"""Call any classifier the same way: tensors or mappings in, logits out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from hesstune.errors import ModelError
from hesstune.one_example import DenseBatchNorm

__all__ = ["Inputs", "batch_size", "evaluating", "logits_of", "moved", "unmoved_statistics"]

Inputs = torch.Tensor | Mapping[str, Any]


def logits_of(model: nn.Module, inputs: Inputs) -> torch.Tensor:
    """Run the model on one batch and return its logits.

    Args:
        model: Any classifier; it may return a tensor, a tuple that starts with the logits, or an
            object with a `logits` attribute (transformers).
        inputs: A tensor (passed as the only argument) or a mapping (passed as keywords), batch first.

    Returns:
        The logits, (N, K).

    Raises:
        ModelError: If the output holds no (N, K) logits.
    """
    with DenseBatchNorm() if torch.is_grad_enabled() and _is_one_example(inputs) else nullcontext():
        output = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    logits = output if isinstance(output, torch.Tensor) else getattr(output, "logits", None)
    if logits is None and isinstance(output, tuple) and output:
        logits = output[0]
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(output).__name__
        raise ModelError(f"the model must return logits of shape (N, K); got {got}. Is it a classifier?")
    return logits


def _is_one_example(inputs: Inputs) -> bool:
    values = inputs.values() if isinstance(inputs, Mapping) else [inputs]
    sizes = (value.shape[0] for value in values if isinstance(value, torch.Tensor) and value.ndim)
    return next(sizes, 0) == 1


def batch_size(inputs: Inputs) -> int:
    """Return the number of examples in a batch: the first dimension of its first tensor."""
    if isinstance(inputs, torch.Tensor):
        return inputs.shape[0]
    for value in inputs.values():
        if isinstance(value, torch.Tensor) and value.ndim:
            return value.shape[0]
    raise ModelError("a mapping of inputs must hold at least one tensor with a batch dimension")


def moved(inputs: Inputs, device: torch.device) -> Inputs:
    """Return the inputs with every tensor on the device; other values stay as they are."""
    if isinstance(inputs, torch.Tensor):
        return inputs.to(device)
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put the model in eval mode and restore every module's own training flag afterwards."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, flag in flags:
            module.training = flag


@contextmanager
def unmoved_statistics(*models: nn.Module) -> Iterator[None]:
    """Put the running statistics of batch norm (and its kind) back to what they were before.

    For the second forward pass of a step: the batch has moved them already.
    """
    layers = [m for model in models for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    buffers = [b for m in layers if m.training for b in m.buffers(recurse=False)]
    before = [b.clone() for b in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.data.copy_(value)  # unseen by autograd, which may hold the buffer for a backward pass
