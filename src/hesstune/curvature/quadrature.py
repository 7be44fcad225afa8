"""Bounds on vᵀ max(H, 0) v from a few products Hv: the Lanczos recurrence and Gauss–Radau quadrature.

k products give the first 2k + 1 moments of H's spectral measure at v. `positive_bracket` returns the tightest
bounds that follow from them: measures with these moments attain both ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from hesstune.errors import ConfigError

_GRIDS = (65, 17, 17, 17, 17)
_LOGITS = 18.0
_LARGEST_CORNER = 1e7
# A bracket costs small eigenproblems, so it is not computed after every product.
_FIRST_CHECK, _CHECK_EVERY = 4, 2


@dataclass(frozen=True)
class Tridiagonal:
    """The Lanczos coefficients of B symmetric matrices after k products each, in float64.

    `alpha`, (B, k), is the diagonal of T. `beta[:, j]` of (B, k) couples j and j + 1; if the Krylov space is
    exhausted, it is zero, and so are all later entries. `norm`, (B,), is ‖v‖ of the starting vectors, and
    `rounding` the relative rounding error of the products (the machine epsilon of their dtype).
    """

    alpha: torch.Tensor
    beta: torch.Tensor
    norm: torch.Tensor
    rounding: float = 0.0

    @property
    def scale(self) -> torch.Tensor:
        """The largest coefficient of each T, (B,): a lower bound of ‖H‖ up to a factor of two."""
        return torch.maximum(self.alpha.abs().amax(1), self.beta.amax(1))


@dataclass(frozen=True)
class Bracket:
    """vᵀ H⁺ v of B matrices: an estimate and two bounds, each (B,) float64.

    The bounds hold in exact arithmetic; an allowance covers the rounding of the products. `value` is their
    harmonic mean 2·lower·upper / (lower + upper), which minimises the largest possible relative error,
    `error`.
    """

    value: torch.Tensor
    lower: torch.Tensor
    upper: torch.Tensor

    @classmethod
    def between(cls, lower: torch.Tensor, upper: torch.Tensor) -> Bracket:
        """Build the bracket from its two ends."""
        total = (lower + upper).clamp_min(torch.finfo(torch.float64).tiny)
        return cls(lower * (2 * upper / total), lower, upper)

    @property
    def error(self) -> torch.Tensor:
        """The largest possible relative error of `value`, (B,), in [0, 1]; 0 if both bounds are 0."""
        total = (self.lower + self.upper).clamp_min(torch.finfo(torch.float64).tiny)
        return (self.upper - self.lower) / total


class Krylov:
    """The Lanczos recurrence for a batch of symmetric matrices, one product at a time.

    The basis is reorthogonalised fully, twice.

    Args:
        product: (B, N) -> (B, N), each matrix times its own vector.
        start: (B, N), the starting vectors v; coordinates in any orthonormal basis.

    Example:
        >>> h = torch.diag(torch.tensor([3.0, 1.0, -2.0], dtype=torch.float64))
        >>> krylov = Krylov(lambda x: x @ h, torch.ones(1, 3, dtype=torch.float64))
        >>> for _ in range(3):
        ...     krylov.advance()
        >>> round(positive_bracket(krylov.tridiagonal()).value.item(), 9)  # 3 + 1
        4.0
    """

    def __init__(self, product: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor) -> None:
        self._product = product
        self._eps = torch.finfo(start.dtype).eps
        self.norm = torch.linalg.vector_norm(start.double(), dim=1)
        self._basis = [_scaled(start, self.norm)]
        self._alpha: list[torch.Tensor] = []
        self._beta: list[torch.Tensor] = []
        self._scale = torch.zeros_like(self.norm)

    @property
    def products(self) -> int:
        """The number of products so far."""
        return len(self._alpha)

    def exhausted(self) -> torch.Tensor:
        """Tell for which matrices the Krylov space is exhausted, (B,) bool: T then gives the exact value."""
        last: torch.Tensor = self._beta[-1] if self._beta else self.norm
        return last == 0

    def advance(self) -> None:
        """Take one product of every matrix and extend T by one row."""
        residual = self._product(self._basis[-1])
        alpha = torch.zeros_like(self.norm)
        for _ in range(2):
            alpha += self._orthogonalise(residual)
        beta = torch.linalg.vector_norm(residual.double(), dim=1)
        self._scale = torch.maximum(self._scale, torch.maximum(alpha.abs(), beta))
        # A residual below rounding is noise: the space is exhausted and T is exact.
        beta = torch.where(beta > 32 * self._eps * self._scale, beta, torch.zeros_like(beta))
        self._alpha.append(alpha)
        self._beta.append(beta)
        self._basis.append(_scaled(residual, beta))

    def _orthogonalise(self, residual: torch.Tensor) -> torch.Tensor:
        """Remove the basis from the residual, in place; return its part along the newest vector."""
        newest = torch.zeros_like(self.norm)
        for vector in self._basis:
            newest = torch.linalg.vecdot(residual, vector)
            residual.addcmul_(vector, newest.unsqueeze(1), value=-1)
        return newest.double()

    def tridiagonal(self) -> Tridiagonal:
        """Return the coefficients so far, on the CPU."""
        alpha, beta = torch.stack(self._alpha, 1).cpu(), torch.stack(self._beta, 1).cpu()
        return Tridiagonal(alpha, beta, self.norm.cpu(), self._eps)


@dataclass(frozen=True)
class Stopping:
    """When the Lanczos recurrence stops.

    Attributes:
        tol: Stop if the bracket proves this relative error of `value`; 0: take all products.
        most: The largest number of products.

    Raises:
        ConfigError: If `tol` is negative or `most` below 1.
    """

    tol: float = 0.03
    most: int = 64

    def __post_init__(self) -> None:
        if not self.tol >= 0 or self.most < 1:
            raise ConfigError(
                f"tol must be at least 0 and most at least 1; got tol={self.tol}, most={self.most}"
            )

    def run(self, krylov: Krylov) -> Bracket:
        """Advance the recurrence until it stops; return the bracket."""
        while krylov.products < self.most:
            krylov.advance()
            if bool(krylov.exhausted().all()):
                break
            if self.tol and krylov.products >= _FIRST_CHECK and krylov.products % _CHECK_EVERY == 0:
                bracket = positive_bracket(krylov.tridiagonal())
                if bool((bracket.error <= self.tol).all()):
                    return bracket
        return positive_bracket(krylov.tridiagonal())


def _scaled(vector: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    factor = torch.where(norm > 0, 1 / norm, torch.zeros_like(norm))
    return vector * factor.to(vector.dtype).unsqueeze(1)


def positive_bracket(t: Tridiagonal) -> Bracket:
    """Bound vᵀ max(H, 0) v from both sides by Gauss–Radau quadrature.

    T extended by one row, with a last entry that puts an eigenvalue at ξ, is a quadrature rule with k + 1
    nodes and the same 2k + 1 moments (Golub & Meurant, Matrices, Moments and Quadrature, 2010, chapter 6).
    Let f(λ) = max(0, λ), and Q(ξ) = ‖v‖² e₁ᵀ f(T(ξ)) e₁ the value of the rule:

    - *Lower bound*: Q(0). The polynomial of degree 2k that meets f twice at every other node and once at 0
      lies below f: divided by λ, it interpolates a step function, and by Rolle's theorem its derivative has
      no zeros other than the nodes and one between any two neighbours.
    - *Upper bound*: the largest Q(ξ). At a stationary ξ the polynomial that meets f twice at all k + 1
      nodes exists and lies above f by the same count of zeros. So this is the largest value of
      any measure with these moments, and every local maximum is global.

    With one product these are max(0, vᵀHv) and ½(vᵀHv + ‖v‖‖Hv‖).

    Example:
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> b = positive_bracket(Tridiagonal(alpha=-one, beta=2 * one, norm=one[0]))
        >>> [round(x.item(), 4) for x in (b.lower, b.upper)]  # vᵀHv = -1, ‖Hv‖ = √5
        [0.0, 0.618]
    """
    square = t.norm.square()
    family = _RadauFamily(t)
    lower = square * family.value(torch.zeros_like(square).unsqueeze(1)).squeeze(1)
    upper = torch.maximum(square * family.largest(), lower)
    allowance = square * t.scale * (16 * t.rounding + 1e-12) + 1e-6 * (upper - lower)
    return Bracket.between((lower - allowance).clamp_min(0), upper + allowance)


class _RadauFamily:
    """All quadrature rules with k + 1 nodes that share the moments of T, by their node ξ nearest 0.

    Every rule has exactly one node ξ in the gap between the eigenvalues of T next to 0, and each ξ in the gap
    belongs to one rule. Both ends of the gap are the Gauss rule. Positions in [0, 2] map to ξ: the gap's two
    halves, each on a logistic scale.
    """

    def __init__(self, t: Tridiagonal) -> None:
        self._t = t
        self._scale = t.scale.clamp_min(torch.finfo(torch.float64).tiny)
        off = torch.diag_embed(t.beta[:, :-1], 1)
        self._nodes, vectors = torch.linalg.eigh(torch.diag_embed(t.alpha) + off + off.mT)
        self._coupling = (t.beta[:, -1:] * vectors[:, -1]).square()
        infinite = torch.full_like(self._nodes, torch.inf)
        self._right = torch.where(self._nodes > 0, self._nodes, infinite).amin(1)
        self._left = torch.where(self._nodes <= 0, -self._nodes, infinite).amin(1)

    def value(self, xi: torch.Tensor) -> torch.Tensor:
        """Return e₁ᵀ max(T', 0) e₁ of the rules with a node at ξ, (B, P) for P nodes each."""
        distance = self._nodes.unsqueeze(1) - xi.unsqueeze(2)
        tiny = 1e-15 * self._scale[:, None, None]
        distance = torch.where(distance.abs() < tiny, torch.where(distance < 0, -tiny, tiny), distance)
        # The last diagonal entry that makes ξ an eigenvalue; with huge entries the rule is the Gauss rule.
        corner = xi + (self._coupling.unsqueeze(1) / distance).sum(2)
        limit = _LARGEST_CORNER * self._scale.unsqueeze(1)
        # T with one more row for each last diagonal entry, (B, P, k + 1, k + 1).
        alpha = self._t.alpha.unsqueeze(1).expand(-1, xi.shape[1], -1)
        diagonal = torch.cat([alpha, corner.clamp(-limit, limit).unsqueeze(2)], 2)
        off = torch.diag_embed(self._t.beta, 1).unsqueeze(1)
        values, vectors = torch.linalg.eigh(torch.diag_embed(diagonal) + off + off.mT)
        entry: torch.Tensor = (vectors[..., 0, :].square() * values.clamp_min(0)).sum(-1)
        return entry

    def at(self, position: torch.Tensor) -> torch.Tensor:
        """Map positions, (B, P) in [0, 2], to ξ: from 0 to the gap's right end, then its left end to 0."""
        logit = _LOGITS * (2 * torch.where(position < 1, position, 2 - position) - 1)
        part, odds = torch.sigmoid(logit), torch.exp(logit)
        scale, right, left = (x.unsqueeze(1) for x in (self._scale, self._right, self._left))
        return torch.where(
            position < 1,
            torch.where(right.isinf(), scale * odds, right * part),
            -torch.where(left.isinf(), scale * odds, left * part),
        )

    def largest(self) -> torch.Tensor:
        """Return the largest value of any rule, (B,), by refined grids: it is unimodal in the position."""
        best = torch.full_like(self._scale, -torch.inf)
        middle, reach = torch.ones_like(self._scale), 1.0
        for points in _GRIDS:
            steps = torch.linspace(-reach, reach, points, dtype=torch.float64)
            grid = (middle.unsqueeze(1) + steps).clamp(0, 2)
            value, where = self.value(self.at(grid)).max(1)
            middle = torch.where(value > best, grid.gather(1, where.unsqueeze(1)).squeeze(1), middle)
            best = torch.maximum(best, value)
            reach *= 2 / (points - 1)
        return best
