"""From a model specification to a module with a head for K classes and its preprocessing."""

from __future__ import annotations

import copy
import importlib
import inspect
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hesstune.checks import expanded
from hesstune.errors import ModelError, listed, unknown_name
from hesstune.forward import (
    Inputs,
    batch_size,
    clear_caches,
    evaluating,
    is_compiled,
    logits_of,
    uncompiled,
)
from hesstune.models.vision import IMAGENET, MeanAndStd, load_vision_model
from hesstune.models.weights import fitting_names, read_weights
from hesstune.storage.reading import one_line

__all__ = [
    "HEAD_INITS",
    "KINDS",
    "MODULE",
    "LoadedModel",
    "ModelObject",
    "load_model",
    "set_parameters",
    "spec_parts",
]

KINDS = ("efficientnet_lite0", "minilm", "hf", "timm", "torchvision", "py")
BUILT_IN = ("efficientnet_lite0", "minilm")
HEAD_INITS = ("zero", "keep")
# What stands for a module given in Python.
MODULE = "module"


@dataclass(frozen=True)
class LoadedModel:
    """A network ready to be fine-tuned.

    Attributes:
        model: The module; it maps normalised images, (N, 3, S, S), or tokenised texts to logits, (N, K).
        head: The name of the last layer's module, such as `_fc`.
        mean: Channel means that are subtracted from images in [0, 1].
        std: Channel deviations that images are divided by.
        tokenizer: What turns texts into inputs; None for a model of images.
        notes: What was changed to make it fit.
    """

    model: nn.Module
    head: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    tokenizer: Any = None
    notes: tuple[str, ...] = ()

    @property
    def head_layer(self) -> str:
        """The layer name of the head's weight."""
        return f"{self.head}.weight" if self.head else "weight"


ModelObject = nn.Module | tuple[nn.Module, Any] | LoadedModel
"""A model given in Python: a module, a module with its tokenizer, or one that `load_model` made."""


def spec_parts(spec: str) -> tuple[str, str]:
    """Split a model specification into kind and argument; raise ModelError if it is none."""
    kind, _, argument = spec.partition(":")
    if spec == MODULE:
        raise ModelError(
            "the model 'module' was a torch.nn.Module given in Python, which no file holds: give it "
            "again, finetune(model=…) or Run.load(path, model=…)"
        )
    if kind not in KINDS:
        raise unknown_name("model", kind, KINDS, ModelError)
    if (kind in BUILT_IN) == bool(argument):
        form = kind if argument else f"{kind}:" + ("module:factory" if kind == "py" else "NAME")
        raise ModelError(f"model '{spec}' must be written {form}")
    return kind, str(expanded(argument)) if argument.startswith("~") else argument


