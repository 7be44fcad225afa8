"""vᵀ H_i⁺ v and Tr H_i⁺ of every example by batched Lanczos, with a bracket.

Where smooth operations follow a layer (GELU, softmax attention, layer norm, gates), H_i has
negative eigenvalues and the positive part has no closed form. Lanczos from v_i needs products only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from hesstune.curvature.smooth.quadrature import Bracket, probe_mean
from hesstune.curvature.smooth.source import HessianSource
from hesstune.curvature.smooth.stopping import Stopping

__all__ = ["LanczosForms", "Quadrature", "Traces", "lanczos_forms", "quadrature_traces"]


@dataclass
class LanczosForms:
    """v_iᵀ H_i⁺ v_i of B examples and L layers, float64 on the CPU.

    Attributes:
        names: The L layers.
        quadratic: The estimate, (B, L), the harmonic mean of the bounds or better.
        lower: A lower bound, (B, L).
        upper: An upper bound, (B, L): both hold in exact arithmetic, with an allowance for rounding.
        products: Hessian-vector products taken, (B, L) int64.
    """

    names: list[str]
    quadratic: torch.Tensor
    lower: torch.Tensor
    upper: torch.Tensor
    products: torch.Tensor

    @classmethod
    def joined(cls, parts: Sequence[LanczosForms]) -> LanczosForms:
        """Join the forms of several batches, of the same layers."""
        fields = ("quadratic", "lower", "upper", "products")
        return cls(parts[0].names, *(torch.cat([getattr(part, field) for part in parts]) for field in fields))

    @property
    def error(self) -> torch.Tensor:
        """The largest relative error that the bracket leaves possible, (B, L)."""
        return Bracket(self.quadratic, self.lower, self.upper).error


@dataclass
class Traces:
    """Tr H_i⁺ of B examples and L layers, float64 on the CPU.

    Attributes:
        names: The L layers.
        value: The trace, (B, L): exact, or an estimate.
        stderr: Its standard error over the probes, (B, L); 0 where it is exact.
    """

    names: list[str]
    value: torch.Tensor
    stderr: torch.Tensor


def lanczos_forms(
    source: HessianSource, deltas: Mapping[str, torch.Tensor], stopping: Stopping
) -> LanczosForms:
    """Compute v_iᵀ H_i⁺ v_i of every named layer and every example of one source.

    Args:
        source: Of a batch of B examples.
        deltas: v_i by layer name; their order is the result's. At least one.
        stopping: When each recurrence stops.
    """
    brackets, taken = [], []
    for name, delta in deltas.items():
        krylov = source.krylov(name, delta)
        brackets.append(stopping.run(krylov))
        taken.append(torch.full_like(brackets[-1].value, krylov.products, dtype=torch.int64))
    return LanczosForms(
        names=list(deltas),
        quadratic=torch.stack([b.value for b in brackets], 1),
        lower=torch.stack([b.lower for b in brackets], 1),
        upper=torch.stack([b.upper for b in brackets], 1),
        products=torch.stack(taken, 1),
    )


@dataclass(frozen=True)
class Quadrature:
    """How traces are estimated.

    Attributes:
        stopping: When each probe's recurrence stops.
        probes: How many probes.
        seed: Of the probes.
    """

    stopping: Stopping
    probes: int
    seed: int


def quadrature_traces(
    sources: Iterable[AbstractContextManager[HessianSource]],
    weights: Mapping[str, torch.Tensor],
    batched: Sequence[str],
    how: Quadrature,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Estimate Tr H_i⁺ by stochastic Lanczos quadrature (Ubaru, Chen & Saad, 2017).

    It is the mean of zᵀ H_i⁺ z over z ~ N(0, I). A layer's probes depend on the seed and its place alone.

    Args:
        sources: Each of some examples of a batch.
        weights: By layer name.
        batched: The layers whose examples share a graph.
        how: When a recurrence stops, how many probes, and their seed.

    Returns:
        The mean over the probes and its standard error, (B,) each, layer by layer.
    """
    places = {name: place for place, name in enumerate(n for n in batched if n in weights)}

    def probes_of(name: str) -> Iterator[torch.Tensor]:
        seed = how.seed * 1_000_003 + places[name] if name in places else how.seed
        generator = torch.Generator().manual_seed(seed)
        for _ in range(how.probes):
            z = torch.randn(weights[name].shape, generator=generator, dtype=torch.float64)
            yield z.to(weights[name])

    found: dict[str, list[torch.Tensor]] = {name: [] for name in weights}
    for opened in sources:
        with opened as source:
            for name, values in found.items():
                forms = [how.stopping.run(source.krylov(name, z)).value for z in probes_of(name)]
                values.append(torch.stack(forms))
    columns = []
    for name, values in found.items():
        # How many examples are averaged at once decides a mean's last digit: as many as share a graph.
        together = values if name in places else [torch.cat(values, 1)]
        means, errors = zip(*[probe_mean(part) for part in together], strict=True)
        columns.append((torch.cat(means), torch.cat(errors)))
    return columns
