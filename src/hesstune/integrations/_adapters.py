"""peft's adapters in a model: which layers have them, what they go by, and which cannot be handled."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from hesstune.constraints.distance import trained_matrices
from hesstune.errors import LayerError, MissingExtraError, listed
from hesstune.forward import named_modules
from hesstune.reference import layer_names

try:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper
except ImportError:
    raise MissingExtraError("peft", "peft", "hesstune.integrations.peft") from None

__all__ = [
    "active_copy",
    "adapters_of",
    "check_adapters",
    "check_starts",
    "copies_of",
    "is_added",
    "plain_layers",
    "plain_name",
]


def active_copy(wrapper: Any) -> nn.Module | None:
    """Return the copy of a module that its wrapper calls, or None where it calls the original."""
    names = [name for name in wrapper.active_adapters if name in wrapper.modules_to_save]
    return wrapper.modules_to_save[names[0]] if names else None


def check_adapters(model: nn.Module) -> None:
    """Raise LayerError, by name, for adapters whose change is none, or cannot be had."""
    for path, layer in adapters_of(model):
        if layer.merged:
            raise LayerError(f"the adapters of '{path}' are merged into its weight; unmerge them first")
        if layer.disable_adapters:
            raise LayerError(
                f"the adapters of '{path}' are disabled; enable them (enable_adapter_layers) first"
            )
        base = layer.get_base_layer()
        if isinstance(base, nn.MultiheadAttention):
            raise LayerError(
                f"the adapters of '{path}' are inside torch's MultiheadAttention, which is not handled; "
                "adapt other layers"
            )
        if getattr(base, "groups", 1) > 1:
            raise LayerError(
                f"the adapter of '{path}' is on a convolution of {base.groups} groups, where B·A is no "
                "product of two matrices; leave it out of target_modules"
            )
    loose = [name for name, _ in trained_matrices(model) if ".base_layer." in name]
    adapted = tuple(f"{path}." for path, _ in [*adapters_of(model), *copies_of(model)])
    layers = set(layer_names(model)) if adapted else set()
    loose += [n for n, _ in trained_matrices(model) if n in layers and not n.startswith(adapted)]
    if loose:
        raise LayerError(
            f"{listed(map(plain_name, loose))} trained beside adapters, and where they started is not kept; "
            "freeze them, or name their modules in modules_to_save"
        )


# How B·A is zero at the start; every other way leaves a product, or changes the weights below it.
_FROM_ZERO = (True, "gaussian", "eva", "orthogonal")


def check_starts(model: nn.Module) -> None:
    """Raise LayerError, by name, for an adapter whose product is not zero at the start."""
    configs: dict[str, Any] = {}
    for module in model.modules():
        found = getattr(module, "peft_config", None)
        configs |= found if isinstance(found, dict) else {}
    for path, layer in adapters_of(model):
        for adapter in layer.active_adapters:
            way = getattr(configs.get(adapter), "init_lora_weights", True)
            if way not in _FROM_ZERO:
                raise LayerError(
                    f"the adapter '{adapter}' of '{path}' was made with init_lora_weights={way!r}: its "
                    "product B·A is not zero at the start, so it is not the change; use True, 'gaussian', "
                    "'eva' or 'orthogonal', or merge it and train another"
                )


def adapters_of(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Iterate over the layers with adapters, by path."""
    return ((path, m) for path, m in named_modules(model).items() if isinstance(m, BaseTunerLayer))


def copies_of(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Iterate over the modules that are trained as copies, by path."""
    return ((path, m) for path, m in named_modules(model).items() if isinstance(m, ModulesToSaveWrapper))


def is_added(model: nn.Module) -> Callable[[str], bool]:
    """Return a test of whether a tensor's name is one that peft added to the model."""
    inside = tuple(f"{path}." for path, _ in adapters_of(model))
    bases = tuple(f"{path}base_layer." for path in inside)
    saved = tuple(f"{path}.modules_to_save." for path, _ in copies_of(model))
    return lambda name: name.startswith(saved) or (name.startswith(inside) and not name.startswith(bases))


def plain_layers(model: nn.Module) -> list[str]:
    """List the layers, by the names they have without adapters."""
    is_new = is_added(model)
    return [plain_name(name) for name in layer_names(model) if not is_new(name)]


def plain_name(name: str) -> str:
    """Return a tensor's or module's name without what peft put into it."""
    name = re.sub(r"\.modules_to_save\.[^.]+", "", name)
    parts = [part for part in name.split(".") if part not in ("base_layer", "original_module")]
    return ".".join(parts[2:] if parts[:2] == ["base_model", "model"] else parts)
