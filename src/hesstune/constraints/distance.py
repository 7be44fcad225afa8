"""The layer-wise constraint: keep every weight within a radius of its reference."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from re import search

import torch
from torch import nn

from hesstune.checks import one_of, positive
from hesstune.errors import ConfigError, LayerError, listed, unknown_name
from hesstune.reference import Reference
from hesstune.runtime.sharding import is_sharded, over_parts, pair

__all__ = ["NORMS", "DistanceConstraint", "depth_scaled", "resolve_radii"]

NORMS = ("frobenius", "mars")


def resolve_radii(layers: list[str], radius: float | Mapping[str, float]) -> dict[str, float]:
    """Map layer names to radii.

    Args:
        layers: The layers' names.
        radius: One radius for all, or {fnmatch pattern: radius}; the first match wins, and a layer
            that no pattern matches is not constrained.

    Raises:
        ConfigError: If a radius is not above zero.
        LayerError: If a pattern matches no layer.
    """
    if not isinstance(radius, Mapping):
        value = positive("radius", radius)
        return dict.fromkeys(layers, value)
    if not radius:
        raise ConfigError("radius is an empty mapping; give a number or {pattern: radius}")
    radii: dict[str, float] = {}
    for pattern, value in radius.items():
        value = positive(f"radius of '{pattern}'", value)
        matched = [name for name in layers if fnmatchcase(name, pattern)]
        if not matched:
            raise unknown_name("layer pattern", pattern, layers, LayerError)
        for name in matched:
            radii.setdefault(name, value)
    return {name: radii[name] for name in layers if name in radii}


# The third and fourth stage of residual networks, in torchvision's and transformers' names.
STAGES = {r"(^|\.)(layer3|stages\.2)\.": 1, r"(^|\.)(layer4|stages\.3)\.": 2}


def depth_scaled(radii: Mapping[str, float], layers: list[str], scale: float, head: str) -> dict[str, float]:
    """Let radii grow with depth: times s on the network's third stage, times s² on its fourth.

    The stages are those of a residual network where its names tell them, else the third and fourth
    quarter of the layers; the head keeps its radius. Source: the code of the paper (there for
    ResNets); Li and Zhang 2021 let the radii of a layer grow by a constant factor.

    Args:
        radii: {layer: radius}.
        layers: All layers' names, in order of depth.
        scale: s > 0.
        head: The name of the last layer.

    Example:
        >>> depth_scaled(dict.fromkeys("abcd", 1.0), list("abcd") + ["h"], 2.0, "h")
        {'a': 1.0, 'b': 1.0, 'c': 2.0, 'd': 4.0}
    """
    scale = positive("radius scale", scale)
    body = [name for name in layers if name != head]
    powers = {name: p for name in body for pattern, p in STAGES.items() if search(pattern, name)}
    if not powers:
        powers = {name: max(0, 4 * at // len(body) - 1) for at, name in enumerate(body)}
    return {name: radius * scale ** powers.get(name, 0) for name, radius in radii.items()}


class DistanceConstraint:
    """Project layers back into their balls: W ← W⁽ˢ⁾ + (W − W⁽ˢ⁾)·min(1, α/‖W − W⁽ˢ⁾‖).

    Call `project_` after every real optimizer step. Source: the paper, section 4, Algorithm 1; the
    MARS norm is Gouk et al. 2021.

    Args:
        model: The network that is trained.
        ref: Its reference, taken before training.
        radius: α > 0, one for all layers or {pattern: α} (see `resolve_radii`).
        norm: `frobenius`, or `mars`, the largest absolute row sum (rows are dimension 0, the rest
            flattened), whose ball is projected on row by row.

    Raises:
        LayerError: If the model does not match the reference, or a pattern matches no layer.
        ConfigError: If a radius is not above zero or the norm is unknown.

    Example:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> con = DistanceConstraint(model, Reference.of(model), radius=1.0)
        >>> with torch.no_grad():
        ...     _ = model.weight.add_(2.0)
        >>> con.project_()  # the distance before
        {'weight': 4.0}
        >>> round(con.reference.distances(model)["weight"], 6)
        1.0
    """

    def __init__(
        self,
        model: nn.Module,
        ref: Reference,
        radius: float | Mapping[str, float] = 0.1,
        norm: str = "frobenius",
    ) -> None:
        ref.check(model)
        self.model = model
        self.reference = ref
        self.norm = one_of("norm", norm, NORMS)
        self.radii = resolve_radii(ref.layers(), radius)
        self._anchors: dict[str, torch.Tensor] = {}

    def _parts(self, name: str, parameter: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # The reference where and how the weight is kept, cast once, not at every step.
        weight, own = pair(parameter, self.reference[name], name)
        anchor = self._anchors.get(name)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        if anchor is None or anchor.device != weight.device or anchor.dtype != dtype:
            anchor = self._anchors[name] = own.to(device=weight.device, dtype=dtype)
        return weight, anchor

    @torch.no_grad()
    def project_(self) -> dict[str, float]:
        """Project every layer outside its ball; return each layer's distance before, in `norm`.

        Layers inside their ball are not written to. In half precision the result is rounded towards
        the reference, so that it stays inside the ball. Of sharded weights (FSDP2) each process
        projects its own part by the norm of the whole; all processes call this alike.
        """
        parameters = dict(self.model.named_parameters())
        lost = [name for name in self.radii if name not in parameters]
        if lost:
            raise LayerError(f"the model no longer has the layers {listed(lost)}")
        # A frozen layer sits where it was; one that was moved before freezing is still projected.
        tensors = [parameters[name] for name in self.radii]
        parts = [self._parts(name, p) for name, p in zip(self.radii, tensors, strict=True)]
        deltas = [w.detach().to(a.dtype) - a for w, a in parts]
        sharded = any(is_sharded(p) for p in tensors)
        if self.norm == "mars":
            rows = [d.flatten(1).abs().sum(dim=1) for d in deltas]
            # Parts are cut between rows; the last processes may have none.
            largest = torch.stack([r.max() if len(r) else r.new_zeros(()) for r in rows]) if rows else None
            found = over_parts(largest, tensors, "max") if sharded and largest is not None else largest
        else:
            rows = []
            found = torch.stack(torch._foreach_norm(deltas)) if deltas else None
            found = over_parts(found.square(), tensors).sqrt() if sharded and found is not None else found
        norms: list[float] = [] if found is None else found.tolist()
        for at, (name, distance) in enumerate(zip(self.radii, norms, strict=True)):
            radius = self.radii[name]
            if not distance > radius:
                continue
            delta = deltas[at]
            if self.norm == "mars":
                scale = (radius / rows[at].clamp_min(radius)).reshape(-1, *[1] * (delta.ndim - 1))
                delta.mul_(scale)
            else:
                delta.mul_(radius / distance)
            _write(*parts[at], delta)
        return dict(zip(self.radii, norms, strict=True))


def _write(weight: torch.Tensor, anchor: torch.Tensor, delta: torch.Tensor) -> None:
    """Set weight to anchor + delta; where half precision rounds away from the anchor, round back."""
    exact = anchor + delta
    weight.copy_(exact)
    if weight.dtype != anchor.dtype:
        away = (weight.to(anchor.dtype) - anchor).abs() > delta.abs()
        weight.copy_(torch.where(away, torch.nextafter(weight, anchor.to(weight.dtype)), weight))
