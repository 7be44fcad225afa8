"""LoRA by peft: distances without the product, the constraint by scaling, the measure of merged weights.

A layer with adapters has W = W⁽ˢ⁾ + Σ_a s_a·B_a·A_a, so v_i is the product: A and B alone mean nothing.
Layers go by the names they have without adapters, so radii are written as for full fine-tuning.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hesstune._former import former_names
from hesstune.checks import one_of
from hesstune.constraints.distance import NORMS, resolve_radii
from hesstune.curvature.measure import measure as measure_layers
from hesstune.curvature.result import Measure
from hesstune.errors import LayerError, MissingExtraError
from hesstune.reference import Reference, layer_names

try:
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper
except ImportError:
    raise MissingExtraError("peft", "peft", "hesstune.integrations.peft") from None

__all__ = ["AdapterConstraint", "base_reference", "distances", "measure_adapters", "merged", "trained_copies"]


def base_reference(model: nn.Module) -> Reference:
    """Return the weights that the adapters start from, under the names they have without adapters.

    The trained copies of modules (`modules_to_save`, such as a new head) start from their originals.

    Args:
        model: A peft model, or a module with peft's adapters injected, not merged.

    Raises:
        LayerError: If adapters are merged into the weights: then the reference is lost.
    """
    for path, layer in _adapted(model):
        if layer.merged:
            raise LayerError(f"the adapters of '{path}' are merged into its weight; unmerge them first")
    added = _added(model)
    tensors = {
        _plain(name): tensor.detach().clone()
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        if not added(name)
    }
    return Reference(tensors, _layers(model))


def merged(model: nn.Module) -> nn.Module:
    """Return a copy of the model with all adapters merged into its weights; the model is left alone.

    Its parameters have the names of `base_reference`, and take gradients.
    """
    plain: Any = copy.deepcopy(model)
    if hasattr(plain, "base_model") and hasattr(plain.base_model, "unload"):
        plain = plain.base_model.model
    for path, layer in list(_adapted(plain)):
        layer.merge()
        plain.set_submodule(path, layer.get_base_layer())
    for path, wrapper in list(_saved(plain)):
        plain.set_submodule(path, wrapper.modules_to_save[wrapper.active_adapters[0]])
    found: nn.Module = plain.requires_grad_(True)
    return found


def distances(model: nn.Module, reference: Reference | None = None) -> dict[str, float]:
    """Return ‖v_i‖ (Frobenius) of every layer; that of a product without forming it.

    ‖Σ_a s_a B_a A_a‖² = Σ_ab s_a s_b ⟨B_aᵀB_b, A_aA_bᵀ⟩ takes r×r matrices only. Layers without
    adapters are frozen, at distance 0; trained copies of modules are compared with their originals, or
    with a reference of `trained_copies`.

    Raises:
        LayerError: If an adapter is not plain LoRA on a linear or convolution layer.
    """
    found = dict.fromkeys(_layers(model), 0.0)
    for name, pieces in _products(model).items():
        found[name] = _product_norm(pieces)
    for name, (weight, start) in _copies(model).items():
        begin = start if reference is None else reference[name]
        found[name] = float(torch.linalg.vector_norm(weight.detach().float() - begin.to(weight).float()))
    return found


def trained_copies(model: nn.Module) -> Reference:
    """Return the originals of the layers that are trained as copies (`modules_to_save`), by name.

    All else of the reference is in the model itself, frozen. A resumed script that builds the model
    anew draws a new head: keep these beside the checkpoints, and give them to `AdapterConstraint`.
    """
    starts = {name: start.detach().clone() for name, (_, start) in _copies(model).items()}
    return Reference(starts, list(starts))


def measure_adapters(model: nn.Module, batches: Any, **options: Any) -> Measure:
    """Measure v_iᵀ H_i⁺ v_i with v_i the merged change of each layer.

    Args:
        model: A peft model; it is left as it is, and a merged copy is measured.
        batches: Iterable of (inputs, targets), as for `hesstune.measure`.
        **options: Of `hesstune.measure`.
    """
    plain = merged(model)
    reference = base_reference(model)
    return measure_layers(plain, reference, batches, **options)


class AdapterConstraint:
    """Keep every adapted layer's product, and every trained copy, inside a ball around the reference.

    Projection scales the factors: B ← B·min(1, α/‖ΔW‖), which scales ΔW alike (in the MARS norm
    row by row). Call `project_` after every optimizer step, as of `DistanceConstraint`.

    Args:
        model: A peft model, or a module with peft's adapters injected.
        radius: One radius, or {pattern: radius} on the layers' names without adapters.
        norm: `frobenius` or `mars`.
        reference: Originals of trained copies, from `trained_copies` before training; the model's own
            where None.

    Raises:
        LayerError: If an adapter is not plain LoRA, a pattern matches no layer, or nothing is trained.
    """

    def __init__(
        self,
        model: nn.Module,
        radius: float | Mapping[str, float],
        norm: str = "frobenius",
        reference: Reference | None = None,
    ) -> None:
        self.model, self.norm = model, one_of("norm", norm, NORMS)
        self.reference = trained_copies(model) if reference is None else reference
        moving = [*_products(model), *_copies(model)]
        if not moving:
            raise LayerError("no layer of this model has a LoRA adapter or a trained copy")
        unknown = [name for name in _copies(model) if name not in self.reference]
        if unknown:
            raise LayerError(f"the reference holds no '{unknown[0]}'; take it by trained_copies(model)")
        radii = resolve_radii(_layers(model), radius)
        self.radii = {name: radii[name] for name in moving if name in radii}

    @torch.no_grad()
    def project_(self) -> dict[str, float]:
        """Scale every layer outside its ball back; return each layer's distance before, in `norm`."""
        products, copies = _products(self.model), _copies(self.model)
        before = {}
        for name, radius in self.radii.items():
            if name in products:
                before[name] = self._scale(products[name], radius)
            else:
                before[name] = self._pull(copies[name][0], self.reference[name], radius)
        return before

    def _scale(self, pieces: list[_Piece], radius: float) -> float:
        if self.norm == "frobenius":
            norm = _product_norm(pieces)
            if norm > radius:
                for piece in pieces:
                    piece.b.mul_(radius / norm)
            return norm
        rows = torch.stack([piece.product() for piece in pieces]).sum(dim=0).abs().sum(dim=1)
        factor = radius / rows.clamp_min(radius)
        for piece in pieces:  # dimension 0 of the stored weight belongs to B, or to A where transposed
            piece.left.mul_(factor.to(piece.left.dtype)[:, None])
        return float(rows.max())

    def _pull(self, weight: torch.Tensor, start: torch.Tensor, radius: float) -> float:
        start = start.to(weight)
        delta = weight - start
        if self.norm == "frobenius":
            norm = float(torch.linalg.vector_norm(delta))
            factor = torch.tensor(min(1.0, radius / max(norm, radius)))
        else:
            rows = delta.flatten(1).abs().sum(dim=1)
            norm = float(rows.max())
            factor = (radius / rows.clamp_min(radius)).reshape(-1, *[1] * (delta.ndim - 1))
        if norm > radius:
            weight.copy_(start + delta * factor.to(delta))
        return norm


