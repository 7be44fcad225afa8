"""Call any classifier the same way: tensors or mappings in, logits out; compiled or not, in either mode."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from hesstune.errors import ModelError

Inputs = torch.Tensor | Mapping[str, Any]
# torch.compile wraps a module and keeps it under this name, which becomes a part of its parameters' names.
_ORIGINAL = "_orig_mod"
# The functions of torch.nn.functional call those of torch.
_NORMS = (F.batch_norm, torch.batch_norm, F.instance_norm, torch.instance_norm)


def outputs_of(model: nn.Module, inputs: Inputs) -> Any:
    """Run the model with its weights as they are now: what it kept of earlier ones is cleared first."""
    if not model.training:
        clear_caches(model)
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)


def logits_of(model: nn.Module, inputs: Inputs) -> torch.Tensor:
    """Run the model on one batch, a tensor or a mapping of keywords, and return its logits, (N, K).

    The model may return a tensor, a tuple that starts with the logits, or an object with a `logits`
    attribute (transformers). ModelError if the output holds no (N, K) logits.
    """
    one = [len(value) == 1 for value in _tensors_by_example(inputs)[:1]] == [True]
    with DenseBatchNorm() if torch.is_grad_enabled() and one else nullcontext():
        output = outputs_of(model, inputs)
    logits = output if isinstance(output, torch.Tensor) else getattr(output, "logits", None)
    if logits is None and isinstance(output, tuple) and output:
        logits = output[0]
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(output).__name__
        raise ModelError(f"the model must return logits of shape (N, K); got {got}. Is it a classifier?")
    return logits


def _tensors_by_example(inputs: Inputs) -> list[torch.Tensor]:
    values = inputs.values() if isinstance(inputs, Mapping) else [inputs]
    return [value for value in values if isinstance(value, torch.Tensor) and value.ndim]


def batch_size(inputs: Inputs) -> int:
    """Return the number of examples in a batch: the first dimension of its first tensor."""
    if tensors := _tensors_by_example(inputs):
        return len(tensors[0])
    raise ModelError("a mapping of inputs must hold at least one tensor with a batch dimension")


def moved(inputs: Inputs, device: torch.device) -> Inputs:
    """Return the inputs with every tensor on the device; other values stay as they are."""
    if isinstance(inputs, torch.Tensor):
        return inputs.to(device)
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}


def evaluating(model: nn.Module) -> AbstractContextManager[nn.Module]:
    """Put the model in eval mode for a while, as `in_mode` does."""
    return in_mode(model, training=False)


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[nn.Module]:
    """Set the mode, run compiled parts eagerly, and restore every module's own mode afterwards.

    Modes are set by calling `train` and `eval`, which some modules override: to clear what they keep in
    eval mode, to merge weights, or to choose another graph. Compiled code has no second derivatives and
    does not see hooks that are registered later, so the original modules run instead.
    """
    modes = _modes(model)
    with _eagerly():
        model.train(training)
        try:
            yield model
        finally:
            _set_modes(modes)
            clear_caches(model)


def clear_caches(model: nn.Module) -> None:
    """Clear the tensors that modules in eval mode computed from earlier weights.

    LeViT, EfficientFormer, EfficientViT and TinyViT (timm, transformers) and peft's DoRA keep such tensors
    until `train(True)` is called. Call this after weights were changed in place. Every module's mode is as
    before.
    """
    for module in model.modules():
        if not module.training and _overrides_mode(type(module)):  # type: ignore[arg-type]
            modes = _modes(module)
            module.train(True)
            module.eval()
            _set_modes(modes)


def _modes(model: nn.Module) -> list[tuple[nn.Module, bool]]:
    return [(module, module.training) for module in model.modules()]


def _set_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    for _ in range(2):  # a call reaches the children, which come later; of two parents, one is called later
        for module, mode in modes:
            if module.training != mode:
                module.train(mode)
    for module, mode in modes:  # `train` of its own that keeps a module in one mode
        if module.training != mode:
            module.training = mode


@cache
def _overrides_mode(kind: type[nn.Module]) -> bool:
    # transformers' base class keeps nothing itself: it chooses kernels.
    usual = (nn.Module.__module__, "transformers.modeling_utils")
    return any(getattr(method, "__module__", None) not in usual for method in (kind.train, kind.eval))


def _eagerly() -> AbstractContextManager[Any]:
    """Run compiled networks without compilation, if there are any."""
    # Importing dynamo takes seconds; compiled networks have imported it.
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    eager: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return eager


def _uncompiled_name(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != _ORIGINAL) if _ORIGINAL in name else name


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters by the names they have without `torch.compile`."""
    return {_uncompiled_name(name): parameter for name, parameter in model.named_parameters()}


def named_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the buffers by the names they have without `torch.compile`."""
    return {_uncompiled_name(name): buffer for name, buffer in model.named_buffers()}


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules by the names they have without `torch.compile`; of compiled ones the originals."""
    return {_uncompiled_name(name): module for name, module in model.named_modules()}


def is_compiled(model: nn.Module) -> bool:
    """Tell whether the network or a part of it was compiled, by `torch.compile` or `module.compile`."""
    return any(_ORIGINAL in m._modules or m._compiled_call_impl is not None for m in model.modules())


def uncompiled(model: nn.Module) -> nn.Module:
    """Undo `torch.compile(module)` and `module.compile()` everywhere in a network, for good; return the
    original.
    """
    while (original := model._modules.get(_ORIGINAL)) is not None:
        model = original
    for module in model.modules():
        module._compiled_call_impl = None
        for name, child in module._modules.items():
            while child is not None and (original := child._modules.get(_ORIGINAL)) is not None:
                module._modules[name] = child = original
    return model


@contextmanager
def unmoved_statistics(*models: nn.Module) -> Iterator[None]:
    """Restore the running statistics of batch norm and similar layers afterwards.

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


class DenseBatchNorm(TorchFunctionMode):
    """Pass contiguous inputs and gradients to batch norm and instance norm.

    On CPUs, torch (2.13 and 2.14) computes a wrong gradient if the batch has one example, and one of the
    input and the gradient is contiguous while the other one is in channels-last order with a stride of the
    first dimension that is not C·H·W. Such a gradient arises for `flatten(2).transpose(1, 2)` after the norm.
    The values of the output are correct, and so are gradients for two or more examples.
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
