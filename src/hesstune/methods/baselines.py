"""Plain fine-tuning, and methods that change the optimizer, a penalty, the inputs or what is trained when."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import nn

from hesstune.constraints.distance import StartingPointPenalty
from hesstune.errors import ConfigError, MissingExtraError
from hesstune.forward import unmoved_statistics
from hesstune.methods._base import Batch, Method, MethodSetup, Option, T, Tier
from hesstune.storage.tensors import Tree


class Vanilla(Method):
    """Plain fine-tuning: cross-entropy on the labels as they are."""

    tier = "baseline"
    shards = True


class EarlyStopping(Method):
    """Early stopping: cross-entropy, ended when validation no longer improves; the best epoch is kept.

    Validation labels are as noisy as the training labels; with a known F, the validation
    loss is their likelihood under F. Source: Li, Soltanolkotabi, Oymak 2020 for label noise; patience as in
    Prechelt 1998.
    """

    tier = "baseline"
    shards = True

    @classmethod
    def defaults(cls, head_only: bool) -> dict[str, Any]:
        return {"patience": 3, "select": "best"}


class WeightDecay(Method):
    """Weight decay: cross-entropy by AdamW, with decay to zero (not to the reference).

    Source: Loshchilov and Hutter 2019; 0.01 is the default of torch's AdamW. `--weight-decay` sets it.
    """

    tier = "baseline"
    shards = True

    @classmethod
    def defaults(cls, head_only: bool) -> dict[str, Any]:
        return {"optimizer": "adamw", "weight_decay": 0.01}


L2_SP_SOURCE = "Li et al. 2018, section 4: alpha within 1e-3 … 1, beta 0.01"


class L2SP(Method):
    """L2-SP: cross-entropy plus α/2 ‖w − w⁽ˢ⁾‖² + β/2 ‖head − its start‖².

    Source: Li, Grandvalet, Davoine 2018, equation 2.
    """

    tier: ClassVar[Tier] = "baseline"
    kind = "l2"
    head_penalty = 0.0
    own_options = {
        "alpha": Option(0.1, L2_SP_SOURCE, search=(1e-3, 1.0), log=True),
        "beta": Option(0.01, L2_SP_SOURCE, search=(1e-4, 0.1), log=True),
    }

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        self._penalty = StartingPointPenalty(
            setup.model, setup.reference, self.kind, head=setup.in_head, **self.options
        )

    def penalty(self) -> torch.Tensor:
        return self._penalty()


class L1SP(L2SP):
    """L1-SP: cross-entropy plus α ‖w − w⁽ˢ⁾‖₁ + β ‖head − its start‖₁.

    Source: Li, Grandvalet, Davoine 2018, equation 4.
    """

    tier: ClassVar[Tier] = "research"
    kind = "l1"
    own_options = {
        "alpha": Option(1e-4, "the order of L1 penalties for networks", search=(1e-6, 1e-2), log=True),
        "beta": Option(1e-4, "as alpha", search=(1e-6, 1e-2), log=True),
    }


def beta_draw(alpha: float) -> float:
    """Draw from Beta(α, α) by torch's global generator; 1 if α is 0."""
    return float(torch.distributions.Beta(alpha, alpha).sample()) if alpha else 1.0


def mixed(inputs: torch.Tensor, order: torch.Tensor, share: float) -> torch.Tensor:
    """Return share·inputs + (1 − share)·inputs[order]."""
    return share * inputs + (1.0 - share) * inputs[order]


class Mixup(Method):
    """Mixup: train on λx + (1 − λ)x′ with loss λ·ℓ(y) + (1 − λ)·ℓ(y′), λ ~ Beta(α, α) for each batch.

    Source: Zhang et al. 2018, equation 1; α = 0.2 is their value for ImageNet.
    """

    tier = "baseline"
    shards = True
    takes_soft = False
    mixes_inputs = True
    own_options = {
        "alpha": Option(0.2, "Zhang et al. 2018, section 3.1 (ImageNet)", search=(0.1, 8.0), log=True)
    }

    def batch_loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        share = beta_draw(self.options["alpha"])
        order = torch.randperm(len(batch.targets)).to(batch.targets.device)
        assert isinstance(batch.inputs, torch.Tensor)
        logits = batch.logits(inputs=mixed(batch.inputs, order, share))
        first = self.loss(logits, batch.targets, batch.epoch)
        second = self.loss(logits, batch.targets[order], batch.epoch)
        return share * first + (1.0 - share) * second, logits


