"""The factor B of the cross-entropy's Hessian in the logits, Λ = B Bᵀ, and traces from a few of its columns.

`hesstune.curvature.exact` has the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


class LogitFactor:
    """The factor B of Λ = B Bᵀ for a batch of logits, (B, K), one scaled column s_k at a time."""

    def __init__(self, logits: torch.Tensor) -> None:
        log_p = torch.log_softmax(logits.detach().double(), dim=1)
        self.order = log_p.argsort(dim=1, descending=True, stable=True)
        self._top = self.order[:, :1]
        self._q = log_p.exp().scatter(1, self._top, 0.0)
        top_p = log_p.gather(1, self._top).exp()
        self._gamma = 1 / (1 + top_p.sqrt())
        self.sorted_q = self._q.gather(1, self.order[:, 1:])
        self._dtype = logits.dtype
        self.columns = self.sorted_q.shape[1]  # K − 1

    @property
    def shares(self) -> torch.Tensor:
        """The share of 1 − p_t that the classes from each rank on have, largest over examples, (K − 1,)."""
        mass = self.sorted_q.flip(1).cumsum(1).flip(1)
        return (mass / mass[:, :1].clamp(min=1e-300)).amax(0)

    def seed(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return s_k, (B, K), and q_k, (B,), of each example's class of this rank by probability."""
        coefficients = torch.zeros_like(self._q)
        coefficients.scatter_(1, self.order[:, rank + 1, None], 1.0)
        return self._combined(coefficients), self.sorted_q[:, rank]

    def combination(self, start: int, factors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return B c with c zero before rank `start`, scaled, and its weight, as `seed` does.

        `factors`, (K − 1 − start,) or one row for each example, are c's entries from that rank on.
        """
        scale = self.sorted_q[:, start]
        ratio = (self.sorted_q[:, start:] / scale.clamp(min=1e-300)[:, None]).sqrt()
        ranked = torch.zeros_like(self._q)
        ranked[:, start + 1 :] = ratio * factors.to(ratio)
        coefficients = torch.zeros_like(self._q).scatter(1, self.order, ranked)
        return self._combined(coefficients), scale

    def adjoint(self, u: torch.Tensor) -> torch.Tensor:
        """Return Bᵀ u of each example's u, (B, K), as (B, K − 1) in the order of `sorted_q`."""
        d = (u - u.gather(1, self._top)).double()
        mean = (self._q * d).sum(1, keepdim=True)
        rows: torch.Tensor = (self._q.sqrt() * (d - self._gamma * mean)).gather(1, self.order[:, 1:])
        return rows

    def trace(self, weight: torch.Tensor) -> torch.Tensor:
        """Return Tr Bᵀ W Wᵀ B of each example for W of (K, D), (B,)."""
        top, q = weight[self._top[:, 0]], self._q.to(weight)
        squares = weight.square().sum(1) - 2 * top @ weight.mT + top.square().sum(1, keepdim=True)
        mean = q @ weight - q.sum(1, keepdim=True) * top
        return ((q * squares).sum(1) - mean.square().sum(1)).double()

    def variance(self, u: torch.Tensor) -> torch.Tensor:
        """Return uᵀ Λ u from all of u, (B, K), in float64, centred on the most probable class."""
        d = (u - u.gather(1, self._top)).double()
        mean = (self._q * d).sum(1, keepdim=True)
        top = (1 - self._gamma) / self._gamma  # √p_t
        return (self._q * (d - mean).square()).sum(1) + (top * mean).square().squeeze(1)

    def _combined(self, coefficients: torch.Tensor) -> torch.Tensor:
        total = coefficients.sum(1, keepdim=True)
        rows = coefficients - total * self._gamma * self._q
        shift = total * (1 - self._gamma * self._q.sum(1, keepdim=True))
        return rows.scatter_add(1, self._top, -shift).to(self._dtype)


class TraceSum:
    """Tr G_i = Tr Bᵀ J_i J_iᵀ B from ‖J_iᵀ B c‖² of a few columns c of an orthogonal matrix Q.

    Half of the columns span directions in which the trace is likely to be large; their terms are added. The
    others are probes of the d directions that are left: the trace is d times the mean of their terms. Q is a
    rotation of the cosine transform, with rows in random order and of random sign: E c cᵀ = P/d, with the
    projection P on what the leading columns leave, so the estimate has no bias ("Hutch++", Meyer, Musco,
    Musco and Woodruff, 2021). If the logits are W z + b, then J_i = W ∂z/∂vec(W_i), and the leading columns
    are near the leading left singular directions of BᵀW. Where these have less than half of Tr BᵀWWᵀB, all
    columns are probes. Without W the leading columns are the most probable classes. Each example has
    directions and probes of its own, whatever batch it is in.

    Args:
        factor: B.
        most: The largest number of passes, at least 2; with at least K − 1 the trace is exact.
        seed: Of the probes.
        numbers: The examples' numbers, which choose their probes; default: their places.
        head: W, (K, D), or None.

    Attributes:
        passes: The number of columns with a term.
        leading: How many of them are leading columns of some example.
    """

    def __init__(
        self,
        factor: LogitFactor,
        most: int,
        *,
        seed: int = 0,
        numbers: Sequence[int] | None = None,
        head: torch.Tensor | None = None,
    ) -> None:
        self.passes, self._factor = min(factor.columns, most), factor
        self._terms: list[torch.Tensor] = []
        self._rotation: tuple[torch.Tensor, torch.Tensor] | None = None
        self._sampled = self.passes < factor.columns
        self.leading = self.passes
        if not self._sampled:
            return
        self.leading = most // 2 if most > 2 else 0  # at least two probes give a standard error
        examples = len(factor.order)
        led = torch.full((examples,), self.leading, device=factor.order.device)
        if head is not None and self.leading:
            directions, strong = _leading_directions(factor, head, self.leading)
            reflectors, scales = torch.geqrf(directions)
            self._rotation = reflectors, scales * strong[:, None]
            led = led * strong
        self._led = led[:, None]
        rows, signs = torch.zeros_like(factor.order[:, 1:]), torch.zeros_like(factor.sorted_q)
        for example, number in enumerate(range(examples) if numbers is None else numbers):
            first = int(led[example])
            drawn = _shuffled_signs(factor.columns - first, seed * 1_000_003 + number)
            rows[example, first:], signs[example, first:] = (part.to(rows.device) for part in drawn)
        self._rows, self._signs = rows, signs

    def column(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return B c of a column, scaled, (B, K), and its weight, as `LogitFactor.seed` does."""
        if not self._sampled:
            return self._factor.seed(index)
        size, place = self._factor.columns - self._led, (index - self._led).double()
        cosines = torch.cos((2 * self._rows + 1) * (math.pi * place / (2 * size)))
        probe = self._signs * cosines * ((1.0 + (place > 0)).double() / size).sqrt()
        unit = torch.zeros_like(probe)
        unit[:, index] = 1.0
        column = torch.where(place < 0, unit, probe)
        if self._rotation is not None:
            reflectors, scales = self._rotation
            column = torch.ormqr(reflectors, scales, column[:, :, None])[:, :, 0]
        return self._factor.combination(0, column)

    def take(self, norms: torch.Tensor) -> None:
        """Add the term of the next column, (B, L)."""
        self._terms.append(norms)

    def estimate(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the trace and its standard error over the probes, (B, L); 0 if all columns have a term."""
        terms = torch.stack(self._terms)
        if not self._sampled:
            return terms.sum(0), torch.zeros_like(terms[0])
        known = (torch.arange(self.passes, device=terms.device)[:, None] < self._led[:, 0])[:, :, None]
        size, probes = self._factor.columns - self._led, self.passes - self._led
        probed = size * terms
        mean = (probed * ~known).sum(0) / probes
        variance = ((probed - mean).square() * ~known).sum(0) / (probes - 1)
        left = 1 - probes / size  # the share of columns that were not taken, by which the mean varies
        return (terms * known).sum(0) + mean, (variance * left / probes).sqrt()


@torch.no_grad()
def _leading_directions(
    factor: LogitFactor, head: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Approximate the leading left singular directions of Bᵀ W of each example by two subspace iterations.

    Returns:
        Orthonormal columns, (B, K − 1, count), and whether they have half of Tr Bᵀ W Wᵀ B, (B,).
    """
    head = head if head.dtype == torch.float64 else head.float()
    generator = torch.Generator().manual_seed(0)
    normals = torch.randn(factor.columns, count, generator=generator, dtype=torch.float64).to(factor.sorted_q)
    found = normals.expand(len(factor.order), -1, -1)
    for _ in range(2):
        directions = torch.linalg.qr(found)[0]
        logits = torch.stack([factor.combination(0, c)[0] for c in directions.unbind(2)], 2).to(head)
        found = torch.stack([factor.adjoint(u) for u in (head @ (head.mT @ logits)).unbind(2)], 2)
    traces = (directions * found).sum((1, 2)) * factor.sorted_q[:, 0].sqrt()  # `combination` divides by it
    return torch.linalg.qr(found)[0], 2 * traces >= factor.trace(head)


def _shuffled_signs(size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    signs = 2 * torch.randint(2, (size,), generator=generator) - 1
    return torch.randperm(size, generator=generator), signs
