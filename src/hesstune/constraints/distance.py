"""The layer-wise distance constraint, and penalties on the distance from the reference."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from re import search
from typing import Any

import torch
from torch import nn

from hesstune.checks import one_of, positive
from hesstune.constraints.optimizers import Optimizers
from hesstune.errors import ConfigError, DivergedError, HesstuneWarning, LayerError, listed
from hesstune.forward import clear_caches, named_parameters
from hesstune.reference import NO_LAYER, Reference, is_matrix, matching_names, wide
from hesstune.runtime.sharding import is_sharded, over_parts, pair

NORMS = ("frobenius", "mars")


def resolve_radii(layers: list[str], radius: float | Mapping[str, float]) -> dict[str, float]:
    """Map layer names to radii: one radius for all, or {fnmatch pattern: radius}.

    The first pattern that matches decides; a layer that none matches is not constrained. ConfigError if a
    radius is not above zero, LayerError if a pattern matches no layer.
    """
    if not isinstance(radius, Mapping):
        value = positive("radius", radius)
        return dict.fromkeys(layers, value)
    if not radius:
        raise ConfigError("radius is an empty mapping; give a number or {pattern: radius}")
    radii: dict[str, float] = {}
    for pattern, value in radius.items():
        value = positive(f"radius of '{pattern}'", value)
        for name in matching_names(pattern, layers, "layer pattern"):
            radii.setdefault(name, value)
    return {name: radii[name] for name in layers if name in radii}


def trained_matrices(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """List the trained parameters with at least two dimensions above 1, by name, layers or not."""
    return [(name, p) for name, p in named_parameters(model).items() if p.requires_grad and is_matrix(p)]


def warn_of_unheld(names: Iterable[str], fix: str) -> None:
    """Warn of trained matrices that one radius for all layers does not hold, because they are not layers."""
    if unheld := list(names):
        warnings.warn(
            f"one radius for all layers does not hold {listed(unheld)}: {NO_LAYER}. {fix}",
            HesstuneWarning,
            stacklevel=3,
        )


def check_finite(distances: Mapping[str, float]) -> None:
    """Raise DivergedError, naming the layers, unless all distances are finite."""
    lost = [name for name, value in distances.items() if not math.isfinite(value)]
    if lost:
        raise DivergedError(
            f"the distance from the reference became {distances[lost[0]]} in {listed(lost)}: training has "
            "diverged; go back to the last good checkpoint and lower the learning rate, or clip gradients"
        )


def weight_norm(weight: torch.Tensor, norm: str) -> float:
    """Return a weight's norm: Frobenius, or MARS, the largest absolute row sum."""
    if norm == "mars":
        return float(weight.double().flatten(1).abs().sum(dim=1).max())
    return float(weight.double().norm())


# The third and fourth stage of residual networks, in torchvision's and transformers' names.
STAGES = {r"(^|\.)(layer3|stages\.2)\.": 1, r"(^|\.)(layer4|stages\.3)\.": 2}


