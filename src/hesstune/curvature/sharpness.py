"""Sharpness as in SAM: how much the mean loss rises by one step of length ρ up its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hesstune.curvature.arguments import LabelledBatch, limited
from hesstune.curvature.capture import restored
from hesstune.curvature.objective import Objective, PerExampleLoss
from hesstune.errors import ConfigError, DataError
from hesstune.forward import evaluating, logits_of, moved, named_parameters
from hesstune.runtime.sharding import gathered

__all__ = ["RHO", "Sharpness", "sam_sharpness"]

# Foret et al. 2021, section 3.1.
RHO = 0.05


@dataclass(frozen=True)
class Sharpness:
    """The rise of the mean loss by one step up its gradient.

    Attributes:
        value: ℓ(W + ρ·g/‖g‖) − ℓ(W), ℓ the mean loss over the examples and g its gradient; 0 where g is 0,
            NaN where g is not finite.
        rho: ρ, the length of the step, in units of the weights.
        gradient_norm: ‖g‖; to first order `value` is ρ‖g‖.
        examples: How many examples.
    """

    value: float
    rho: float
    gradient_norm: float
    examples: int


def sam_sharpness(
    model: nn.Module,
    batches: Iterable[LabelledBatch],
    rho: float = RHO,
    *,
    loss: str | PerExampleLoss = "cross_entropy",
    noise_matrix: Any = None,
    all_reduce_sum: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Sharpness:
    """Measure ℓ(W + ρ·g/‖g‖) − ℓ(W), the rise of the mean loss by SAM's one step of ascent.

    g is the gradient of the mean loss in all parameters that require one, also biases and norms. To first
    order in ρ the step reaches the maximum over the ball of radius ρ. Weights are changed in place and
    restored to the bit, also after an error. Source: Foret et al. 2021, equation 2.

    Args:
        model: The network; run in eval mode and left as it was. Sharded weights (FSDP2) are gathered on
            every process, which all call this.
        batches: Iterable of (inputs, targets), read twice: a list or a data loader, not a generator.
        rho: ρ, above 0.
        loss: `cross_entropy`, `consistent` (needs `noise_matrix`), or a callable (logits, targets) -> (B,).
        noise_matrix: As in `measure`.
        all_reduce_sum: Adds up a tensor over the processes that share the batches.

    Raises:
        ConfigError: If ρ is not above 0, `batches` can be read once only, or no parameter requires a
            gradient.
        DataError: If there are no examples.

    Example:
        >>> model = torch.nn.Linear(1, 2, bias=False).double()
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> found = sam_sharpness(model, [(torch.ones(4, 1).double(), torch.zeros(4, dtype=torch.long))])
        >>> round(found.gradient_norm, 4), round(found.value, 4)  # g = (−½, ½); log(1 + e^(ρ√2)) − log 2
        (0.7071, 0.036)
    """
    add = all_reduce_sum or (lambda values: values)
    objective = Objective(loss, noise_matrix)
    with gathered(model):  # parts of weights would have no gradient
        weights = _checked(model, batches, rho)
        with evaluating(model), torch.random.fork_rng(), torch.enable_grad(), restored(weights):
            before, examples, gradients = _gradients(model, batches, objective, weights)
            before, n = add(before), int(add(examples))
            if not n:
                raise DataError("there are no examples to measure: the batches are empty")
            gradients = {name: add(gradient) / n for name, gradient in gradients.items()}
            norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
            if not norm or not math.isfinite(norm):
                return Sharpness(0.0 if norm == 0 else math.nan, rho, norm, n)
            after = torch.zeros((), dtype=torch.float64)
            with torch.no_grad():
                for name, weight in weights.items():
                    weight.add_(gradients[name], alpha=rho / norm)
                for losses in _losses(model, batches, objective):
                    after += losses.double().sum().cpu()
        return Sharpness(float(add(after) - before) / n, rho, norm, n)


def _checked(model: nn.Module, batches: Iterable[LabelledBatch], rho: float) -> dict[str, nn.Parameter]:
    """Return what the step moves; raise ConfigError where an argument is wrong."""
    if not 0 < rho < math.inf:
        raise ConfigError(f"rho must be finite and above 0; got {rho}")
    if isinstance(batches, Iterator):
        raise ConfigError(
            f"batches are read twice, and a {type(batches).__name__} can be read once: give a list or a data "
            "loader"
        )
    weights = {name: p for name, p in named_parameters(model).items() if p.requires_grad}
    if not weights:
        raise ConfigError("no parameter of the model requires a gradient, so there is nothing to step along")
    return weights


def _gradients(
    model: nn.Module,
    batches: Iterable[LabelledBatch],
    objective: Objective,
    weights: Mapping[str, nn.Parameter],
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Return the sum of the losses, the number of examples, and the sum's gradient by weight."""
    total, examples = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64)
    gradients = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for losses in _losses(model, batches, objective):
        found = torch.autograd.grad(losses.sum(), list(weights.values()), allow_unused=True)
        for gradient, part in zip(gradients.values(), found, strict=True):
            if part is not None:
                gradient += part
        total += losses.detach().double().sum().cpu()
        examples += len(losses)
    return total, examples, gradients


def _losses(
    model: nn.Module, batches: Iterable[LabelledBatch], objective: Objective
) -> Iterator[torch.Tensor]:
    """Yield each batch's losses, (B,)."""
    device = next(model.parameters()).device
    for inputs, targets in limited(batches, None):
        yield objective(logits_of(model, moved(inputs, device)), torch.as_tensor(targets).to(device))
