"""A random sample of (example, layer) pairs for forms that take long, and the means that follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from hesstune.curvature.batches import LabelledBatch, rows_of

# This share of the draws takes all examples with the same probability, which bounds the effect of a wrong
# prediction on the error.
_EVEN_SHARE = 0.05


@dataclass(frozen=True)
class SampledMeans:
    """Means over n examples that were estimated from a sample, float64.

    Attributes:
        mean: (L,).
        stderr: Standard errors as means over the distribution of the examples, (L,).
        sampling_stderr: Standard errors as means over these n examples, (L,); independent between layers.
    """

    mean: torch.Tensor
    stderr: torch.Tensor
    sampling_stderr: torch.Tensor


class Sample:
    """Independent draws of examples for each layer, with replacement, by their predicted forms.

    A draw takes each example with a probability in proportion to its weight, except a few draws, which take
    all with the same probability. Draw d of a layer is the example with the smallest E/w, where w is its
    weight and E exponential. So one reading of the examples is enough, in any order.

    Args:
        draws: The largest number of draws of a layer.
        layers: L.
        seed: Of the draws.

    Attributes:
        drawn: The numbers of the drawn examples, (draws, L).
        examples: The drawn examples by number, each as a batch of one; every example, if they are at most
            `draws`.
    """

    def __init__(self, draws: int, layers: int, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed + 1)
        shape = (draws, layers)
        self._even = torch.rand(shape, generator=self._generator, dtype=torch.float64) < _EVEN_SHARE
        self._smallest = torch.full(shape, math.inf, dtype=torch.float64)
        self.drawn = torch.full(shape, -1)
        self.examples: dict[int, LabelledBatch] = {}
        self._keys = torch.empty((0, *shape), dtype=torch.float64)
        self._seen = 0

    def draw_keys(self, count: int) -> None:
        """Draw E of the next batch's examples, in their own order."""
        self._seen += count
        self._keys = torch.empty((count, *self.drawn.shape), dtype=torch.float64)
        self._keys.exponential_(generator=self._generator)

    @property
    def is_complete(self) -> bool:
        """Whether `examples` holds every example."""
        return self._seen <= len(self.drawn)

    def offer(self, numbers: torch.Tensor, weights: torch.Tensor, batch: LabelledBatch) -> None:
        """Consider examples of the newest batch, by number; weights, (B, L), are NaN for pairs left out."""
        keys = self._keys[numbers - (self._seen - len(self._keys))]
        weights = weights.clamp_min(1e-200)[:, None]
        ratios = keys / weights.where(~self._even | weights.isnan(), 1.0)
        smallest, rows = ratios.nan_to_num(nan=math.inf).min(0)
        closer = smallest < self._smallest
        self._smallest = torch.where(closer, smallest, self._smallest)
        self.drawn = torch.where(closer, numbers[rows], self.drawn)
        wanted = set(self.drawn.flatten().tolist())
        for row, number in enumerate(numbers.tolist()):
            if self.is_complete or number in wanted:
                one = rows_of(batch[0], torch.tensor([row])), batch[1][row : row + 1]
                self.examples[number] = one
        if not self.is_complete:
            self.examples = {n: one for n, one in self.examples.items() if n in wanted}


def sampled_means(values: torch.Tensor, weights: torch.Tensor, rows: torch.Tensor) -> SampledMeans:
    """Estimate means from draws in proportion to weights (Hansen & Hurwitz, 1943), without bias.

    Args:
        values: (n, L): known wherever the weights are NaN, and for the draws.
        weights: (n, L): those of `Sample.offer`.
        rows: The rows of the draws, (m, L) with m at least 2.
    """
    n, left = len(values), ~weights.isnan()
    weights = weights.clamp_min(1e-200).where(left, 0.0)
    chances = (1 - _EVEN_SHARE) * weights / weights.sum(0) + _EVEN_SHARE * left / left.sum(0)
    drawn, chance = values.gather(0, rows), chances.gather(0, rows)
    known = values.where(~left, 0.0)
    totals = known.sum(0) + drawn / chance  # each draw alone estimates the sum over the examples
    mean, sampling = totals.mean(0) / n, totals.var(0) / len(rows) / n**2
    squares = (known.square().sum(0) + drawn.square() / chance).mean(0) / n
    spread = (squares - mean.square() + sampling).clamp_min(0) / max(1, n - 1)
    return SampledMeans(mean, (spread + sampling).sqrt(), sampling.sqrt())
