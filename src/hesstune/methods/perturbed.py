"""Methods whose gradient is taken at perturbed weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch

from hesstune.forward import unmoved_statistics
from hesstune.methods._base import Method, MethodSetup, Option, T


class SAM(Method):
    """SAM: the gradient at w + ρ·g/‖g‖, the worst point within the radius ρ, instead of the one at w.

    Source: Foret et al. 2021, equation 2 and algorithm 1; ρ = 0.05. Two backward passes a step, the first
    of which alone moves batch-norm statistics. One change:
    a head that starts from zero stays where it is while the layers below it climb. ρ up the loss turns a
    small head round, and the layers below would learn under the head turned round: they lose their features.
    """

    own_options = {"rho": Option(0.05, "Foret et al. 2021, section 3.1", search=(0.01, 0.5), log=True)}

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        below = {id(p) for name, p in setup.trained.items() if not setup.in_head(name)}
        at_zero = all(
            not setup.reference[name].any()
            for name in setup.trained
            if setup.in_head(name) and name in setup.reference
        )
        self._climbing = below if below and at_zero else {id(p) for p in setup.trained.values()}

    @torch.no_grad()
    def gradients(self, compute: Callable[[], T]) -> T:
        """Take the gradient at the worst point within the radius."""
        with torch.enable_grad():
            result = compute()
        parameters = [p for p in self.setup.network.parameters() if self._climbs(p)]
        start = [p.clone() for p in parameters]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.stack(torch._foreach_norm(gradients)).norm().clamp_min(1e-12)
        for p, gradient in zip(parameters, gradients, strict=True):
            p.add_(gradient * (self.options["rho"] / norm))
        with torch.enable_grad(), unmoved_statistics(self.setup.network):
            compute()
        for p, before in zip(parameters, start, strict=True):
            p.copy_(before)
        return result

    def _climbs(self, parameter: torch.nn.Parameter) -> bool:
        return parameter.grad is not None and id(parameter) in self._climbing


class NSO(Method):
    """NSO: the mean of the gradients at w + U and w − U, U ~ N(0, σ²I): descent on E ℓ(w + U).

    The smoothed loss is ℓ + σ²/2·Tr H to second order, so the trace of the Hessian is regularised.
    Source: Zhang, Li, Ju 2024, algorithm 1 with one two-point perturbation; σ = 0.01 within their range.
    """

    own_options = {"sigma": Option(0.01, "Zhang, Li, Ju 2024, experiments", search=(1e-3, 0.1), log=True)}

    @torch.no_grad()
    def gradients(self, compute: Callable[[], T]) -> T:
        """Average the gradients at two opposite perturbations."""
        parameters = [p for p in self.setup.network.parameters() if p.requires_grad]
        start = [p.clone() for p in parameters]
        noise = [self.options["sigma"] * torch.randn_like(p) for p in parameters]
        sums = [torch.zeros_like(p) for p in parameters]
        results: list[T] = []
        for sign in (1.0, -1.0):
            for p, before, step in zip(parameters, start, noise, strict=True):
                p.copy_(before + sign * step)
            # Statistics move once a step, as by a method of one pass.
            still = unmoved_statistics(self.setup.network) if results else nullcontext()
            with torch.enable_grad(), still:
                results.append(compute())
            for total, p in zip(sums, parameters, strict=True):
                if p.grad is not None:
                    total.add_(p.grad, alpha=0.5)
        for p, before, total in zip(parameters, start, sums, strict=True):
            p.copy_(before)
            p.grad = total
        return results[0]


METHODS = {"sam": SAM, "nso": NSO}