def load_model(
    spec: str | ModelObject,
    k: int,
    *,
    weights: str | Path | None = None,
    head_init: str = "zero",
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    text: bool = False,
    pretrained: bool = True,
) -> LoadedModel:
    """Load a pretrained network with a head for k classes.

    Args:
        spec: `efficientnet_lite0`, `minilm`, `hf:NAME_OR_PATH`, `timm:NAME`, `torchvision:NAME` or
            `py:module:factory` (called as factory(num_classes=k), or factory(k); for texts it returns
            the module and a transformers tokenizer). Or a module (for texts a pair of module and
            tokenizer), or a LoadedModel: a copy of it is loaded, and it is left as it was.
        k: Number of classes.
        weights: A safetensors file or a state dict saved by torch, loaded on top; a head of another
            size in it is left out. timm and torchvision then need no weights of their own.
        head_init: `zero` sets the head to zero, so that its distance is its norm; `keep` does not.
        mean: Channel means for images in [0, 1], instead of the model's own.
        std: Channel deviations, likewise.
        text: Whether the examples are texts; images otherwise.
        pretrained: False where the caller fills in all weights: timm and torchvision then fetch none.

    Raises:
        ModelError: If the model cannot be loaded, does not output k logits, or reads the other kind.
        MissingExtraError: If the package that provides it is not installed.
    """
    if isinstance(spec, str):
        kind, argument = spec_parts(spec)
        pretrained = pretrained and weights is None
        model, (own_mean, own_std), tokenizer = (
            _load_text(kind, argument, k) if text else _load_images(kind, argument, k, pretrained)
        )
    else:
        model, (own_mean, own_std), tokenizer = _copied(spec, text)
    notes: tuple[str, ...] = ()
    if is_compiled(model):
        model, notes = uncompiled(model), ("torch.compile was undone: the original network is trained",)
    if weights is not None:
        own = (n for n, _ in [*model.named_parameters(), *model.named_buffers()])
        state, removed = fitting_names(read_weights(weights), own)
        set_parameters(model, state, str(weights), partial_head=True)
        notes += (f"'{removed}' was taken off the names of the weights in {weights}",) if removed else ()
    head = _find_head(model, k)
    if head_init == "zero":
        for parameter in model.get_submodule(head).parameters():
            nn.init.zeros_(parameter)
    mean, std = _three(mean or own_mean, "mean"), _three(std or own_std, "std")
    return LoadedModel(model, head, mean, std, tokenizer, notes)


def _load_images(kind: str, argument: str, k: int, pretrained: bool) -> tuple[nn.Module, MeanAndStd, None]:
    if kind == "minilm":
        raise ModelError("model 'minilm' reads texts, but the data holds images; use efficientnet_lite0")
    if kind == "py":
        return (*_user(argument, k), None)
    return (*load_vision_model(kind, argument, k, pretrained), None)


def _load_text(kind: str, argument: str, k: int) -> tuple[nn.Module, MeanAndStd, Any]:
    from hesstune.models.text import load_minilm, load_text_model, padded_tokenizer

    if kind == "minilm":
        model, tokenizer = load_minilm(k)
    elif kind == "hf":
        model, tokenizer = load_text_model(argument, k)
    elif kind == "py":
        made = _made_by_user(argument, k)
        if not _is_pair(made):
            raise ModelError(f"py:{argument} must return (module, tokenizer) for data that holds texts")
        model, tokenizer = made[0], padded_tokenizer(*made)
    else:
        raise ModelError(f"model '{kind}' reads images, but the data holds texts; use minilm or hf:NAME")
    return model, ((0.0,), (1.0,)), tokenizer


def _is_pair(given: object) -> bool:
    return isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], nn.Module)


def _copied(given: ModelObject, text: bool) -> tuple[nn.Module, MeanAndStd, Any]:
    """Copy a model given in Python, so that nothing done to the copy changes it."""
    tokenizer: Any = None
    normalisation: MeanAndStd = IMAGENET
    if isinstance(given, LoadedModel):
        module, tokenizer, normalisation = given.model, given.tokenizer, (given.mean, given.std)
    elif isinstance(given, tuple) and _is_pair(given):
        module, tokenizer = given
    elif isinstance(given, nn.Module):
        module = given
    else:
        raise ModelError(
            f"a model is a name, a torch.nn.Module or (module, tokenizer); got {type(given).__name__}"
        )
    if text and tokenizer is None:
        raise ModelError("the data holds texts: give the module with its tokenizer, (module, tokenizer)")
    if tokenizer is not None and not text:
        raise ModelError("the model came with a tokenizer, but the data holds images; give the module alone")
    clear_caches(module)  # a tensor that is kept with its graph cannot be copied
    try:
        module, tokenizer = copy.deepcopy((module, tokenizer))
    except Exception as error:  # modules may hold anything
        raise ModelError(f"the module cannot be copied ({one_line(error)}); use py:module:factory") from error
    if tokenizer is not None:
        from hesstune.models.text import padded_tokenizer

        return module, ((0.0,), (1.0,)), padded_tokenizer(module, tokenizer)
    return module, normalisation, None


