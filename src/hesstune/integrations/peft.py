"""LoRA by peft: distances without the product, the constraint by scaling, the measure of merged weights.

A layer with adapters has W = W⁽ˢ⁾ + Σ_a s_a·B_a·A_a, so v_i is the product. Layers have their names without
adapters, so radii are written as for full fine-tuning. An embedding with an adapter has a distance and is
constrained like a layer. It is not measured, since embeddings are not layers.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hesstune.checks import one_of
from hesstune.constraints.distance import (
    NORMS,
    check_finite,
    resolve_radii,
    trained_matrices,
    warn_of_unheld,
)
from hesstune.constraints.optimizers import Optimizers
from hesstune.curvature.measure import measure as measure_layers
from hesstune.curvature.result import Measure
from hesstune.errors import HesstuneWarning, LayerError, MissingExtraError, listed
from hesstune.forward import clear_caches, named_buffers, named_modules, named_parameters, uncompiled
from hesstune.reference import NO_LAYER, Reference, layer_names, wide

try:
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper
except ImportError:
    raise MissingExtraError("peft", "peft", "hesstune.integrations.peft") from None


def active_copy(wrapper: Any) -> nn.Module | None:
    """Return the copy of a module that its wrapper calls, or None if it calls the original."""
    names = [name for name in wrapper.active_adapters if name in wrapper.modules_to_save]
    return wrapper.modules_to_save[names[0]] if names else None


def check_adapters(model: nn.Module) -> None:
    """Raise LayerError, by name, for adapters without a change, or with one that cannot be computed."""
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
                f"the adapter of '{path}' is on a convolution of {base.groups} groups: B·A is no "
                "product of two matrices; leave it out of target_modules"
            )
    loose = [name for name, _ in trained_matrices(model) if ".base_layer." in name]
    adapted = tuple(f"{path}." for path, _ in [*adapters_of(model), *copies_of(model)])
    layers = set(layer_names(model)) if adapted else set()
    loose += [n for n, _ in trained_matrices(model) if n in layers and not n.startswith(adapted)]
    if loose:
        raise LayerError(
            f"{listed(map(plain_name, loose))} trained beside adapters, and their start is not kept; "
            "freeze them, or name their modules in modules_to_save"
        )


# Initialisations with B·A = 0; every other one leaves a product, or changes the weights below it.
_FROM_ZERO = (True, "gaussian", "eva", "orthogonal")


def check_starts(model: nn.Module) -> None:
    """Raise LayerError as `check_adapters`, and for an adapter with B·A not zero at the start."""
    check_adapters(model)
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


# The share of a radius that is aimed at, so that rounding leaves the result within the radius.
SAFE = 1 - 1e-6


def base_reference(model: nn.Module) -> Reference:
    """Return the weights that the adapters start from, under the names they have without adapters.

    The trained copies of modules (`modules_to_save`, such as a new head) start from their originals.

    Args:
        model: A peft model, or a module with peft's adapters injected, not merged.

    Raises:
        LayerError: If adapters are merged into the weights: then the reference is lost; or if they do not
            start at a product of zero (PiSSA and others), or stand on quantised weights.
    """
    check_starts(model)
    for path, layer in adapters_of(model):
        weight = getattr(layer.get_base_layer(), "weight", None)
        if not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
            raise LayerError(
                f"'{path}' has quantised weights, from which no change can be taken; load the model in "
                "float32 or bfloat16"
            )
    is_new = is_added(model)
    tensors = {
        plain_name(name): tensor.detach().clone()
        for name, tensor in (named_parameters(model) | named_buffers(model)).items()
        if not is_new(name)
    }
    return Reference(tensors, plain_layers(model))


def merged(model: nn.Module) -> nn.Module:
    """Return a copy of the model with all adapters merged into its weights; the model is left alone.

    Its parameters have the names of `base_reference`, and take gradients.

    Raises:
        LayerError: If an adapter is disabled, or peft cannot merge it.
    """
    check_adapters(model)
    clear_caches(model)  # a tensor that is kept with its graph cannot be copied
    plain: Any = uncompiled(copy.deepcopy(model))
    if hasattr(plain, "base_model") and hasattr(plain.base_model, "unload"):
        plain = plain.base_model.model
    for path, layer in list(adapters_of(plain)):
        layer.merge()
        plain.set_submodule(path, layer.get_base_layer())
    for path, wrapper in list(copies_of(plain)):
        copied = active_copy(wrapper)
        plain.set_submodule(path, wrapper.original_module if copied is None else copied)
    found: nn.Module = plain.requires_grad_(True)
    return found


def distances(model: nn.Module, reference: Reference | None = None, *, warn: bool = True) -> dict[str, float]:
    """Return ‖v_i‖ (Frobenius) of every layer and adapted embedding; that of a product without forming it.

    ‖Σ_a s_a B_a A_a‖² = Σ_ab s_a s_b ⟨B_aᵀB_b, A_aA_bᵀ⟩ takes r×r matrices only. Layers without
    adapters are frozen, at distance 0; trained copies of modules are compared with their originals, or
    with a reference of `trained_copies`.

    Args:
        model: A peft model, or a module with peft's adapters injected.
        reference: Originals of trained copies, from `trained_copies`; default: the model's.
        warn: Warn of trained weight matrices that are neither layers nor adapters: they are left out.

    Raises:
        LayerError: If an adapter is not plain LoRA on a linear layer, convolution or embedding, does not
            start at a product of zero, or a layer is trained without one.
    """
    check_starts(model)
    if warn and (others := _unheld(model)):
        warnings.warn(f"the distances leave out {listed(others)}: {NO_LAYER}", HesstuneWarning, stacklevel=2)
    moved = {name: change.norm() for name, change in _changes(model, reference).items()}
    return dict.fromkeys(plain_layers(model), 0.0) | moved


def trained_copies(model: nn.Module) -> Reference:
    """Return the originals of the layers that are trained as copies (`modules_to_save`), by name.

    The model itself holds the rest of the reference, frozen. A resumed script that builds the model anew
    draws a new head: keep these originals beside the checkpoints, and pass them to `AdapterConstraint`.
    """
    starts = {name: copied.start.detach().clone() for name, copied in _copies(model).items()}
    return Reference(starts, list(starts))


def measure_adapters(model: nn.Module, batches: Any, **options: Any) -> Measure:
    """Measure v_iᵀ H_i⁺ v_i with v_i the merged change of each layer.

    Args:
        model: A peft model; it is left as it is, and a merged copy is measured.
        batches: Iterable of (inputs, targets), as for `hesstune.measure`.
        **options: Of `hesstune.measure`.
    """
    reference = base_reference(model)
    plain = merged(model)
    return measure_layers(plain, reference, batches, **options)


class AdapterConstraint:
    """Keep every adapted layer's or embedding's product, and every trained copy, near the reference.

    Projection scales the factors: B ← B·min(1, α/‖ΔW‖), which scales ΔW by the same factor (in the MARS norm
    row by row). Call `project_` after every optimizer step, as for `DistanceConstraint`.

    Args:
        model: A peft model, or a module with peft's adapters injected.
        radius: One radius, or {pattern: radius} on the layers' names without adapters.
        norm: `frobenius` or `mars`.
        reference: Originals of trained copies, from `trained_copies` before training; default: the model's.
        warn: Warn of trained copies (recurrent weights, embeddings) that one radius for all does not hold.

    Raises:
        LayerError: If an adapter is not plain LoRA, a pattern matches no layer, or nothing is trained.
    """

    def __init__(
        self,
        model: nn.Module,
        radius: float | Mapping[str, float],
        norm: str = "frobenius",
        reference: Reference | None = None,
        *,
        warn: bool = True,
    ) -> None:
        self.model, self.norm = model, one_of("norm", norm, NORMS)
        self.reference = trained_copies(model) if reference is None else reference
        check_starts(model)
        moving = list(_changes(model))
        if not moving:
            raise LayerError("no layer of this model has a LoRA adapter or a trained copy")
        unknown = [name for name in _copies(model) if name not in self.reference]
        if unknown:
            raise LayerError(f"the reference holds no '{unknown[0]}'; take it by trained_copies(model)")
        layers = plain_layers(model)
        radii = resolve_radii([*layers, *(name for name in moving if name not in layers)], radius)
        self.radii = {name: radii[name] for name in moving if name in radii}
        self._optimizers = Optimizers(dict(named_parameters(model)))
        if warn and not isinstance(radius, Mapping):
            warn_of_unheld(_unheld(model), "{pattern: radius} says which layers are meant to be held")

    @torch.no_grad()
    def project_(self) -> dict[str, float]:
        """Scale back every layer outside its radius; return each layer's distance before, in `norm`.

        Raises:
            DivergedError: If a distance is not finite; the weights are then left as they are.
            LayerError: If the optimizer keeps averages or slow weights of the factors: a product of averages
                is no average of products, so it may lie outside.
        """
        if kept := self._optimizers.kept():
            raise LayerError(
                f"the optimizer keeps other weights of '{kept[0].name}' (a schedule-free average or slow "
                "weights), and a product of averaged factors may lie outside the constraint: use another "
                "optimizer, or train whole weights with DistanceConstraint"
            )
        changes, limits = _changes(self.model, self.reference), self.radii
        before = self._distances(changes)
        check_finite(before)
        outside = [name for name, radius in limits.items() if before[name] > radius]
        for name in outside:
            goal = SAFE * limits[name]
            if self.norm == "frobenius":
                changes[name].scale_(torch.tensor(goal / before[name]))
            else:
                changes[name].scale_(goal / _row_sums(changes[name].delta()).clamp_min(goal))
        if outside:
            clear_caches(self.model)
        return before

    def outside(self) -> dict[str, float]:
        """Return the layers that lie outside their radius, with their distances, in `norm`."""
        found = self._distances(_changes(self.model, self.reference))
        return {name: norm for name, norm in found.items() if not norm <= self.radii[name] * (1 + 1e-6)}

    def _distances(self, changes: Mapping[str, _Product | _Copy]) -> dict[str, float]:
        if self.norm == "frobenius":
            return {name: changes[name].norm() for name in self.radii}
        return {name: float(_row_sums(changes[name].delta()).max()) for name in self.radii}


def _row_sums(delta: torch.Tensor) -> torch.Tensor:
    return delta.flatten(1).abs().sum(dim=1)


@dataclass
class _Copy:
    """A weight that is trained as a copy, and its original."""

    weight: torch.Tensor
    start: torch.Tensor

    def delta(self) -> torch.Tensor:
        return self.weight.detach().float() - self.start.to(self.weight).float()

    def norm(self) -> float:
        return float(torch.linalg.vector_norm(self.delta()))

    def scale_(self, factor: torch.Tensor) -> None:
        """Scale the change by a factor, or by one for each row."""
        delta = self.delta()
        factor = factor.reshape(-1, *[1] * (delta.ndim - 1)) if factor.ndim else factor
        self.weight.copy_(self.start.to(self.weight) + delta * factor.to(delta))


@dataclass
class _Product:
    """The change Σ_a s_a·B_a·A_a of a layer, by its adapters."""

    pieces: list[_Piece]

    def delta(self) -> torch.Tensor:
        return torch.stack([piece.product() for piece in self.pieces]).sum(dim=0)

    def norm(self) -> float:
        """Return the Frobenius norm, without forming the product."""
        total = 0.0
        for one in self.pieces:
            for other in self.pieces:
                wider = wide(one.b)
                outer = one.b.to(wider).t() @ other.b.to(wider)
                inner = one.a.to(wider) @ other.a.to(wider).t()
                total += one.scale * other.scale * float((outer * inner).sum())
        return float(max(total, 0.0) ** 0.5)

    def scale_(self, factor: torch.Tensor) -> None:
        """Scale the change by a factor, or by one for each row of the weight."""
        for piece in self.pieces:
            if not factor.ndim:
                piece.b.mul_(float(factor))
            else:  # rows of the stored weight belong to B, or to A if it is transposed
                rows = piece.a.t() if piece.transposed else piece.b
                rows.mul_(factor.to(rows.dtype)[:, None])


@dataclass
class _Piece:
    """One adapter of one layer: scale·B·A, with A (r, inputs) and B (outputs, r) views of its weights."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    transposed: bool

    def product(self) -> torch.Tensor:
        found = self.scale * (self.b.float() @ self.a.float())
        return found.t() if self.transposed else found


