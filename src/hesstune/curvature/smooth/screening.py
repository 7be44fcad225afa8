"""The maximum over examples of v_iᵀ H_i⁺ v_i, layer by layer, from few Hessian-vector products.

The Gauss–Newton value v_iᵀ J_iᵀ Λ J_i v_i of every layer and example costs K − 1 backward passes in
all; what it misses of v_iᵀ H_i⁺ v_i grows with ‖∂ℓ/∂f‖, the residual (H_i − J_iᵀΛJ_i is linear in it), so
that confidently wrong examples can be the maximum with a tiny Gauss–Newton value. Examples are
tried in the order of both; each is dropped as soon as its upper bound is below the best lower one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import IntEnum

import torch

from hesstune.curvature.smooth.quadrature import Bracket, Krylov, positive_bracket
from hesstune.curvature.smooth.ranking import Ranking
from hesstune.curvature.smooth.source import HessianSource
from hesstune.curvature.smooth.stopping import Stopping
from hesstune.errors import ConfigError

__all__ = ["SAFETY", "Screening", "Status", "screen_maximum", "screening_sentence"]

Open = Callable[[int, list[str]], AbstractContextManager[HessianSource]]

# How far a prediction may fall short of the truth. On small networks moved far, with confidently
# wrong examples, 1.5 missed the maximum in 13 of 90 layers, 8 in 3, and 32 in 1.
SAFETY = 32.0
_CONFIDENCE = 0.95
_ESTIMATE_FROM, _AT_ONCE, _GROWTH = 4, 3, 4
_MAXIMUM = Stopping(tol=0.02, most=48, proof=False)


class Status(IntEnum):
    """What is known of one example in one layer."""

    RANKED = 0  # only its Gauss–Newton value and residual, which predict that it is no maximum
    ESTIMATED = 1  # at least four products put it below the maximum, without proof
    PROVED = 2  # its upper bound is below a lower bound of the maximum
    REFINED = 3  # its value is known to the tolerance


@dataclass
class Screening:
    """The largest v_iᵀ H_i⁺ v_i over n examples, for each of L layers, and what it rests on.

    Attributes:
        names: Layer names.
        value: The maximum, (L,) float64.
        lower: A lower bound of the maximum, (L,), in exact arithmetic up to a rounding allowance.
        upper: An upper bound of every example that is PROVED or REFINED, (L,).
        argmax: The example that attains `value`, (L,) int64.
        quadratic: v_iᵀ H_i⁺ v_i, (n, L), NaN where an example was not refined.
        status: A `Status` for every example and layer, (n, L) int8.
        products: Hessian-vector products taken, (n, L) int64.
        checked: How many pairs of example and layer were drawn at random from all that were only
            ranked, each alike, and put to products.
        exceeded: How many of those were above the maximum found so far (it was then corrected).
        exceeding_share: Upper end of the 95 % Clopper–Pearson interval for the share of ranked pairs
            that are above their layer's maximum as it was before the check; 0 where all are proved.
    """

    names: list[str]
    value: torch.Tensor
    lower: torch.Tensor
    upper: torch.Tensor
    argmax: torch.Tensor
    quadratic: torch.Tensor
    status: torch.Tensor
    products: torch.Tensor
    checked: int
    exceeded: int
    exceeding_share: float

    def counts(self) -> dict[str, int]:
        """Count the pairs of example and layer by status, by its name in lower case."""
        return {s.name.lower(): int((self.status == s).sum()) for s in Status}

    def tally(self) -> torch.Tensor:
        """Return how many pairs were refined, proved, estimated, ranked, checked, and exceeded, (6,)."""
        n = self.counts()
        own = [n["refined"], n["proved"], n["estimated"], n["ranked"], self.checked, self.exceeded]
        return torch.tensor(own, dtype=torch.int64)

    def summary(self) -> str:
        """Say in one sentence what was refined and what covers the rest."""
        return screening_sentence(self.tally()[None])


def screening_sentence(tallies: torch.Tensor) -> str:
    """Say in one sentence what one or more screenings, (R, 6) of `Screening.tally`, covered.

    Each drew from its own pairs; its share is bounded with confidence 1 − 5 %/R and counts by its ranked
    pairs, so that the sentence holds for all together with 95 %.
    """
    refined, proved, estimated, ranked, checked, exceeded = tallies.sum(0).tolist()
    text = (
        f"of {refined + proved + estimated + ranked} pairs of example and layer {refined} were refined, "
        f"{proved} are proved below the maximum by their brackets, {estimated} are below it "
        f"by an estimate and {ranked} were ranked only"
    )
    if not checked:
        return text + "; none of them was checked at random" * bool(ranked) + "."
    confidence = 1 - (1 - _CONFIDENCE) / len(tallies)
    share = sum(
        row[3] / max(1, ranked) * _share_bound(row[4], row[5], confidence)
        for row in tallies.tolist()
        if row[3]
    )
    return (
        f"{text}; of {checked} drawn at random from the ranked ones {exceeded} exceeded the "
        f"maximum, so with 95 % confidence at most {share:.1%} of them do."
    )


def screen_maximum(
    ranking: Ranking,
    deltas: Mapping[str, torch.Tensor],
    opened: Open,
    *,
    stopping: Stopping = _MAXIMUM,
    safety: float = SAFETY,
    check: int = 3,
    seed: int = 0,
) -> Screening:
    """Find the largest v_iᵀ H_i⁺ v_i over n ranked examples, for each layer.

    1. The leaders by Gauss–Newton value and by residual are refined.
    2. For every other example v_iᵀH_i⁺v_i is predicted as GN + κ·residual, κ the largest seen in that
       layer so far; those whose prediction times `safety` reaches the best lower bound are tried:
       one product bounds each from both sides, more are taken while it may be the maximum.
    3. As many pairs of example and layer as `check` for every layer, drawn at random from the rest, are
       tried too; where one exceeds the maximum it takes its place, and step 2 is repeated, and step 3
       with `check` examples of that layer.

    All products of one example share one graph.

    Args:
        ranking: Of the n examples, from `rank_examples`.
        deltas: v_i by layer name; their order is the ranking's and the result's.
        opened: (example, layers) -> where their recurrences start, while the context is open.
        stopping: When an example that may be the maximum is known well enough.
        safety: Factor on the predictions; infinity tries every example, so that none is ranked only.
        check: Pairs in the random check, for each layer; 0 leaves it out.
        seed: Of the check.

    Raises:
        ConfigError: If there are no examples, or an argument is out of range.
    """
    if not len(ranking.residual):
        raise ConfigError("there are no examples to find a maximum over")
    if not safety >= 1 or check < 0:
        raise ConfigError(f"safety must be at least 1 and check at least 0; got {safety} and {check}")
    board = _Board(ranking, deltas, stopping, safety)

    def visit(pairs: Iterable[tuple[int, int]]) -> None:
        wanted: dict[int, list[int]] = {}
        for example, layer in pairs:
            wanted.setdefault(example, []).append(layer)
        for example in sorted(wanted, key=lambda e: -len(wanted[e])):
            with opened(example, [board.names[layer] for layer in wanted[example]]) as source:
                for layer in wanted[example]:
                    board.challenge(example, layer, source.krylov(board.names[layer], board.deltas[layer]))

    visit(board.leaders(ranking.gauss_newton))
    visit(board.leaders(ranking.residual[:, None].expand_as(ranking.gauss_newton)))
    _visit_all(board, visit)
    checked, exceeded = _random_check(board, visit, check, seed)
    return board.result(checked, exceeded)


def _visit_all(board: _Board, visit: Callable[[Iterable[tuple[int, int]]], None]) -> None:
    """Try candidates until no prediction reaches the best value any more.

    A few at a time, since the largest one raises the bar for all others, and then more and more: every round
    opens an example's graph anew.
    """
    at_once = _AT_ONCE
    while pairs := board.candidates(at_once):
        visit(pairs)
        at_once *= _GROWTH


def _random_check(
    board: _Board, visit: Callable[[Iterable[tuple[int, int]]], None], check: int, seed: int
) -> tuple[int, int]:
    """Draw ranked pairs and try them; return how many, and how many exceeded, in the first round.

    That round draws over all pairs alike, whatever layers they are of: only so does their share of
    exceeding ones estimate that of all.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = list(range(len(board.names)))
    first: tuple[int, int] | None = None
    while check and layers:
        if first is None:
            pairs = board.draw_any(check * len(layers), generator)
        else:
            pairs = [pair for layer in layers for pair in board.draw(layer, check, generator)]
        if not pairs:
            break
        before = board.best.value.clone()
        visit(pairs)
        # One that others of this round have overtaken stopped early: its upper bound counts.
        found = torch.where(board.status == Status.PROVED, board.upper, board.value)
        above = [(e, i) for e, i in pairs if found[e, i] > (1 + board.stopping.tol) * before[i]]
        first = first or (len(pairs), len(above))
        layers = sorted({layer for _, layer in above})
        _visit_all(board, visit)
    return first or (0, 0)


