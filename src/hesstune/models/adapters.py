"""peft's LoRA adapters in a network while it is trained, merged into its weights at the end."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from hesstune.errors import ConfigError, MissingExtraError, listed
from hesstune.forward import Inputs, clear_caches, evaluating, logits_of
from hesstune.reference import in_modules, is_conv1d, layer_names

# The default learning rate, as a multiple of that of whole layers; not compared with others.
ADAPTERS_LR = 10.0
# What peft calls the adapter of each layer.
NAME = "default"
# Standard deviation of the factors B, and of what the head is moved by, while a network is checked.
MOVE = 0.1
# Largest error of logits, as a share of what the adapters change: in float32, and in half precision.
TOLERANCE, HALF_TOLERANCE = 0.02, 0.2


class LoraSize(NamedTuple):
    """The size of adapters: W = W⁽ˢ⁾ + (α/r)·B·A with B of r columns and A of r rows.

    Attributes:
        rank: r.
        alpha: α.
    """

    rank: int
    alpha: float


class Adapters:
    """Adapters in place of a network's layers, until `merge_` or `remove_` puts the layers back.

    Linear layers and 1×1 convolutions below the head that are trained get adapters. All else but the head is
    frozen meanwhile. Source: Hu et al. 2022; peft computes them.

    Args:
        model: The network; `requires_grad` says what is trained.
        heads: The modules that are its head.
        size: Of each adapter.
        seed: Of the factors A; B is zero.

    Attributes:
        layers: The layers with adapters, by the names of their weights.

    Raises:
        ConfigError: If no layer can have an adapter, or the rank is larger than every layer's.
        MissingExtraError: If peft is not installed.
    """

    def __init__(self, model: nn.Module, heads: Sequence[str], size: LoraSize, seed: int) -> None:
        self.model = model
        paths = _adaptable(model, heads, size.rank)
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError:
            raise MissingExtraError("peft", "peft", "LoRA") from None
        self.layers = [f"{path}.weight" for path in paths]
        self._flags = {name: p.requires_grad for name, p in model.named_parameters()}
        modules: dict[str, Any] = dict(model.named_modules())
        self._originals: dict[str, Any] = {path: modules[path] for path in paths}
        config = LoraConfig(
            r=size.rank,
            lora_alpha=size.alpha,  # type: ignore[arg-type]  # peft divides it by r
            # A pattern of whole names: peft takes those of a list for endings; `1` ends `2.inner.1`, too.
            target_modules="|".join(re.escape(path) for path in paths),
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "fan_in_fan_out", UserWarning)  # peft sets it by layer
            for path, module in self._originals.items():
                if isinstance(module, nn.Linear | nn.Conv2d) and type(module) is not nn.Linear:
                    model.set_submodule(path, _plain(module))
            torch.manual_seed(seed)
            inject_adapter_in_model(config, model)
        modules = dict(model.named_modules())
        self._adapted: dict[str, Any] = {path: modules[path] for path in paths}
        for name, parameter in model.named_parameters():
            is_factor = in_modules(name, paths) and ".lora_" in name
            parameter.requires_grad_(is_factor or (in_modules(name, heads) and self._flags[name]))

    @torch.no_grad()
    def merge_(self) -> None:
        """Put the layers back, with the adapters' products added to their weights."""
        self._add()
        self.remove_()

    def remove_(self) -> None:
        """Put the layers back as they were."""
        self._put(self._originals)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._flags[name])
        del self.model.peft_config

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Hold the layers with merged weights in place of the adapters meanwhile."""
        kept = {path: layer.weight.detach().clone() for path, layer in self._originals.items()}
        with torch.no_grad():
            self._add()
        self._put(self._originals)
        try:
            yield
        finally:
            self._put(self._adapted)
            with torch.no_grad():
                for path, weight in kept.items():
                    self._originals[path].weight.copy_(weight)
            clear_caches(self.model)

    def _add(self) -> None:
        for path, layer in self._originals.items():
            layer.weight.add_(self._adapted[path].get_delta_weight(NAME).to(layer.weight))

    def _put(self, modules: dict[str, Any]) -> None:
        for path, module in modules.items():
            module.train(self.model.get_submodule(path).training)
            self.model.set_submodule(path, module)
        clear_caches(self.model)


def check_adapters(
    model: nn.Module, heads: Sequence[str], size: LoraSize, inputs: Inputs
) -> tuple[list[str], int]:
    """Try adapters in a network, which is left as it is; return their layers, and how many weights train.

    Raises:
        ConfigError: As `Adapters`, or if the network with adapters has other logits than with merged weights.
            It then uses a weight without calling the layer: torch's TransformerEncoderLayer does, and
            networks with tied weights.
    """
    adapters = Adapters(model, heads, size, seed=0)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    kept = {n: p.detach().clone() for n, p in trained.items() if in_modules(n, heads)}
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad(), evaluating(model):
            for name, parameter in trained.items():
                if name in kept:  # a head of zeros would hide everything
                    parameter.add_(MOVE * torch.randn(parameter.shape, generator=generator).to(parameter))
            start = logits_of(model, inputs).float()
            for name, parameter in trained.items():
                if ".lora_B." in name:
                    parameter.copy_(MOVE * torch.randn(parameter.shape, generator=generator))
            found = logits_of(model, inputs).float()
            with adapters.merged():
                wanted = logits_of(model, inputs).float()
    finally:
        with torch.no_grad():
            for name, value in kept.items():
                trained[name].copy_(value)
        adapters.remove_()
    half = any(p.dtype != torch.float32 for p in model.parameters() if p.is_floating_point())
    effect, error = float((wanted - start).norm()), float((found - wanted).norm())
    if not (effect > 0 and error <= (HALF_TOLERANCE if half else TOLERANCE) * effect):
        raise ConfigError(
            "LoRA adapters have no effect in this network, or another one than their merged weights: it uses "
            f"weights without calling their layers ({listed(adapters.layers)}); leave LoRA out"
        )
    return adapters.layers, sum(p.numel() for p in trained.values())


def _adaptable(model: nn.Module, heads: Sequence[str], rank: int) -> list[str]:
    """List the modules below the head that can have adapters.

    Raises:
        ConfigError: If there is none, if the network has adapters, or if the rank is too large for all.
    """
    modules = dict(model.named_modules())
    if any(hasattr(module, "peft_config") for module in modules.values()):
        raise ConfigError(
            "the network has adapters already; merge them first (hesstune.integrations.peft.merged), or "
            "leave LoRA out"
        )
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    found = {}
    for name in layer_names(model):
        path, _, attribute = name.rpartition(".")
        module = modules[path]
        parent = modules[path.rpartition(".")[0]]
        if attribute != "weight" or name not in trained or in_modules(name, heads):
            continue
        if isinstance(parent, nn.MultiheadAttention):  # it does not call its linear layer
            continue
        if _is_pointwise(module) or isinstance(module, nn.Linear) or is_conv1d(module):
            found[path] = min(module.weight.shape[:2])
    if not found:
        raise ConfigError(
            "LoRA adapts the linear layers and 1×1 convolutions below the head, and none of them trains "
            "here; use --train all, or leave LoRA out"
        )
    if rank > max(found.values()):
        raise ConfigError(
            f"LoRA of rank {rank} is larger than the layers themselves, of rank {max(found.values())} at "
            "most; give a lower rank"
        )
    return list(found)


def _is_pointwise(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == module.stride == (1, 1)
        and module.groups == 1
        and module.padding in ((0, 0), "same", "valid")
    )


def _plain(module: nn.Linear | nn.Conv2d) -> nn.Module:
    """Return torch's own layer with the same parameters: peft builds adapters of the layer's class."""
    if isinstance(module, nn.Linear):
        plain: nn.Linear | nn.Conv2d = nn.Linear(module.in_features, module.out_features, bias=False)
    else:
        plain = nn.Conv2d(module.in_channels, module.out_channels, 1, bias=False)
    plain.weight, plain.bias = module.weight, module.bias
    return plain.train(module.training)