def depth_scaled(
    radii: Mapping[str, float], layers: list[str], scale: float, heads: Sequence[str]
) -> dict[str, float]:
    """Multiply radii by s on the network's third stage and by s² on its fourth.

    The stages are those of a residual network if its names show them, else the third and fourth quarter of
    the layers; the head keeps its radius. Source: the code of the paper (there for ResNets); Li and Zhang
    2021 let the radii of a layer grow by a constant factor.
    """
    scale = positive("radius scale", scale)
    body = [name for name in layers if name not in heads]
    powers = {name: p for name in body for pattern, p in STAGES.items() if search(pattern, name)}
    if not powers:
        powers = {name: max(0, 4 * at // len(body) - 1) for at, name in enumerate(body)}
    return {name: radius * scale ** powers.get(name, 0) for name, radius in radii.items()}


class DistanceConstraint:
    """Project layers onto their distance constraints: W ← W⁽ˢ⁾ + (W − W⁽ˢ⁾)·min(1, α/‖W − W⁽ˢ⁾‖).

    Call `project_` after every real optimizer step. Source: the paper, section 4, Algorithm 1; the
    MARS norm is Gouk et al. 2021.

    Weights that the optimizer keeps are projected as well: the iterates and averages of schedule-free
    optimizers, the slow weights of Lookahead, averaged SGD, copies in float32. Optimizers of torch are
    recognised at their first step. An average that is made of projected weights and the reference lies within
    the radius, too, since the constraint is convex: average after `project_`.

    Args:
        model: The network that is trained.
        ref: Its reference, taken before training.
        radius: α > 0, one for all layers or {pattern: α} (see `resolve_radii`).
        norm: `frobenius`, or `mars`, the largest absolute row sum (rows are dimension 0, the
            others are flattened), which is projected row by row.
        include: Patterns of further parameters (matrices, or of more dimensions: embeddings, recurrent
            weights, experts) that are held like layers. None warns of those that are trained and that
            one radius for all does not hold; () leaves them free.
        optimizer: The optimizer; needed only if it is a wrapper that is no torch optimizer, such as
            `ScheduleFreeWrapper`.

    Raises:
        LayerError: If the model does not match the reference, a pattern matches nothing, or the optimizer
            steps none of the layers.
        ConfigError: If a radius is not above zero or the norm is unknown.

    Example:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> con = DistanceConstraint(model, Reference.of(model), radius=1.0)
        >>> with torch.no_grad():
        ...     _ = model.weight.add_(2.0)
        >>> round(con.project_()["weight"], 6)  # the distance before
        4.0
        >>> round(con.reference.distances(model)["weight"], 6)
        1.0
    """

    def __init__(
        self,
        model: nn.Module,
        ref: Reference,
        radius: float | Mapping[str, float] = 0.1,
        norm: str = "frobenius",
        include: Iterable[str] | None = None,
        optimizer: Any = None,
    ) -> None:
        ref.check(model)
        self.model = model
        self.reference = ref
        self.norm = one_of("norm", norm, NORMS)
        layers = ref.layers()
        held = set(layers)
        others = [n for n, p in named_parameters(model).items() if p.ndim > 1 and n not in held]
        for pattern in (include,) if isinstance(include, str) else include or ():
            found = matching_names(pattern, others, "pattern of included parameters")
            layers += [name for name in found if name not in layers]
        self.radii = resolve_radii(layers, radius)
        if include is None and not isinstance(radius, Mapping):
            warn_of_unheld(
                (name for name, _ in trained_matrices(model) if name in others),
                "include=[pattern, …] holds them, too; include=() leaves them free",
            )
        self._anchors: dict[str, tuple[torch.Tensor, float]] = {}
        parameters = named_parameters(model)
        self._optimizers = Optimizers({name: parameters[name] for name in self.radii}, optimizer)

    @torch.no_grad()
    def project_(self) -> dict[str, float]:
        """Project every layer outside its radius; return each layer's distance before, in `norm`.

        Layers within their radius are not written to. Norms are taken in float64. The radius that is aimed at
        leaves a margin for the weights' own rounding, so that the result lies within the radius; in half
        precision it is rounded towards the reference. Of sharded weights (FSDP2) each process projects its
        own part by the norm of the whole; all processes call this alike.

        Raises:
            LayerError: If a layer no longer exists.
            DivergedError: If a distance is not finite; the weights are then left as they are.
            ConfigError: If a wrapper of the optimizer that is not known decides what the weights are.
        """
        # A frozen layer does not move; one that was moved before freezing is still projected.
        weights: list[tuple[str, torch.Tensor]] = [(name, self._weight(name)) for name in self.radii]
        kept = self._optimizers.kept()
        named = [*weights, *((k.name, k.tensor) for k in kept)]
        norms = self._project(named)
        moved = {name for (name, _), norm in zip(named, norms, strict=True) if norm > self.radii[name]}
        for average in kept:
            if average.name in moved:
                average.write_into(dict(weights)[average.name])
        if moved:
            clear_caches(self.model)
        return dict(zip(self.radii, norms, strict=False))

    @torch.no_grad()
    def outside(self, model: nn.Module | None = None) -> dict[str, float]:
        """Return the layers that lie outside their radius, with their distances, in `norm`.

        Args:
            model: A copy of the model, such as an average of its weights; wrappers that keep it as `module`
                (AveragedModel, ModelEmaV3, DistributedDataParallel) are opened. Default: the model.
        """
        inner = self.model if model is None else model
        while inner is not self.model and isinstance(getattr(inner, "module", None), nn.Module):
            inner = inner.module  # type: ignore[assignment]
        named = [(name, self._weight(name, inner)) for name in self.radii]
        norms = self._norms([self._change(name, weight)[0] for name, weight in named], named)[0]
        found = dict(zip(self.radii, norms, strict=True))
        return {name: norm for name, norm in found.items() if not norm <= self.radii[name] * (1 + 1e-6)}

    def _weight(self, name: str, model: nn.Module | None = None) -> nn.Parameter:
        try:
            return (self.model if model is None else model).get_parameter(name)
        except AttributeError:
            raise LayerError(f"the model no longer has the layer {name}") from None

    def _change(
        self, name: str, tensor: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
        """Return this process's part of a change, of its weight and reference, and the entries' size."""
        weight, own = pair(tensor, self.reference[name], name)
        known = self._anchors.get(name)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        if known is None or known[0].device != weight.device or known[0].dtype != dtype:
            # Once, not at every step.
            anchor = own.to(device=weight.device, dtype=dtype)
            known = self._anchors[name] = anchor, _size(anchor, self.norm)
        return weight.detach().to(dtype) - known[0], weight, *known

    def _norms(
        self, deltas: list[torch.Tensor], named: Sequence[tuple[str, torch.Tensor]]
    ) -> tuple[list[float], list[torch.Tensor]]:
        """Return the norms of changes, of all processes' parts, and for `mars` the sums of rows."""
        if not deltas:
            return [], []
        mars, tensors = self.norm == "mars", [tensor for _, tensor in named]
        rows = [d.flatten(1).abs().sum(dim=1, dtype=wide(d)) for d in deltas] if mars else []
        # Sharded weights are cut between rows; the last processes may have none.
        found = torch.stack(
            [r.max() if len(r) else r.new_zeros(()) for r in rows]
            if mars
            else [torch.linalg.vector_norm(d, dtype=wide(d)) for d in deltas]
        )
        if any(is_sharded(tensor) for tensor in tensors):
            found = over_parts(found, tensors, "max") if mars else over_parts(found.square(), tensors).sqrt()
        return found.tolist(), rows

    def _project(self, named: Sequence[tuple[str, torch.Tensor]]) -> list[float]:
        """Project weights of layers, given by name, in place; return their distances before."""
        parts = [self._change(name, tensor) for name, tensor in named]
        norms, rows = self._norms([delta for delta, *_ in parts], named)
        check_finite(
            {name: norm for (name, _), norm in zip(named, norms, strict=True) if not math.isfinite(norm)}
        )
        for at, ((name, _), distance) in enumerate(zip(named, norms, strict=True)):
            radius = self.radii[name]
            if distance <= radius:
                continue
            delta, weight, anchor, size = parts[at]
            aim = _aim(radius, delta, size, self.norm)
            if self.norm == "mars":
                scale = torch.where(rows[at] > radius, aim / rows[at], 1.0)
                delta.mul_(scale.to(delta.dtype).reshape(-1, *[1] * (delta.ndim - 1)))
            else:
                delta.mul_(aim / distance)
            _write(weight, anchor, delta)
        return norms


def warn_if_outside(outside: Mapping[str, float], radii: Mapping[str, float]) -> None:
    """Warn, with the distance and the radius, of layers that training has left outside their radius."""
    if outside:
        shown = listed(
            f"{name} at {distance:.3g}, radius {radii[name]:.3g}" for name, distance in outside.items()
        )
        warnings.warn(
            f"training ends with layers outside their distance constraint: {shown}. Something "
            "changed the weights after the projection, such as an average of weights from before it: average "
            "after it, or call project_() once more",
            HesstuneWarning,
            stacklevel=3,
        )


def _size(anchor: torch.Tensor, norm: str) -> float:
    """Return the root mean square of a reference's entries; for `mars` the largest entry."""
    if not anchor.numel():
        return 0.0
    return float(anchor.abs().max() if norm == "mars" else anchor.square().mean(dtype=wide(anchor)).sqrt())


def _aim(radius: float, delta: torch.Tensor, size: float, norm: str) -> float:
    """Return the size of a change for which reference + change, rounded, lies within the radius.

    Rounding moves a weight of size w by at most u·w to either side. Along a change of n weights, one standard
    deviation of that is u·w in the Frobenius norm, to which the square u²w²n is added, and u·w·√n in the sum
    of a row. The margin is eight deviations.
    """
    u, n = torch.finfo(delta.dtype).eps / 2, max(1, delta.numel())
    if norm == "mars":
        across = 8 * u * (size + radius) * math.sqrt(n / len(delta) if len(delta) else 1)
    else:
        moved = u * (size + radius / math.sqrt(n))
        across = min(8.0, math.sqrt(n)) * moved + moved**2 * n / (2 * radius)
    return max(radius * (1 - max(4 * u, 1e-12)) - across, 0.5 * radius)


def _write(weight: torch.Tensor, anchor: torch.Tensor, delta: torch.Tensor) -> None:
    """Set weight to anchor + delta; round back what half precision rounds away from the anchor."""
    exact = anchor + delta
    weight.copy_(exact)
    if weight.dtype != anchor.dtype:
        away = (weight.to(anchor.dtype) - anchor).abs() > delta.abs()
        weight.copy_(torch.where(away, torch.nextafter(weight, anchor.to(weight.dtype)), weight))


class StartingPointPenalty:
    """Pull weights towards their reference: L2-SP, α/2 ‖w − w⁽ˢ⁾‖² + β/2 ‖h − h⁽ˢ⁾‖², or L1-SP.

    w are the parameters that the pretrained network has, h the head's. L1-SP takes α ‖w − w⁽ˢ⁾‖₁
    + β ‖h − h⁽ˢ⁾‖₁. Only parameters that train are penalised. Source: Li, Grandvalet, Davoine 2018,
    equations 2 and 4; there the head is pulled to 0, which is the reference of a zero head.

    Args:
        model: The network that is trained.
        ref: Its reference, taken before training.
        kind: `l2` or `l1`.
        alpha: Strength for all parameters but the head's.
        beta: Strength for the head.
        head: Whether a parameter, given by name, belongs to the head.

    Raises:
        LayerError: If the model does not match the reference.
        ConfigError: If a strength is negative, or no parameter trains.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> penalty = StartingPointPenalty(model, Reference.of(model), "l2", alpha=0.5)
        >>> with torch.no_grad():
        ...     _ = model.weight.add_(2.0)
        >>> round(float(penalty().detach()), 4)  # 0.5 / 2 · (4 + 4)
        2.0
    """

    def __init__(
        self,
        model: nn.Module,
        ref: Reference,
        kind: str,
        *,
        alpha: float,
        beta: float = 0.0,
        head: Callable[[str], bool] = lambda name: False,
    ) -> None:
        ref.check(model)
        self.kind = one_of("kind of penalty", kind, ("l2", "l1"))
        if alpha < 0 or beta < 0:
            raise ConfigError(f"alpha and beta must be at least 0; got {alpha:g} and {beta:g}")
        groups: dict[float, list[tuple[nn.Parameter, torch.Tensor]]] = {}
        for name, parameter in named_parameters(model).items():
            if parameter.requires_grad:
                strength = float(beta if head(name) else alpha)
                groups.setdefault(strength, []).append((parameter, ref[name].to(parameter)))
        if not groups:
            raise ConfigError("no parameter of the model trains, so there is nothing to penalise")
        self._groups = groups

    def __call__(self) -> torch.Tensor:
        """Return the penalty, a scalar with gradient."""
        return torch.stack([s * self._norm(pairs) for s, pairs in self._groups.items()]).sum()

    def _norm(self, pairs: Iterable[tuple[nn.Parameter, torch.Tensor]]) -> torch.Tensor:
        sizes = [d.abs() if self.kind == "l1" else d.square() for d in (p - anchor for p, anchor in pairs)]
        total = torch.stack([size.sum() for size in sizes]).sum()
        return total if self.kind == "l1" else 0.5 * total
