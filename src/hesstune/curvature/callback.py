"""`MeasureCallback`: the Gauss–Newton distance measure on fixed held-out examples while a network trains."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from hesstune.checks import positive
from hesstune.curvature.batches import LabelledBatch, rows_of
from hesstune.curvature.measure import measure
from hesstune.curvature.plan import closed_form_passes
from hesstune.errors import ConfigError
from hesstune.forward import batch_size, evaluating, logits_of
from hesstune.reference import Reference

# All in forward passes of one example. A training step is a forward pass and a backward pass of twice its
# time. The first measurement makes a plan, the others check that it still holds; each takes
# `closed_form_passes` for each example.
_TRAINING_PASSES, _PLANNING_PASSES, _CHECKING_PASSES = 3, 120, 15
# Fewer examples say little: epochs are left out instead.
_FEWEST_EXAMPLES = 8


@dataclass(frozen=True)
class MeasuredEpoch:
    """The measure after one epoch.

    Attributes:
        epoch: The epoch, from 1.
        value: Σ_i √(C · mean v_iᵀ G_i v_i / n), C the largest loss of the examples.
        stderr: An upper bound on its standard error over the examples.
        examples: How many were measured.
    """

    epoch: int
    value: float
    stderr: float
    examples: int


class MeasureCallback:
    """Measure a network on fixed held-out examples after epochs of a training loop.

    It takes at most a share of the passes of training: the first examples of the batch that fit into it, and
    fewer epochs if not even eight fit. The network, its gradients and the global random state are left as
    they were.

    Args:
        ref: The reference of the network, taken before training.
        batch: Held-out examples, (inputs, targets).
        n: The number of training examples.
        every: Measure at most every so many epochs.
        share: The largest share of training's passes.

    Attributes:
        curve: What was measured so far.

    Raises:
        ConfigError: If an argument is out of range.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 3))
        >>> held_out = torch.randn(16, 4), torch.zeros(16, dtype=torch.long)
        >>> after_epoch = MeasureCallback(Reference.of(model), held_out, n=2000, every=2)
        >>> for epoch in range(1, 5):
        ...     with torch.no_grad():  # train here
        ...         _ = model[0].weight.add_(0.01)
        ...     _ = after_epoch(model, epoch)
        >>> [(point.epoch, point.examples, point.value > 0) for point in after_epoch.curve]
        [(2, 16, True), (4, 16, True)]
    """

    def __init__(
        self, ref: Reference, batch: LabelledBatch, n: int, *, every: int = 1, share: float = 0.05
    ) -> None:
        size = batch_size(batch[0])
        for name, value in (("n", n), ("every", every), ("the number of held-out examples", size)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1; got {value}")
        self._ref, self._batch, self._n = ref, batch, n
        self._every, self._each_epoch = every, positive("share", share) * _TRAINING_PASSES * n
        self.curve: list[MeasuredEpoch] = []

    def __call__(self, model: nn.Module, epoch: int) -> MeasuredEpoch | None:
        """Measure the network if it is time; return the new point of the curve, or None.

        Args:
            model: The network, with the reference's names.
            epoch: The epoch that has ended, from 1.

        Raises:
            MeasureError: If the network cannot be measured.
        """
        if epoch % self._every:
            return None
        each = self._passes_an_example(model)
        size = batch_size(self._batch[0])
        least = _CHECKING_PASSES + each * min(size, _FEWEST_EXAMPLES)
        interval = self._every * math.ceil(least / (self._every * self._each_epoch))
        room = min(interval * self._each_epoch, epoch * self._each_epoch - _PLANNING_PASSES)
        if epoch % interval or room < least:
            return None
        most = int((room - _CHECKING_PASSES) / each)
        found = measure(model, self._ref, [self._batch], method="gauss_newton", max_examples=most)
        mean = found.to_dict(self._n)["mean_measure"]
        point = MeasuredEpoch(epoch, mean["value"], mean["stderr"] or math.nan, len(found.losses))
        self.curve.append(point)
        return point

    def _passes_an_example(self, model: nn.Module) -> int:
        with evaluating(model), torch.no_grad():
            classes = logits_of(model, rows_of(self._batch[0], torch.arange(1))).shape[1]
        return closed_form_passes(classes, len(self._ref.layers()))
