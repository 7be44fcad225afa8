"""The layers that the exact path does not hold for, one chunk of examples: brackets and traces."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from hesstune._former import former_names
from hesstune.curvature.batches import rows_of
from hesstune.curvature.lanczos import LanczosForms, Stopping, lanczos_forms, lanczos_trace
from hesstune.curvature.objective import Objective
from hesstune.curvature.padding import trimmed
from hesstune.curvature.planning import MeasureMethod, MeasurePlan
from hesstune.curvature.products import WeightProducts
from hesstune.curvature.quadrature import Bracket, probe_mean
from hesstune.curvature.ranking import Ranking, rank_examples
from hesstune.curvature.screening import SAFETY, Screening, screen_maximum
from hesstune.forward import Inputs, batch_size

__all__ = ["GaussNewtonScreen", "Sample", "SmoothSettings", "smooth_brackets", "smooth_traces"]

_TRACE_PROBES = 8
# The maximum carries the whole measure, so it is refined further than other entries.
_MAXIMUM_TOLERANCE = 0.02
# Double backward graphs are several times a forward pass: fewer examples share one.
_SHARED = 8


@dataclass(frozen=True)
class SmoothSettings:
    """What the smooth path needs to know besides the examples.

    Attributes:
        objective: The per-example loss.
        stopping: When Lanczos stops.
        seed: Of the trace's probes.
        prove_maximum: Whether a screened maximum must be proved to the tolerance by its bracket, and
            every other example put to at least one product; otherwise it is refined until it
            stands still, and the bracket is wider.
    """

    objective: Objective
    stopping: Stopping
    seed: int
    prove_maximum: bool = False


def smooth_brackets(
    model: nn.Module,
    inputs: Inputs,
    targets: torch.Tensor,
    plan: MeasurePlan,
    deltas: Mapping[str, torch.Tensor],
    settings: SmoothSettings,
    methods: tuple[MeasureMethod, ...] = ("lanczos", "weight_space"),
) -> dict[str, Bracket]:
    """Bracket v_iᵀ H_i⁺ v_i of every layer of these methods and every example, (B,) each.

    Call it inside `differentiable`.
    """
    found: dict[str, Bracket] = {}
    batched = plan.by("lanczos") if "lanczos" in methods else []
    if batched:
        moves = {name: deltas[name] for name in batched}
        parts = [
            lanczos_forms(
                model,
                part,
                part_targets,
                moves,
                loss=settings.objective,
                stopping=settings.stopping,
                layouts=plan.layouts,
                copied=plan.copied,
            )
            for part, part_targets in _shared(inputs, targets, plan)
        ]
        forms = LanczosForms.joined(parts)
        for i, name in enumerate(batched):
            found[name] = Bracket(forms.value[:, i], forms.lower[:, i], forms.upper[:, i])
    for name in plan.by("weight_space") if "weight_space" in methods else []:
        found[name] = _in_weight_space(model, inputs, targets, plan, name, [deltas[name]], settings)[0]
    return found


@dataclass(frozen=True)
class Sample:
    """v_iᵀ H_i⁺ v_i of a random sample of m of n examples, and what it says of all of them.

    Attributes:
        names: The L layers.
        rows: The examples drawn, without replacement, (m,) int64, ascending.
        forms: Their values and brackets, (m, L).
        mean: The estimated mean, (L,): the Gauss–Newton values, known of every example, plus the
            sample's mean difference from them (a difference estimator).
        stderr: Its standard error as a mean over the distribution, (L,): √(Var q / n + (1 − m/n)·
            Var(q − GN)/m), both variances from the sample.
    """

    names: list[str]
    rows: torch.Tensor
    forms: LanczosForms
    mean: torch.Tensor
    stderr: torch.Tensor


class GaussNewtonScreen:
    """Finds the smooth layers' maxima over all examples; the examples are kept until then.

    Args:
        model: The network.
        plan: Its plan; the layers with method `lanczos` are screened.
        deltas: W_i − W_i⁽ˢ⁾ of at least those.
        settings: The loss, the tolerance and the seed.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: MeasurePlan,
        deltas: Mapping[str, torch.Tensor],
        settings: SmoothSettings,
    ) -> None:
        self._model, self._plan, self._settings = model, plan, settings
        self._deltas = {name: deltas[name] for name in plan.by("lanczos")}
        self._rankings: list[Ranking] = []
        self._kept: list[tuple[Inputs, torch.Tensor]] = []
        self._places: list[tuple[int, int]] = []

    def add(self, inputs: Inputs, targets: torch.Tensor) -> None:
        """Rank one chunk of examples, at the price of K − 1 backward passes for all layers."""
        plan = self._plan
        self._rankings.append(
            rank_examples(
                self._model,
                inputs,
                targets,
                self._deltas,
                loss=self._settings.objective,
                layouts=plan.layouts,
                copied=plan.copied,
            )
        )
        self._places += [(len(self._kept), row) for row in range(batch_size(inputs))]
        self._kept.append((inputs, targets))

    def rows(self, examples: Sequence[int]) -> Iterator[tuple[int, Inputs, torch.Tensor]]:
        """Yield (example, its inputs, its target), each as a batch of one."""
        for example in examples:
            chunk, row = self._places[example]
            inputs, targets = self._kept[chunk]
            one = rows_of(inputs, torch.tensor([row]))
            yield example, trimmed(one) if self._plan.cuts_padding else one, targets[row : row + 1]

    def maxima(self) -> Screening:
        """Refine what can be a maximum."""
        tol = min(self._settings.stopping.tol, _MAXIMUM_TOLERANCE)
        return screen_maximum(
            self._model,
            lambda example: next(self.rows([example]))[1:],
            Ranking.joined(self._rankings),
            self._deltas,
            loss=self._settings.objective,
            stopping=replace(self._settings.stopping, tol=tol, proof=self._settings.prove_maximum),
            safety=math.inf if self._settings.prove_maximum else SAFETY,
            seed=self._settings.seed,
            layouts=self._plan.layouts,
            copied=self._plan.copied,
        )

    def sample(self, count: int) -> Sample:
        """Draw `count` examples at random (all, if there are fewer) and refine every layer of them."""
        ranking, settings = Ranking.joined(self._rankings), self._settings
        n = len(ranking.residual)
        count = min(count, n)
        generator = torch.Generator().manual_seed(settings.seed + 1)
        drawn = torch.randperm(n, generator=generator)[:count].sort().values
        parts = [
            lanczos_forms(
                self._model,
                inputs,
                targets,
                self._deltas,
                loss=settings.objective,
                stopping=settings.stopping,
                layouts=self._plan.layouts,
                copied=self._plan.copied,
            )
            for _, inputs, targets in self.rows(drawn.tolist())
        ]
        forms = LanczosForms.joined(parts)
        known = ranking.gauss_newton
        extra = forms.value - known[drawn]
        variance = forms.value.var(0) / n + (1 - count / n) * extra.var(0) / count
        return Sample(list(self._deltas), drawn, forms, known.mean(0) + extra.mean(0), variance.sqrt())


