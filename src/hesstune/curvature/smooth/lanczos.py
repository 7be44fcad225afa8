"""vᵀ H_i⁺ v and Tr H_i⁺ of every example by batched Lanczos, with a bracket.

Where smooth operations follow a layer (GELU, softmax attention, layer norm, gates), H_i has
negative eigenvalues and the positive part has no closed form. Lanczos from v_i needs products only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from hesstune.curvature.smooth.quadrature import Bracket
from hesstune.curvature.smooth.source import HessianSource
from hesstune.curvature.smooth.stopping import Stopping

__all__ = ["LanczosForms", "Traces", "lanczos_forms", "probe_forms"]


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


def probe_forms(
    source: HessianSource, name: str, probes: Iterable[torch.Tensor], stopping: Stopping
) -> torch.Tensor:
    """Compute zᵀ H_i⁺ z of one layer and every example for each probe z, (P, B).

    For z ~ N(0, I) its mean is Tr H_i⁺: stochastic Lanczos quadrature (Ubaru, Chen & Saad, 2017).

    Args:
        source: Of a batch of B examples.
        name: The layer.
        probes: P of them, each of the weight's shape.
        stopping: When each one's recurrence stops.
    """
    return torch.stack([stopping.run(source.krylov(name, z)).value for z in probes])
