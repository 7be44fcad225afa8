"""Check the backward passes of custom autograd functions: are they derivatives, and differentiable again?"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from hesstune.errors import MeasureError, listed
from hesstune.forward import Inputs, logits_of, named_parameters

__all__ = ["refuse_false_gradients"]

# How far a weight is moved for a difference quotient, as a share of its norm. Over the long step the jumps of
# a rounded value may add up to the slope by chance.
_STEP, _SHORT_STEP = 1e-2, 1e-3
_SAME_SLOPE = 0.1
_SAME_CURVATURE = 0.25
# Smaller differences, as a share of the values themselves, may be rounding.
_ROUNDING = 1e-5
# Curvature that changes the gradient by a smaller share, over a step as long as the weight, is not compared.
_LEAST_CURVATURE = 0.05


def refuse_false_gradients(
    model: nn.Module, probe: Inputs, custom: Mapping[str, str], has_kinks: bool
) -> None:
    """Refuse layers for which double backward is not the second derivative.

    A `torch.autograd.Function` may approximate its gradient (YOSO), replace it (straight-through gradients of
    quantised networks), compute it without a graph, or keep intermediate results that a second derivative
    takes for constants. Of c·f, a random combination c of the logits, three things are compared for each
    layer, with a step along its gradient: the gradient with a difference quotient; the gradient with itself
    differentiated by c, in which it is linear; and the second derivative with a difference quotient, in
    networks without kinks.

    Args:
        model: The network.
        probe: A few examples.
        custom: By layer, the function that comes after its weight; other layers are not checked.
        has_kinks: Whether gradients may jump.

    Raises:
        MeasureError: If they differ at a layer; the message names the layers and functions.
    """
    if not custom:
        return
    weights = {name: weight for name, weight in named_parameters(model).items() if name in custom}
    combined = _Combined(model, probe)
    gradients = combined.gradients(list(weights.values()))
    wrong = [
        name
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
        if gradient is not None
        and bool(gradient.detach().any())
        and not combined.agrees(weight, gradient, has_kinks)
    ]
    if wrong:
        kinds = listed(dict.fromkeys(custom[name] for name in wrong))
        raise MeasureError(
            f"differentiating {kinds} twice does not give the second derivative (its backward pass is an "
            f"approximation, or not differentiable itself), so {listed(wrong)} cannot be measured; leave "
            "these layers out with layers="
        )


class _Combined:
    """c·f, summed over a few examples, as a function of one weight."""

    def __init__(self, model: nn.Module, probe: Inputs) -> None:
        self._model, self._probe = model, probe
        logits = logits_of(model, probe)
        generator = torch.Generator().manual_seed(0)
        c = torch.randn(logits.shape, generator=generator, dtype=torch.float64).to(logits)
        self._c = c.requires_grad_()
        self._start = (logits * self._c).sum()

    def gradients(self, weights: list[nn.Parameter]) -> tuple[torch.Tensor | None, ...]:
        return torch.autograd.grad(self._start, weights, create_graph=True, allow_unused=True)

    def agrees(self, weight: nn.Parameter, gradient: torch.Tensor, has_kinks: bool) -> bool:
        known = gradient.detach()
        unit = known * (weight.detach().norm() / known.norm())
        slope = float((known * unit).sum())
        for length in (_SHORT_STEP, _STEP):
            rise, turn = self._changes(weight, length * unit)
            rounding = _ROUNDING * abs(float(self._start.detach()))
            if abs(rise - length * slope) > max(_SAME_SLOPE * length * abs(slope), rounding):
                return False
        by_c, product = self._second(gradient, _STEP * unit, weight)
        if abs(float((by_c * self._c.detach()).sum()) - _STEP * slope) > _SAME_SLOPE * _STEP * abs(slope):
            return False
        least = _LEAST_CURVATURE * _STEP * known.norm()
        largest = torch.max(turn.norm(), product.norm())
        return has_kinks or bool((turn - product).norm() <= _SAME_CURVATURE * largest + least)

    def _changes(self, weight: nn.Parameter, step: torch.Tensor) -> tuple[float, torch.Tensor]:
        """Return half the change of the value and of its gradient from weight − step to weight + step."""
        kept = weight.detach().clone()
        values, gradients = [], []
        try:
            for sign in (1, -1):
                # Unseen by autograd, which holds the weight in the graph of the first gradients.
                weight.data.copy_(kept + sign * step)
                value = (logits_of(self._model, self._probe) * self._c).sum()
                values.append(float(value.detach()))
                gradients.append(torch.autograd.grad(value, weight)[0].detach())
        finally:
            weight.data.copy_(kept)
        return (values[0] - values[1]) / 2, (gradients[0] - gradients[1]) / 2

    def _second(
        self, gradient: torch.Tensor, step: torch.Tensor, weight: nn.Parameter
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the derivatives of ⟨gradient, step⟩ by c and by the weight; zeros where there are none."""
        none = torch.zeros_like(self._c), torch.zeros_like(weight)
        slope = (gradient * step).sum()
        if not slope.requires_grad:
            return none
        try:
            by_c, product = torch.autograd.grad(
                slope, [self._c, weight], retain_graph=True, allow_unused=True, materialize_grads=True
            )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # once_differentiable
            return none
        return by_c.detach(), product.detach()