class SAM(Method):
    """SAM: the gradient at w + ρ·g/‖g‖, the worst point within the radius ρ, instead of the one at w.

    Source: Foret et al. 2021, equation 2 and algorithm 1; ρ = 0.05. Two backward passes a step; only
    the first updates batch-norm statistics. One change: a head that starts from zero is not perturbed. A step
    of ρ can reverse a small head, and the layers below would then be trained against their features.
    """

    own_options = {"rho": Option(0.05, "Foret et al. 2021, section 3.1", search=(0.01, 0.5), log=True)}

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        below = {id(p) for name, p in setup.trained.items() if not setup.in_head(name)}
        at_zero = all(
            not setup.reference[name].any()
            for name in setup.trained
            if setup.in_head(name) and name in setup.reference
        )
        self._climbing = below if below and at_zero else {id(p) for p in setup.trained.values()}

    @torch.no_grad()
    def gradients(self, compute: Callable[[], T]) -> T:
        with torch.enable_grad():
            result = compute()
        parameters = [p for p in self.setup.network.parameters() if self._climbs(p)]
        start = [p.clone() for p in parameters]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.stack(torch._foreach_norm(gradients)).norm().clamp_min(1e-12)
        for p, gradient in zip(parameters, gradients, strict=True):
            p.add_(gradient * (self.options["rho"] / norm))
        with torch.enable_grad(), unmoved_statistics(self.setup.network):
            compute()
        for p, before in zip(parameters, start, strict=True):
            p.copy_(before)
        return result

    def _climbs(self, parameter: torch.nn.Parameter) -> bool:
        return parameter.grad is not None and id(parameter) in self._climbing


class NSO(Method):
    """NSO: the mean of the gradients at w + U and w − U, U ~ N(0, σ²I): descent on E ℓ(w + U).

    The smoothed loss is ℓ + σ²/2·Tr H to second order, so the trace of the Hessian is regularised.
    Source: Zhang, Li, Ju 2024, algorithm 1 with one two-point perturbation; σ = 0.01 within their range.
    """

    own_options = {"sigma": Option(0.01, "Zhang, Li, Ju 2024, experiments", search=(1e-3, 0.1), log=True)}

    @torch.no_grad()
    def gradients(self, compute: Callable[[], T]) -> T:
        parameters = [p for p in self.setup.network.parameters() if p.requires_grad]
        start = [p.clone() for p in parameters]
        noise = [self.options["sigma"] * torch.randn_like(p) for p in parameters]
        sums = [torch.zeros_like(p) for p in parameters]
        results: list[T] = []
        for sign in (1.0, -1.0):
            for p, before, step in zip(parameters, start, noise, strict=True):
                p.copy_(before + sign * step)
            # Statistics move once a step, as by a method of one pass.
            still = unmoved_statistics(self.setup.network) if results else nullcontext()
            with torch.enable_grad(), still:
                results.append(compute())
            for total, p in zip(sums, parameters, strict=True):
                if p.grad is not None:
                    total.add_(p.grad, alpha=0.5)
        for p, before, total in zip(parameters, start, sums, strict=True):
            p.copy_(before)
            p.grad = total
        return results[0]


