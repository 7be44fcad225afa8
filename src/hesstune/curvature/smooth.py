"""The layers that the exact path does not hold for, one chunk of examples: brackets and traces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from hesstune.curvature.auto import Plan
from hesstune.curvature.capture import rows_of
from hesstune.curvature.lanczos import Stopping, lanczos_forms, lanczos_trace
from hesstune.curvature.objective import Objective
from hesstune.curvature.products import WeightProducts
from hesstune.curvature.quadrature import Bracket, probe_mean
from hesstune.forward import Inputs, batch_size

__all__ = ["SmoothSettings", "smooth_brackets", "smooth_traces"]

_TRACE_PROBES = 8
# Double backward graphs are several times a forward pass: fewer examples share one.
_SHARED = 8


@dataclass(frozen=True)
class SmoothSettings:
    """What the smooth path needs to know besides the examples.

    Attributes:
        objective: The per-example loss.
        stopping: When Lanczos stops.
        seed: Of the trace's probes.
    """

    objective: Objective
    stopping: Stopping
    seed: int


def smooth_brackets(
    model: nn.Module,
    inputs: Inputs,
    targets: torch.Tensor,
    plan: Plan,
    deltas: Mapping[str, torch.Tensor],
    settings: SmoothSettings,
) -> dict[str, Bracket]:
    """Bracket v_iᵀ H_i⁺ v_i of every smooth layer and every example, (B,) each.

    Call it inside `differentiable`.
    """
    found: dict[str, Bracket] = {}
    batched = plan.by("lanczos")
    if batched:
        forms = lanczos_forms(
            model,
            inputs,
            targets,
            {name: deltas[name] for name in batched},
            loss=settings.objective,
            stopping=settings.stopping,
            chunk=_SHARED,
            layouts=plan.layouts,
            copied=plan.copied,
        )
        for i, name in enumerate(batched):
            found[name] = Bracket(forms.value[:, i], forms.lower[:, i], forms.upper[:, i])
    for name in plan.by("weight_space"):
        found[name] = _in_weight_space(model, inputs, targets, name, [deltas[name]], settings)[0]
    return found


def smooth_traces(
    model: nn.Module,
    inputs: Inputs,
    targets: torch.Tensor,
    plan: Plan,
    settings: SmoothSettings,
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Estimate Tr H_i⁺ of every smooth layer and every example, (B,), with standard errors."""
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    batched = plan.by("lanczos")
    if batched:
        traces = lanczos_trace(
            model,
            inputs,
            targets,
            batched,
            probes=_TRACE_PROBES,
            seed=settings.seed,
            loss=settings.objective,
            chunk=_SHARED,
            layouts=plan.layouts,
            copied=plan.copied,
        )
        for i, name in enumerate(batched):
            found[name] = (traces.value[:, i], traces.stderr[:, i])
    weights = dict(model.named_parameters())
    for name in plan.by("weight_space"):
        generator = torch.Generator().manual_seed(settings.seed)
        probes = [
            torch.randn(weights[name].shape, generator=generator, dtype=torch.float64).to(weights[name])
            for _ in range(_TRACE_PROBES)
        ]
        brackets = _in_weight_space(model, inputs, targets, name, probes, settings)
        found[name] = probe_mean(torch.stack([b.value for b in brackets]))
    return found


def _in_weight_space(
    model: nn.Module,
    inputs: Inputs,
    targets: torch.Tensor,
    name: str,
    starts: Sequence[torch.Tensor],
    settings: SmoothSettings,
) -> list[Bracket]:
    """Return one bracket of (B,) values for each start; at most a few graphs are alive at once."""
    parts: list[list[Bracket]] = [[] for _ in starts]
    for index in torch.arange(batch_size(inputs)).split(_SHARED):
        part, part_targets = rows_of(inputs, index), targets[index.to(targets.device)]
        products = WeightProducts(model, part, part_targets, settings.objective, name)
        for found, start in zip(parts, starts, strict=True):
            found.append(settings.stopping.run(products.krylov(name, start)))
    return [
        Bracket(
            torch.cat([b.value for b in found]),
            torch.cat([b.lower for b in found]),
            torch.cat([b.upper for b in found]),
        )
        for found in parts
    ]