def _changes(model: nn.Module, reference: Reference | None = None) -> dict[str, _Product | _Copy]:
    """Return the change of every adapted layer and trained copy, by name."""
    copies = _copies(model)
    if reference is not None:
        copies = {name: _Copy(copied.weight, reference[name]) for name, copied in copies.items()}
    return {**_products(model), **copies}


def _products(model: nn.Module) -> dict[str, _Product]:
    """Return the products B·A of all LoRA layers, by name."""
    found, layers = dict[str, _Product](), plain_layers(model)
    for path, layer in adapters_of(model):
        name = f"{plain_name(path)}.weight"
        embeds = isinstance(layer, LoraLayer) and isinstance(layer.get_base_layer(), nn.Embedding)
        if not isinstance(layer, LoraLayer) or layer.lora_variant or not (embeds or name in layers):
            kind = type(layer).__module__.split(".")[2]
            raise LayerError(
                f"the adapter of '{path}' ({kind}) changes its weight by more than a product B·A; only "
                "plain LoRA is handled: merge it (hesstune.integrations.peft.merged) and use that model"
            )
        first, second = (
            (layer.lora_embedding_A, layer.lora_embedding_B) if embeds else (layer.lora_A, layer.lora_B)
        )
        active = [adapter for adapter in layer.active_adapters if adapter in first]
        if active:
            found[name] = _Product([_low_rank_piece(layer, first, second, adapter) for adapter in active])
    return found


