"""The Monte-Carlo step: the randomised predictor's errors, counted over independent weight draws."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hesstune.bounds.kl import monte_carlo_upper
from hesstune.bounds.noisy import CleanLoss
from hesstune.bounds.prior import Sigma, random_parameters
from hesstune.bounds.sample import BoundData, network_logits
from hesstune.errors import ModelError
from hesstune.forward import Inputs, named_modules
from hesstune.runtime.distributed import all_reduce_sum
from hesstune.runtime.signals import Progress

Array = NDArray[np.float64]
# Torch's generator on a CPU takes 32 bits of a seed; an odd step visits each once.
_SEEDS, _STEP = 2**32, 0x9E3779B1
PASSES = 100  # draws of the head for each example, if the head alone is trained


@dataclass(frozen=True)
class Draws:
    """Counts of label and prediction over m draws; draw j counts on block j mod B, so m/B draws see an
    example.
    """

    counts: Array  # (K, K), indexed [label, prediction], summed over draws
    draws: int  # m, a multiple of B, fixed beforehand
    blocks: int  # B
    block: int  # The size of the largest block
    n: int  # Number of examples

    @property
    def padding(self) -> float:
        """B·block/n, the factor for blocks of unequal size."""
        return self.blocks * self.block / self.n

    def mean(self, loss: CleanLoss) -> float:
        """Return the mean of the loss, scaled to [0, 1], over draws and examples."""
        return loss.unit(self.counts / self.counts.sum())

    def upper(self, loss: CleanLoss, delta: float) -> float:
        """Bound the scaled loss's expectation over the posterior on the n examples.

        Blocks may differ in size by one: each draw's loss is counted as if its block had the largest
        size, the missing examples at loss 0, so it stays in [0, 1] and independent; the mean is
        scaled back by B·block/n ≥ 1.
        """
        upper = monte_carlo_upper(min(1.0, self.mean(loss) / self.padding), self.draws, delta)
        return min(1.0, self.padding * upper)


@contextmanager
def restoring(parameters: Mapping[str, nn.Parameter]) -> Iterator[dict[str, torch.Tensor]]:
    """Yield copies of the parameters' values; on leaving the parameters are bit for bit what they were."""
    values = {name: p.detach().clone() for name, p in parameters.items()}
    try:
        yield values
    finally:
        with torch.no_grad():
            for name, value in values.items():
                parameters[name].copy_(value)


@torch.no_grad()
def draw_weights(
    parameters: Mapping[str, nn.Parameter],
    means: Mapping[str, torch.Tensor],
    sigma: Sigma,
    generator: torch.Generator,
) -> None:
    """Set the parameters to mean + σ·ε with fresh ε ~ N(0, I)."""
    for name, parameter in parameters.items():
        value, mean = sigma[name], means[name]
        if parameter.dtype not in (torch.float32, torch.float64):
            # Noise below half a unit of a short type would be lost before it is added.
            noise = torch.randn(
                parameter.shape, generator=generator, device=parameter.device, dtype=torch.float32
            )
            parameter.copy_(mean.float() + noise * value)
        elif isinstance(value, torch.Tensor):
            parameter.normal_(generator=generator)
            parameter.mul_(value.to(parameter)).add_(mean)
        else:
            parameter.normal_(0.0, float(value), generator=generator).add_(mean)


def _confusion(logits: torch.Tensor, targets: torch.Tensor) -> Array:
    """Count (target, predicted class), (K, K)."""
    if not bool(torch.isfinite(logits).all()):
        raise ModelError(
            "the perturbed model's logits are not finite; the posterior's noise is too large for it, "
            "or its weights are not finite: give a smaller prior scale"
        )
    k = logits.shape[1]
    pairs = targets.to(logits.device) * k + logits.argmax(dim=1)
    return torch.bincount(pairs, minlength=k * k).reshape(k, k).double().cpu().numpy()


class WeightDraws:
    """Draws of all trained weights, each counted on a block of examples.

    Each draw is seeded by its number, so that several processes count the same draws as one process. `means`
    are the trained parameters' values, as `restoring` yields them; `model` is in eval mode and changed.
    """

    default_draws = 2048

    def __init__(self, model: nn.Module, means: Mapping[str, torch.Tensor], data: BoundData, k: int) -> None:
        self._model, self._means, self._data, self._k = model, means, data, k
        self._parameters = random_parameters(model)
        self._generator = torch.Generator(device=next(model.parameters()).device)

    @torch.no_grad()
    def run(
        self, sigma: Sigma, draws: int, generator: torch.Generator, progress: Progress | None = None
    ) -> Draws:
        """Draw the weights so many times, rounded up so that each block gets as many; count predictions."""
        sizes = self._data.sizes
        passes = math.ceil(draws / len(sizes))
        counts, start = np.zeros((self._k, self._k)), _start(generator)
        for done in range(passes):
            if progress is not None:
                progress(done, passes, "passes of weight draws")
            counts += self._pass(sigma, start, done, len(sizes))
        counts = all_counts(self._data, counts)
        return Draws(counts, passes * len(sizes), len(sizes), max(sizes), sum(sizes))

    @torch.no_grad()
    def pilot(self, sigma: Sigma, blocks: int, generator: torch.Generator) -> Draws:
        """Count a few draws, each on one of the first blocks: for the choice, not for the certificate."""
        counts = all_counts(self._data, self._pass(sigma, _start(generator), 0, blocks))
        seen = self._data.sizes[:blocks]
        return Draws(counts, len(seen), len(seen), max(seen), sum(seen))

    def _pass(self, sigma: Sigma, start: int, number: int, blocks: int) -> Array:
        """Count this process's blocks among the first ones, in the number-th pass."""
        counts = np.zeros((self._k, self._k))
        for block, (inputs, targets) in zip(self._data.own, self._data, strict=True):
            if block >= blocks:
                break
            draw = number * len(self._data.sizes) + block
            self._generator.manual_seed((start + draw * _STEP) % _SEEDS)
            draw_weights(self._parameters, self._means, sigma, self._generator)
            counts += _confusion(network_logits(self._model, inputs), targets)
        return counts


