"""The Monte-Carlo step: the randomised predictor's errors, counted over independent weight draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hesstune.bounds.data import Share
from hesstune.bounds.noisy import CleanLoss
from hesstune.bounds.pac_bayes import monte_carlo_upper
from hesstune.bounds.prior import Sigma
from hesstune.errors import ModelError
from hesstune.forward import Inputs, logits_of, moved, named_modules
from hesstune.runtime.signals import Progress

Batches = Callable[[], Iterator[tuple[Inputs, torch.Tensor]]]
# Torch's generator on a CPU takes 32 bits of a seed; an odd step visits each once.
_SEEDS, _STEP = 2**32, 0x9E3779B1


@dataclass(frozen=True)
class Draws:
    """Counts of each pair of label and prediction over m weight draws.

    Draw j counts on block j mod B of a partition of the n examples, so that m/B draws see each
    example.

    Attributes:
        counts: (K, K), indexed [label, prediction], summed over draws.
        draws: m, a multiple of B, fixed beforehand.
        blocks: B.
        block: The size of the largest block.
        n: Number of examples.
    """

    counts: NDArray[np.float64]
    draws: int
    blocks: int
    block: int
    n: int

    def mean(self, loss: CleanLoss) -> float:
        """Return the mean of the loss, scaled to [0, 1], over draws and examples."""
        return loss.unit(self.counts / self.counts.sum())

    def upper(self, loss: CleanLoss, delta: float) -> float:
        """Bound the scaled loss's expectation over the posterior on the n examples.

        Blocks may differ in size by one: each draw's loss is counted as if its block had the largest
        size, the missing examples at loss 0, so it stays in [0, 1] and independent; the mean is
        scaled back by B·block/n ≥ 1.
        """
        padding = self.blocks * self.block / self.n
        return min(1.0, padding * monte_carlo_upper(min(1.0, self.mean(loss) / padding), self.draws, delta))


class Perturbation:
    """Gaussian noise on a model's parameters in place, around one stored copy of their values.

    A context manager: on leaving it the parameters are bit for bit what they were.

    Args:
        parameters: What to perturb, by name.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = dict(parameters)
        self._means: dict[str, torch.Tensor] = {}

    def __enter__(self) -> Perturbation:
        self._means = {name: p.detach().clone() for name, p in self._parameters.items()}
        return self

    def __exit__(self, *_: object) -> None:
        self.restore_()
        self._means = {}

    @torch.no_grad()
    def restore_(self) -> None:
        """Set the parameters back to their stored values."""
        for name, mean in self._means.items():
            self._parameters[name].copy_(mean)

    @torch.no_grad()
    def draw_(self, sigma: Sigma, generator: torch.Generator) -> None:
        """Set the parameters to mean + σ·ε with fresh ε ~ N(0, I)."""
        for name, parameter in self._parameters.items():
            value = sigma[name]
            if parameter.dtype not in (torch.float32, torch.float64):
                # Noise below half a unit of a short type would be lost before it is added.
                noise = torch.randn(
                    parameter.shape, generator=generator, device=parameter.device, dtype=torch.float32
                )
                parameter.copy_(self._means[name].float() + noise * value)
            elif isinstance(value, torch.Tensor):
                parameter.normal_(generator=generator)
                parameter.mul_(value.to(parameter)).add_(self._means[name])
            else:
                parameter.normal_(0.0, float(value), generator=generator).add_(self._means[name])


class Feeder:
    """Move inputs to a model's device, channels last if its convolutions are.

    Convolutions with both sides channels last run about twice as fast on a CPU.
    """

    def __init__(self, model: nn.Module) -> None:
        weights = [p for p in model.parameters() if p.ndim == 4]
        self._device = next(model.parameters()).device
        self._last = any(
            p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous() for p in weights
        )

    def __call__(self, inputs: Inputs) -> Inputs:
        """Return the inputs on the device and in the memory format of the model."""
        there = moved(inputs, self._device)
        if self._last and isinstance(there, torch.Tensor) and there.ndim == 4:
            there = there.contiguous(memory_format=torch.channels_last)
        return there


