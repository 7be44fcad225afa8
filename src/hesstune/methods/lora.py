"""Low-rank updates, by peft."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from hesstune.errors import ConfigError, MissingExtraError
from hesstune.methods._base import Method, MethodSetup, Option


class LoRA(Method):
    """LoRA: W = W⁽ˢ⁾ + (α/r)·B·A with B, A of rank r; all else but the head is frozen.

    Source: Hu et al. 2022; r = 8, α = 16 by peft (`pip install '.[peft]'`). Linear layers and 1×1
    convolutions get adapters, which are merged into the weights at the end, so that the run is measured,
    exported and loaded like any other.
    """

    tier = "baseline"
    own_options = {
        "rank": Option(8.0, "peft's default", low=1.0, search=(2.0, 64.0), log=True),
        "alpha": Option(16.0, "Hu et al. 2022: twice the rank", low=1e-6),
    }

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError:
            raise MissingExtraError("peft", "peft", "method 'lora'") from None
        self.layers = _adapted(setup)
        if not self.layers:
            raise ConfigError(
                "method 'lora' adapts the linear layers and 1×1 convolutions below the head, and none of "
                "them trains here; use --train all, or another method"
            )
        modules = dict(setup.model.named_modules())
        self.originals = {path: modules[path] for path in self.layers}
        for path, module in self.originals.items():
            if type(module) is not nn.Linear:
                _put(setup.model, path, _plain(module))
        head = {id(p) for name, p in setup.trained.items() if setup.in_head(name)}
        config = LoraConfig(
            r=round(self.options["rank"]),
            lora_alpha=round(self.options["alpha"]),
            # A pattern of whole names: peft takes those of a list for endings; `1` ends `2.inner.1`, too.
            target_modules="|".join(re.escape(path) for path in self.layers),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(setup.counts.sum()))
            inject_adapter_in_model(config, setup.model)
        for name, parameter in setup.model.named_parameters():
            parameter.requires_grad_("lora_" in name or id(parameter) in head)

    def distances(self) -> dict[str, float]:
        """Return ‖v_i‖: of a layer with adapter the norm of its update."""
        modules = dict(self.setup.model.named_modules())
        found = {}
        for name in self.setup.reference.layers():
            path, _, attribute = name.rpartition(".")
            if path in self.layers:
                update = modules[path].get_delta_weight("default")
            else:
                update = getattr(modules[path], attribute) - self.setup.reference[name]
            found[name] = float(torch.linalg.vector_norm(update.detach()))
        return found

    def finish(self) -> None:
        """Merge the adapters into the weights and take them out."""
        modules: dict[str, Any] = dict(self.setup.model.named_modules())
        for path in self.layers:
            modules[path].merge()  # into the parameter that the original module holds, too
            _put(self.setup.model, path, self.originals[path])
        del self.setup.model.peft_config


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _plain(module: nn.Module) -> nn.Module:
    """Return torch's own layer with the same parameters: peft builds adapters of the layer's class."""
    if isinstance(module, nn.Linear):
        plain: nn.Linear | nn.Conv2d = nn.Linear(module.in_features, module.out_features, bias=False)
    else:
        assert isinstance(module, nn.Conv2d)
        plain = nn.Conv2d(module.in_channels, module.out_channels, 1, bias=False)
    plain.weight, plain.bias = module.weight, module.bias
    return plain.train(module.training)


def _adapted(setup: MethodSetup) -> list[str]:
    """List the modules below the head that get adapters."""
    modules = dict(setup.model.named_modules())
    found = []
    for name in setup.trained:
        path, _, attribute = name.rpartition(".")
        module = modules[path]
        pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == module.stride == (1, 1)
        pointwise = pointwise and module.groups == 1
        if attribute == "weight" and not setup.in_head(name) and (isinstance(module, nn.Linear) or pointwise):
            found.append(path)
    return found


METHOD = LoRA