@dataclass
class _Piece:
    """One adapter of one layer: scale·B·A, with A (r, inputs) and B (outputs, r) views of its weights."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    transposed: bool

    @property
    def left(self) -> torch.Tensor:
        return self.a.t() if self.transposed else self.b

    def product(self) -> torch.Tensor:
        found = self.scale * (self.b.float() @ self.a.float())
        return found.t() if self.transposed else found


def _product_norm(pieces: list[_Piece]) -> float:
    total = 0.0
    for one in pieces:
        for other in pieces:
            outer = one.b.float().t() @ other.b.float()
            inner = one.a.float() @ other.a.float().t()
            total += one.scale * other.scale * float((outer * inner).sum(dtype=torch.float64))
    return float(max(total, 0.0) ** 0.5)


def _products(model: nn.Module) -> dict[str, list[_Piece]]:
    found, layers = {}, _layers(model)
    for path, layer in _adapted(model):
        if not isinstance(layer, LoraLayer) or layer.lora_variant or f"{_plain(path)}.weight" not in layers:
            kind = type(layer).__module__.split(".")[2]
            raise LayerError(
                f"the adapter of '{path}' ({kind}) changes its weight by more than a product B·A; only "
                "plain LoRA is handled: merge it (hesstune.integrations.peft.merged) and use that model"
            )
        active = [name for name in layer.active_adapters if name in layer.lora_A]
        if active:
            found[f"{_plain(path)}.weight"] = [_piece(layer, name) for name in active]
    return found


def _piece(layer: Any, adapter: str) -> _Piece:
    a, b = layer.lora_A[adapter].weight.detach(), layer.lora_B[adapter].weight.detach()
    if b[0, 0].numel() != 1:
        raise LayerError(f"the adapter '{adapter}' of a {type(layer).__name__} is no product of matrices")
    return _Piece(
        a.flatten(1), b.flatten(1), float(layer.scaling[adapter]), bool(getattr(layer, "fan_in_fan_out", 0))
    )


def _copies(model: nn.Module) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    found = {}
    for path, wrapper in _saved(model):
        active = dict(wrapper.modules_to_save[wrapper.active_adapters[0]].named_parameters())
        starts = dict(wrapper.original_module.named_parameters())
        for name in layer_names(wrapper.original_module):
            found[f"{_plain(path)}.{name}"] = (active[name], starts[name])
    return found


def _adapted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((path, m) for path, m in model.named_modules() if isinstance(m, BaseTunerLayer))


def _saved(model: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((path, m) for path, m in model.named_modules() if isinstance(m, ModulesToSaveWrapper))


def _added(model: nn.Module) -> Callable[[str], bool]:
    """Return a test of whether a tensor's name is one that peft added to the model."""
    inside = tuple(f"{path}." for path, _ in _adapted(model))
    bases = tuple(f"{path}base_layer." for path in inside)
    saved = tuple(f"{path}.modules_to_save." for path, _ in _saved(model))
    return lambda name: name.startswith(saved) or (name.startswith(inside) and not name.startswith(bases))


def _layers(model: nn.Module) -> list[str]:
    added = _added(model)
    return [_plain(name) for name in layer_names(model) if not added(name)]


def _plain(name: str) -> str:
    parts = [part for part in name.split(".") if part not in ("base_layer", "original_module")]
    return ".".join(parts[2:] if parts[:2] == ["base_model", "model"] else parts)


__getattr__ = former_names(__name__, measure="measure_adapters")