def _tally(logits: torch.Tensor, targets: torch.Tensor) -> NDArray[np.float64]:
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

    Each draw is seeded by its number, so that several processes count the same draws as one process.

    Args:
        model: The network, in eval mode.
        perturbation: An entered perturbation of its trained parameters.
        batches: Called for each pass; yields (inputs, targets), the same blocks in the same order.
        sizes: The sizes of all blocks.
        share: The blocks that `batches` yields; default: all.
        k: The number of classes, needed if a process may have no block.
    """

    def __init__(
        self,
        model: nn.Module,
        perturbation: Perturbation,
        batches: Batches,
        sizes: list[int],
        share: Share | None = None,
        k: int | None = None,
    ) -> None:
        self._model, self._perturbation, self._batches = model, perturbation, batches
        self._sizes = sizes
        self._none = np.zeros(()) if k is None else np.zeros((k, k))
        self._share = Share() if share is None else share
        self._generator = torch.Generator(device=next(model.parameters()).device)
        self._feed = Feeder(model)

    def rounded(self, draws: int) -> int:
        """Return the number of draws rounded up so that each block gets as many."""
        return math.ceil(draws / len(self._sizes)) * len(self._sizes)

    @torch.no_grad()
    def run(
        self, sigma: Sigma, draws: int, generator: torch.Generator, progress: Progress | None = None
    ) -> Draws:
        """Draw the weights `rounded(draws)` times and count predictions."""
        draws, blocks = self.rounded(draws), len(self._sizes)
        passes = draws // blocks
        counts: Any = self._none
        start = _start(generator)
        for done in range(passes):
            if progress is not None:
                progress(done, passes, "passes of weight draws")
            counts = counts + self._pass(sigma, start, done, blocks)
        counts = self._share.all_reduce_sum(torch.from_numpy(counts)).numpy()
        return Draws(counts, draws, blocks, max(self._sizes), sum(self._sizes))

    @torch.no_grad()
    def pilot(self, sigma: Sigma, blocks: int, generator: torch.Generator) -> Draws:
        """Count a few draws, each on one of the first blocks: for the choice, not for the certificate."""
        counts = self._pass(sigma, _start(generator), 0, blocks)
        counts = self._share.all_reduce_sum(torch.from_numpy(counts)).numpy()
        seen = self._sizes[:blocks]
        return Draws(counts, len(seen), len(seen), max(seen), sum(seen))

    def _pass(self, sigma: Sigma, start: int, number: int, blocks: int) -> NDArray[np.float64]:
        """Count this process's blocks among the first ones, in the number-th pass."""
        counts: NDArray[np.float64] = self._none
        own = self._share.blocks(len(self._sizes))
        for block, (inputs, targets) in zip(own, self._batches(), strict=False):
            if block >= blocks:
                break
            self._draw(sigma, start, number * len(self._sizes) + block)
            counts = counts + _tally(logits_of(self._model, self._feed(inputs)), targets)
        return counts

    def _draw(self, sigma: Sigma, start: int, number: int) -> None:
        self._generator.manual_seed((start + number * _STEP) % _SEEDS)
        self._perturbation.draw_(sigma, self._generator)


def _start(generator: torch.Generator) -> int:
    """Return the seed that the draws of one run start from."""
    return int(torch.randint(_SEEDS, (), generator=generator, device=generator.device))


class HeadDraws:
    """Draws of the last linear layer, a fresh one for every example, through its logits.

    For one example the logits W x + b with independent Gaussian W, b are independent Gaussians of mean
    Ŵ x + b̂ and variance Σ_j σ_kj² x_j² + σ_k²; so each example is its own block, and the
    features are computed once.

    Args:
        features: Inputs of the head, (n, d).
        targets: Labels, (n,).
        weight: Name of the weight, (K, d); None if it is fixed.
        bias: Likewise, (K,).
        logits: The unperturbed logits, (n, K).
    """

    def __init__(
        self,
        features: torch.Tensor,
        targets: torch.Tensor,
        logits: torch.Tensor,
        weight: str | None,
        bias: str | None,
    ) -> None:
        self._square, self._targets = features.double().square(), targets.to(features.device)
        self._logits, self._weight, self._bias = logits.double(), weight, bias

    def rounded(self, draws: int) -> int:
        """Return the number of draws rounded up to whole passes over the examples."""
        n = len(self._targets)
        return math.ceil(draws / n) * n

    @torch.no_grad()
    def run(
        self, sigma: Sigma, draws: int, generator: torch.Generator, progress: Progress | None = None
    ) -> Draws:
        """Draw the head `rounded(draws)` times, each counted on one example."""
        (n, k), draws = self._logits.shape, self.rounded(draws)
        variance = torch.zeros_like(self._logits)
        if self._weight is not None:
            value = torch.as_tensor(sigma[self._weight]).to(self._square)
            full = value.expand(k, self._square.shape[1]) if value.ndim == 0 else value
            variance += self._square @ full.square().T
        if self._bias is not None:
            variance += torch.as_tensor(sigma[self._bias]).to(self._square).square()
        deviation, counts = variance.sqrt(), np.zeros((k, k))
        for _ in range(draws // n):
            noise = torch.randn((n, k), generator=generator, device=deviation.device, dtype=deviation.dtype)
            counts += _tally(self._logits + deviation * noise, self._targets)
        return Draws(counts, draws, n, 1, n)

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
        logits = logits_of(model, inputs)
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