def smooth_traces(
    model: nn.Module,
    inputs: Inputs,
    targets: torch.Tensor,
    plan: MeasurePlan,
    settings: SmoothSettings,
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Estimate Tr H_i⁺ of every smooth layer and every example, (B,), with standard errors."""
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    batched = plan.by("lanczos")
    if batched:
        traces = [
            lanczos_trace(
                model,
                part,
                part_targets,
                batched,
                probes=_TRACE_PROBES,
                seed=settings.seed,
                loss=settings.objective,
                layouts=plan.layouts,
                copied=plan.copied,
            )
            for part, part_targets in _shared(inputs, targets, plan)
        ]
        for i, name in enumerate(batched):
            found[name] = (
                torch.cat([t.value[:, i] for t in traces]),
                torch.cat([t.stderr[:, i] for t in traces]),
            )
    weights = dict(model.named_parameters())
    for name in plan.by("weight_space"):
        generator = torch.Generator().manual_seed(settings.seed)
        probes = [
            torch.randn(weights[name].shape, generator=generator, dtype=torch.float64).to(weights[name])
            for _ in range(_TRACE_PROBES)
        ]
        brackets = _in_weight_space(model, inputs, targets, plan, name, probes, settings)
        found[name] = probe_mean(torch.stack([b.value for b in brackets]))
    return found


def _shared(
    inputs: Inputs, targets: torch.Tensor, plan: MeasurePlan
) -> Iterator[tuple[Inputs, torch.Tensor]]:
    """Split a chunk into the examples that share one graph, without the padding that none of them needs."""
    for index in torch.arange(batch_size(inputs)).split(_SHARED):
        part = rows_of(inputs, index)
        yield trimmed(part) if plan.cuts_padding else part, targets[index.to(targets.device)]


def _in_weight_space(
    model: nn.Module,
    inputs: Inputs,
    targets: torch.Tensor,
    plan: MeasurePlan,
    name: str,
    starts: Sequence[torch.Tensor],
    settings: SmoothSettings,
) -> list[Bracket]:
    """Return one bracket of (B,) values for each start; at most a few graphs are alive at once."""
    parts: list[list[Bracket]] = [[] for _ in starts]
    for part, part_targets in _shared(inputs, targets, plan):
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


__getattr__ = former_names(__name__, Screen="GaussNewtonScreen")