def all_counts(data: BoundData, counts: Array) -> Array:
    """Return the sum of counts over the processes that share the examples."""
    return np.asarray(all_reduce_sum(torch.from_numpy(counts)).numpy()) if data.distributed else counts


def _start(generator: torch.Generator) -> int:
    """Return the seed that the draws of one run start from."""
    return int(torch.randint(_SEEDS, (), generator=generator, device=generator.device))


class HeadDraws:
    """Draws of the last linear layer, a fresh one for every example, through its logits.

    For one example the logits W x + b with independent Gaussian W, b are independent Gaussians of mean Ŵ x +
    b̂ and variance Σ_j σ_kj² x_j² + σ_k²; so each example is its own block, and the features, (n, d), are
    computed once. `weight` and `bias` are the names of what is random, None for what is fixed.
    """

    def __init__(
        self,
        features: torch.Tensor,
        targets: torch.Tensor,
        logits: torch.Tensor,
        weight: str | None,
        bias: str | None,
    ) -> None:
        self.default_draws = PASSES * len(targets)
        self._square, self._targets = features.double().square(), targets.to(features.device)
        self._logits, self._weight, self._bias = logits.double(), weight, bias

    @torch.no_grad()
    def run(
        self, sigma: Sigma, draws: int, generator: torch.Generator, progress: Progress | None = None
    ) -> Draws:
        """Draw the head so many times, rounded up to whole passes, each counted on one example."""
        n, k = self._logits.shape
        variance = torch.zeros_like(self._logits)
        if self._weight is not None:
            value = torch.as_tensor(sigma[self._weight]).to(self._square)
            full = value.expand(k, self._square.shape[1]) if value.ndim == 0 else value
            variance += self._square @ full.square().T
        if self._bias is not None:
            variance += torch.as_tensor(sigma[self._bias]).to(self._square).square()
        deviation, counts = variance.sqrt(), np.zeros((k, k))
        passes = math.ceil(draws / n)
        for _ in range(passes):
            noise = torch.randn((n, k), generator=generator, device=deviation.device, dtype=deviation.dtype)
            counts += _confusion(self._logits + deviation * noise, self._targets)
        return Draws(counts, passes * n, n, 1, n)

    def pilot(self, sigma: Sigma, blocks: int, generator: torch.Generator) -> Draws:
        """Count a few draws of every example: for the choice, not for the certificate."""
        return self.run(sigma, blocks * len(self._targets), generator)


def only_head(model: nn.Module, names: list[str], inputs: Inputs) -> nn.Linear | None:
    """Return the only trained module if it is a Linear that returns the model's logits, else None."""
    owners = {path.rpartition(".")[0] for path in names}
    if len(owners) != 1:
        return None
    head = named_modules(model)[owners.pop()]
    if type(head) is not nn.Linear or any(
        p.dtype not in (torch.float32, torch.float64) for p in head.parameters()
    ):
        return None
    with head_io(head) as seen, torch.no_grad():
        logits = network_logits(model, inputs)
    single = len(seen) == 1 and seen[0][0].ndim == 2 and seen[0][1].shape == logits.shape
    return head if single and torch.equal(seen[0][1], logits) else None


@contextmanager
def head_io(head: nn.Linear) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Collect the head's inputs and outputs while the block runs."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = head.register_forward_hook(lambda _, args, out: seen.append((args[0].detach(), out.detach())))
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def weight_draws(model: nn.Module, data: BoundData, k: int) -> Iterator[WeightDraws | HeadDraws]:
    """Return the cheapest exact way to draw the trained weights, which are restored on leaving."""
    parameters = random_parameters(model)
    head = only_head(model, list(parameters), data.first())
    if head is None:
        with restoring(parameters) as means:
            yield WeightDraws(model, means, data, k)
        return
    with head_io(head) as probe:  # a process may have no block
        network_logits(model, data.first())
    with head_io(head) as seen:
        for inputs, _ in data:
            network_logits(model, inputs)
    features, logits = (
        data.gathered(torch.cat([probe[0][i][:0], *(one[i] for one in seen)])) for i in range(2)
    )
    names = {id(p): name for name, p in parameters.items()}
    weight, bias = names.get(id(head.weight)), names.get(id(head.bias))
    yield HeadDraws(features, torch.as_tensor(data.labels), logits, weight, bias)