def _low_rank_piece(layer: Any, first: Any, second: Any, adapter: str) -> _Piece:
    # The factors of an embedding are parameters, not modules; its weight is stored as (entries, width).
    embeds = isinstance(first, nn.ParameterDict)
    a, b = (part[adapter] if embeds else part[adapter].weight for part in (first, second))
    if b[0, 0].numel() != 1:
        raise LayerError(f"the adapter '{adapter}' of a {type(layer).__name__} is no product of matrices")
    transposed = embeds or bool(getattr(layer, "fan_in_fan_out", False))
    scale = float(layer.scaling[adapter])
    return _Piece(a.detach().flatten(1), b.detach().flatten(1), scale, transposed)


def _unheld(model: nn.Module) -> list[str]:
    """List the trained weight matrices that are neither in an adapter nor copies of layers."""
    held = {id(copied.weight) for copied in _copies(model).values()}
    return [plain_name(n) for n, p in trained_matrices(model) if id(p) not in held and "lora_" not in n]


def _copies(model: nn.Module) -> dict[str, _Copy]:
    """Return the trained copies of layers (`modules_to_save`), by name."""
    found: dict[str, _Copy] = {}
    for path, wrapper in copies_of(model):
        copied = active_copy(wrapper)
        if copied is None:
            continue
        active = named_parameters(copied)
        starts = named_parameters(wrapper.original_module)
        for name in layer_names(wrapper.original_module):
            found[f"{plain_name(path)}.{name}"] = _Copy(active[name], starts[name])
    return found