def _three(values: tuple[float, ...], name: str) -> tuple[float, float, float]:
    if len(values) == 1:
        values = values * 3
    if len(values) != 3 or (name == "std" and min(values) <= 0):
        raise ModelError(f"{name} must be one or three numbers{' above 0' if name == 'std' else ''}")
    return values[0], values[1], values[2]


def _user(argument: str, k: int) -> tuple[nn.Module, MeanAndStd]:
    model = _made_by_user(argument, k)
    if not isinstance(model, nn.Module):
        raise ModelError(f"py:{argument} returned {type(model).__name__}, not a torch.nn.Module")
    return model, IMAGENET


def _made_by_user(argument: str, k: int) -> Any:
    module_name, _, factory_name = argument.partition(":")
    if not factory_name:
        raise ModelError(f"model 'py:{argument}' must be written py:module:factory")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ModelError(f"cannot import the module '{module_name}': {error}") from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise unknown_name(f"factory in {module_name}", factory_name, names, ModelError)
    try:
        takes = inspect.signature(factory).parameters
        keyword = "num_classes" in takes or any(p.kind is p.VAR_KEYWORD for p in takes.values())
    except (TypeError, ValueError):
        keyword = False
    return factory(num_classes=k) if keyword else factory(k)


def _find_head(model: nn.Module, k: int) -> str:
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == k
    ]
    if not found:
        raise ModelError(f"the model has no Linear layer with {k} outputs to serve as its head")
    head: str = found[-1]
    return head


def check_output(model: nn.Module, inputs: Inputs, k: int) -> None:
    """Raise ModelError unless the model maps the inputs to finite (N, k) logits."""
    size = batch_size(inputs)
    shape = tuple(inputs.shape) if isinstance(inputs, torch.Tensor) else sorted(inputs)
    try:
        with torch.no_grad(), evaluating(model), torch.random.fork_rng(devices=[]):
            logits = logits_of(model, inputs)
    except (RuntimeError, ValueError, TypeError) as error:
        if isinstance(error, ModelError):
            raise
        reason = str(error).splitlines()[0]
        raise ModelError(f"the model fails on inputs of shape {shape}: {reason}") from error
    if logits.shape != (size, k):
        raise ModelError(
            f"the model outputs {tuple(logits.shape)} for {size} examples; {k} classes need ({size}, {k})"
        )
    if not bool(torch.isfinite(logits).all()):
        raise ModelError("the pretrained model's logits are not finite; are its weights damaged?")


@torch.no_grad()
def set_parameters(
    model: nn.Module, state: dict[str, torch.Tensor], source: str, partial_head: bool = False
) -> None:
    """Copy parameters and buffers by name, in place.

    Raises:
        ModelError: If names are missing or unexpected, or shapes differ; with `partial_head`, the
            last Linear's own tensors may be missing or of another size.
    """
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    aliases = set(model.state_dict()) - set(own)  # other names of tied weights
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    spared = {n for n in own if partial_head and linears and n.startswith(f"{linears[-1]}.")}
    required = set(own) & set(model.state_dict())
    missing = [n for n in required if n not in state and n not in spared]
    extra = [n for n in state if n not in own and n not in aliases]
    if missing or extra:
        told = [f"missing: {listed(sorted(missing), 4)}"] if missing else []
        told += [f"unexpected: {listed(sorted(extra), 4)}"] if extra else []
        raise ModelError(f"the weights in {source} do not fit the model; {'; '.join(told)}")
    for name, tensor in state.items():
        if name not in own or (name in spared and own[name].shape != tensor.shape):
            continue
        if own[name].shape != tensor.shape:
            raise ModelError(
                f"'{name}' has shape {tuple(tensor.shape)} in {source}, "
                f"but {tuple(own[name].shape)} in the model"
            )
        own[name].copy_(tensor)
