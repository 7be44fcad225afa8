"""Gradients of batch norm in a batch of one example, which torch computes wrongly for some memory layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["DenseBatchNorm"]

# torch.batch_norm and torch.instance_norm are what the functions of the same name call.
_NORMS = (F.batch_norm, torch.batch_norm, F.instance_norm, torch.instance_norm)


class DenseBatchNorm(TorchFunctionMode):
    """Pass contiguous inputs and gradients to batch norm and instance norm.

    On CPUs, torch (2.13 and 2.14) computes a wrong gradient if the batch has one example, and one of the
    input and the gradient is contiguous while the other one is in channels-last order with a stride of the
    first dimension that is not C·H·W. Such a gradient arises for `flatten(2).transpose(1, 2)` after the norm.
    The values of the output are correct, and so are gradients for two or more examples.

    Example:
        >>> x = torch.arange(8.0).view(1, 2, 2, 2).requires_grad_()
        >>> factors = torch.arange(8.0).view(1, 4, 2)
        >>> with DenseBatchNorm():
        ...     z = torch.nn.functional.batch_norm(x, torch.zeros(2), torch.ones(2), eps=0.0)
        >>> (z.flatten(2).transpose(1, 2) * factors).sum().backward()
        >>> x.grad.flatten().tolist()
        [0.0, 2.0, 4.0, 6.0, 1.0, 3.0, 5.0, 7.0]
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func not in _NORMS:
            return func(*args, **kwargs)
        if args:
            args = (args[0].contiguous(), *args[1:])
        else:
            kwargs["input"] = kwargs["input"].contiguous()
        output = func(*args, **kwargs)
        if output.requires_grad:
            output.register_hook(torch.Tensor.contiguous)
        return output