class LPFT(Method):
    """LP-FT: the head alone first (linear probing), then everything that trains.

    A head that fits before the features move distorts them less. Source: Kumar et al. 2022, section 3.4;
    half of the epochs each. With `--train head` it is plain fine-tuning.
    """

    tier: ClassVar[Tier] = "baseline"
    toggles_requires_grad = True
    own_options = {
        "probe": Option(0.5, "Kumar et al. 2022: half of the epochs each", high=1.0, search=(0.1, 0.9)),
        "head_lr": Option(100.0, "the ratio of --lr's defaults for a head and for all layers", low=1e-3),
    }

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        self.trained = setup.trained
        self.body = [p for name, p in self.trained.items() if not setup.in_head(name)]
        self.probing = round(self.options["probe"] * setup.epochs)

    def start_epoch(self, epoch: int, predict: Callable[[nn.Module], torch.Tensor]) -> None:
        for parameter in self.body:
            parameter.requires_grad_(epoch >= self.probing)

    def lr_factor(self, epoch: int) -> float:
        return self.options["head_lr"] if self.body and epoch < self.probing else 1.0

    def notes(self) -> list[str]:
        if not self.body:
            return ["the head is all that trains, so there is one phase: plain fine-tuning of the head"]
        epochs = self.setup.epochs
        if 0 < self.probing < epochs:
            return []
        phase = "probing is left out" if self.probing == 0 else "nothing but the head is trained"
        return [f"of the two phases of {epochs} epoch{'s' * (epochs > 1)} one is empty: {phase}"]

    def finish(self) -> None:
        for parameter in self.body:
            parameter.requires_grad_(True)


class WiSEFT(LPFT):
    """WiSE-FT: after training, W ← (1 − α)·W⁽ᵖ⁾ + α·W, between the probed and the fine-tuned weights.

    Source: Wortsman et al. 2022, equation 1, α = 0.5. A classifier without a text tower has no zero-shot
    head, so W⁽ᵖ⁾ are the weights after a phase of linear probing, as for LP-FT.
    """

    tier: ClassVar[Tier] = "research"
    own_options = {
        **LPFT.own_options,
        "alpha": Option(0.5, "Wortsman et al. 2022, section 4", high=1.0, search=(0.1, 0.9)),
    }

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        self.probed: dict[str, torch.Tensor] = {}

    def start_epoch(self, epoch: int, predict: Callable[[nn.Module], torch.Tensor]) -> None:
        super().start_epoch(epoch, predict)
        if epoch <= self.probing:
            self.probed = {name: p.detach().clone() for name, p in self.trained.items()}

    @torch.no_grad()
    def finish(self) -> None:
        super().finish()
        for name, parameter in self.trained.items():
            parameter.lerp_(self.probed[name].to(parameter), 1.0 - self.options["alpha"])

    def state(self) -> Tree:
        return {"probed": self.probed}

    def load_state(self, state: Tree) -> None:
        self.probed = state["probed"]


class GradualUnfreezing(Method):
    """Gradual unfreezing: the head first, then ever more layers from the top.

    Source: Howard and Ruder 2018, section 3.3 (one layer group an epoch). Deep networks have more layers
    than a short run has epochs, so the layers thaw evenly over a share of the epochs.
    """

    toggles_requires_grad = True
    own_options = {"share": Option(0.5, "half of the epochs: all layers then train as long", high=1.0)}

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        self.body = [p for name, p in setup.trained.items() if not setup.in_head(name)]

    def start_epoch(self, epoch: int, predict: Callable[[nn.Module], torch.Tensor]) -> None:
        over = self.options["share"] * self.setup.epochs
        thawed = math.ceil(min(1.0, epoch / over if over else 1.0) * len(self.body))
        for at, parameter in enumerate(reversed(self.body)):
            parameter.requires_grad_(at < thawed)

    def notes(self) -> list[str]:
        if not self.body:
            return ["the head is all that trains, so nothing thaws: plain fine-tuning of the head"]
        if self.setup.epochs == 1 and self.options["share"]:
            return ["in one epoch no layer below the head thaws; give --epochs 2 or more"]
        return []

    def finish(self) -> None:
        for parameter in self.body:
            parameter.requires_grad_(True)


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
                _replace_module(setup.model, path, _plain(module))
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
        modules: dict[str, Any] = dict(self.setup.model.named_modules())
        for path in self.layers:
            modules[path].merge()  # into the parameter that the original module holds, too
            _replace_module(self.setup.model, path, self.originals[path])
        del self.setup.model.peft_config


def _replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
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


METHODS = {
    "vanilla": Vanilla,
    "early_stopping": EarlyStopping,
    "weight_decay": WeightDecay,
    "l2_sp": L2SP,
    "l1_sp": L1SP,
    "mixup": Mixup,
    "sam": SAM,
    "nso": NSO,
    "lp_ft": LPFT,
    "wise_ft": WiSEFT,
    "gradual_unfreezing": GradualUnfreezing,
    "lora": LoRA,
}