class _Board:
    """What is known so far: brackets of every example tried, and the best of each layer."""

    def __init__(
        self, ranking: Ranking, deltas: Mapping[str, torch.Tensor], stopping: Stopping, safety: float
    ) -> None:
        self.names, self.deltas = list(deltas), list(deltas.values())
        self.ranking, self.stopping, self.safety = ranking, stopping, safety
        shape = ranking.gauss_newton.shape
        self.value = torch.full(shape, torch.nan, dtype=torch.float64)
        self.upper = torch.full(shape, torch.nan, dtype=torch.float64)
        self.status = torch.zeros(shape, dtype=torch.int8)
        self.products = torch.zeros(shape, dtype=torch.int64)
        zero = torch.zeros(shape[1], dtype=torch.float64)
        self.best = Bracket(zero.clone(), zero.clone(), zero.clone())
        self.argmax = torch.zeros(shape[1], dtype=torch.int64)
        for layer, delta in enumerate(self.deltas):
            if not bool(delta.any()):  # the layer has not moved: v_i = 0
                self.status[:, layer] = Status.REFINED
                self.value[:, layer] = self.upper[:, layer] = 0.0

    def leaders(self, scores: torch.Tensor) -> list[tuple[int, int]]:
        """Return each layer's untried example of the highest score."""
        found = []
        for layer in range(len(self.names)):
            example = int(scores[:, layer].argmax())
            if self.untried()[example, layer]:
                found.append((example, layer))
        return found

    def untried(self) -> torch.Tensor:
        return (self.products == 0) & (self.status == Status.RANKED)

    def candidates(self, at_once: int) -> list[tuple[int, int]]:
        """Return each layer's likeliest untried examples that the prediction does not rule out."""
        known = torch.where(self.status != Status.PROVED, self.value, torch.nan)
        excess = (known - self.ranking.gauss_newton) / self.ranking.residual[:, None].clamp_min(1e-300)
        kappa = excess.nan_to_num(0.0).clamp_min(0).amax(0)
        predicted = self.ranking.gauss_newton + kappa * self.ranking.residual[:, None]
        wanted = self.untried() & (self.safety * predicted >= self.best.lower)
        place = predicted.masked_fill(~wanted, -1.0).argsort(0, descending=True).argsort(0)
        return [(int(e), int(i)) for e, i in (wanted & (place < at_once)).nonzero()]

    def draw_any(self, count: int, generator: torch.Generator) -> list[tuple[int, int]]:
        left = self.untried().nonzero()
        chosen = left[torch.randperm(len(left), generator=generator)[:count]]
        return [(int(example), int(layer)) for example, layer in chosen]

    def draw(self, layer: int, count: int, generator: torch.Generator) -> list[tuple[int, int]]:
        left = self.untried()[:, layer].nonzero().squeeze(1)
        chosen = left[torch.randperm(len(left), generator=generator)[:count]]
        return [(int(example), layer) for example in chosen]

    def challenge(self, example: int, layer: int, krylov: Krylov) -> None:
        """Take products until the example is known well enough, or is below the best."""
        looks: list[Bracket] = []
        status = Status.REFINED
        while True:
            krylov.advance()
            bracket = positive_bracket(krylov.tridiagonal())
            if krylov.products % 2 == 0 and krylov.products >= _ESTIMATE_FROM:
                looks.append(bracket)
            if bool(bracket.upper < self.best.lower[layer]):
                status = Status.PROVED
            elif looks and self._unlikely(bracket, layer):
                status = Status.ESTIMATED
            elif not self._known(bracket, looks, krylov):
                continue
            break
        look = self.stopping.best(looks) if looks and looks[-1] is bracket else bracket
        self.products[example, layer] = krylov.products
        self.status[example, layer] = status
        self.value[example, layer], self.upper[example, layer] = look.value[0], look.upper[0]
        if status is Status.REFINED and bool(look.value > self.best.value[layer]):
            self.argmax[layer] = example
            for field in ("value", "lower", "upper"):
                getattr(self.best, field)[layer] = getattr(look, field)[0]

    def _known(self, bracket: Bracket, looks: list[Bracket], krylov: Krylov) -> bool:
        if bool(krylov.exhausted().all()) or krylov.products >= self.stopping.most:
            return True
        return self.stopping.reached(looks) if looks else bool(bracket.error <= self.stopping.tol)

    def _unlikely(self, bracket: Bracket, layer: int) -> bool:
        # The truth was never seen beyond 0.4 of the way from the harmonic mean to a bound.
        return bool(bracket.value / (1 - bracket.error / 2) < self.best.value[layer])

    def result(self, checked: int, exceeded: int) -> Screening:
        refined = self.status == Status.REFINED
        sure = refined | (self.status == Status.PROVED)
        upper = torch.where(sure, self.upper, -torch.inf).amax(0)
        left = bool((self.status == Status.RANKED).any())
        return Screening(
            names=self.names,
            value=self.best.value,
            lower=self.best.lower,
            upper=upper,
            argmax=self.argmax,
            quadratic=torch.where(refined, self.value, torch.nan),
            status=self.status,
            products=self.products,
            checked=checked,
            exceeded=exceeded,
            exceeding_share=_share_bound(checked, exceeded) if left else 0.0,
        )


def _share_bound(drawn: int, found: int, confidence: float = _CONFIDENCE) -> float:
    """Return the upper end of the one-sided Clopper–Pearson interval; 1 where nothing was drawn."""
    if found >= drawn:
        return 1.0
    from scipy.special import betaincinv

    return float(betaincinv(found + 1, drawn - found, confidence))
