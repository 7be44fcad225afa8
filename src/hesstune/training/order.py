"""In which order a run sees its examples, and in which batches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hesstune.errors import ConfigError
from hesstune.inputs.batches import ModelInputs, batches_of, without_singles
from hesstune.methods._losses import balanced_rates
from hesstune.runs.config import FinetuneConfig

__all__ = ["BatchOrder"]


class BatchOrder:
    """The batches of every epoch; they depend on the seed and the epoch alone.

    Args:
        config: The resolved configuration.
        counts: (K,) how many training examples carry each label.
        labels: (n,) the labels.

    Raises:
        ConfigError: If batch norm is to adapt to batches of one example.
    """

    def __init__(self, config: FinetuneConfig, counts: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
        self.config, self.n = config, len(labels)
        # Batch norm that adapts takes the variance of a batch, and one example has none.
        self.adapts = config.batch_norm == "adapt"
        if self.adapts and 1 in (config.batch_size, self.n):
            raise ConfigError(
                "batch norm cannot adapt to batches of one example; give --batch-size 2 or more, two "
                "training examples or more, or --batch-norm frozen"
            )
        self.weights: NDArray[np.float64] | None = None
        if config.sampler != "uniform":
            weights = balanced_rates(counts)[labels]
            self.weights = weights / weights.sum()

    @property
    def steps(self) -> int:
        """Optimizer steps in all epochs."""
        batches = -(-self.n // self.config.batch_size)
        if self.adapts and self.n % self.config.batch_size == 1:
            batches -= 1
        return -(-batches // self.config.accumulate) * self.config.epochs

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the examples of an epoch."""
        rng = np.random.default_rng([self.config.seed, epoch, 0x0DE])
        if self.weights is None:
            return rng.permutation(self.n)
        return rng.choice(self.n, size=self.n, p=self.weights)

    def batches(self, epoch: int, feed: ModelInputs) -> list[NDArray[np.int64]]:
        """Return the batches of an epoch."""
        rng = np.random.default_rng([self.config.seed, epoch, 0xBA7])
        batches = batches_of(feed, self.order(epoch), self.config.batch_size, rng)
        return without_singles(batches) if self.adapts else batches
