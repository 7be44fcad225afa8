"""The smooth layers' maxima over all examples, and a random sample's mean: the examples stay until then."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch

from hesstune.curvature.arguments import LabelledBatch
from hesstune.curvature.batches import rows_of
from hesstune.curvature.engine import CurvatureEngine
from hesstune.curvature.padding import trimmed
from hesstune.curvature.smooth.lanczos import LanczosForms
from hesstune.curvature.smooth.ranking import Ranking
from hesstune.curvature.smooth.screening import SAFETY, Screening, screen_maximum
from hesstune.curvature.smooth.source import HessianSource
from hesstune.curvature.smooth.stopping import Stopping
from hesstune.forward import batch_size

__all__ = ["GaussNewtonScreen", "Sample"]

# The maximum carries the whole measure, so it is refined further than other entries.
_MAXIMUM_TOLERANCE = 0.02


@dataclass(frozen=True)
class Sample:
    """v_iᵀ H_i⁺ v_i of a random sample of m of n examples, and what it says of all of them.

    Attributes:
        rows: The examples drawn, without replacement, (m,) int64, ascending.
        forms: Their values and brackets, (m, L).
        mean: The estimated mean, (L,): the Gauss–Newton values, known of every example, plus the
            sample's mean difference from them (a difference estimator).
        stderr: Its standard error as a mean over the distribution, (L,): √(Var q / n + (1 − m/n)·
            Var(q − GN)/m), both variances from the sample.
    """

    rows: torch.Tensor
    forms: LanczosForms
    mean: torch.Tensor
    stderr: torch.Tensor


class GaussNewtonScreen:
    """Finds the smooth layers' maxima over all examples.

    Args:
        engine: The network's; the layers that it plans as `lanczos` are screened.
        stopping: When Lanczos stops.
        seed: Of the random check and the sample.
        prove: Whether a maximum must be proved to the tolerance by its bracket, and every other example
            put to at least one product; otherwise it is refined until it stands still, and the bracket
            is wider.
    """

    def __init__(
        self, engine: CurvatureEngine, stopping: Stopping, seed: int = 0, prove: bool = False
    ) -> None:
        self._engine, self._stopping, self._seed, self._prove = engine, stopping, seed, prove
        self.names = engine.plan.by("lanczos")
        self._rankings: list[Ranking] = []
        self._kept: list[LabelledBatch] = []
        self._places: list[tuple[int, int]] = []

    def add(self, batch: LabelledBatch) -> None:
        """Rank one batch, at the price of K − 1 backward passes for all layers; it is kept."""
        self._rankings.append(self._engine.rank(batch, self.names))
        self._places += [(len(self._kept), row) for row in range(batch_size(batch[0]))]
        self._kept.append(batch)

    def rows(self, examples: Sequence[int]) -> Iterator[LabelledBatch]:
        """Yield the examples, each as a batch of one."""
        for example in examples:
            chunk, row = self._places[example]
            inputs, targets = self._kept[chunk]
            one = rows_of(inputs, torch.tensor([row]))
            yield trimmed(one) if self._engine.plan.cuts_padding else one, targets[row : row + 1]

    def maxima(self) -> Screening:
        """Refine what can be a maximum."""
        tol = min(self._stopping.tol, _MAXIMUM_TOLERANCE)
        return screen_maximum(
            Ranking.joined(self._rankings),
            {name: self._engine.differences[name] for name in self.names},
            self._opened,
            stopping=replace(self._stopping, tol=tol, proof=self._prove),
            safety=math.inf if self._prove else SAFETY,
            seed=self._seed,
        )

    def _opened(self, example: int, names: list[str]) -> AbstractContextManager[HessianSource]:
        return self._engine.source(next(self.rows([example])), names)

    def sample(self, count: int) -> Sample:
        """Draw `count` examples at random (all, if there are fewer) and refine every layer of them."""
        ranking = Ranking.joined(self._rankings)
        n = len(ranking.residual)
        count = min(count, n)
        generator = torch.Generator().manual_seed(self._seed + 1)
        drawn = torch.randperm(n, generator=generator)[:count].sort().values
        forms = LanczosForms.joined(
            [self._engine.lanczos(one, self.names, self._stopping) for one in self.rows(drawn.tolist())]
        )
        known = ranking.gauss_newton
        extra = forms.quadratic - known[drawn]
        variance = forms.quadratic.var(0) / n + (1 - count / n) * extra.var(0) / count
        return Sample(drawn, forms, known.mean(0) + extra.mean(0), variance.sqrt())
