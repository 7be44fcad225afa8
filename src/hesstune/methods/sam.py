"""SAM: the gradient at w + ρ·g/‖g‖, the worst point of a small ball, instead of the one at w.

Source: Foret et al. 2021, equation 2 and algorithm 1; ρ = 0.05. Two backward passes a step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from hesstune.methods._base import Method, Option, T


class SAM(Method):
    """Cross-entropy by sharpness-aware minimisation, with any optimizer."""

    own_options = {"rho": Option(0.05, "Foret et al. 2021, section 3.1", search=(0.01, 0.5), log=True)}

    @torch.no_grad()
    def gradients(self, compute: Callable[[], T]) -> T:
        """Climb to the worst point of the ball, take the gradient there, come back."""
        with torch.enable_grad():
            result = compute()
        parameters = [p for p in self.setup.network.parameters() if p.grad is not None]
        start = [p.clone() for p in parameters]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.stack(torch._foreach_norm(gradients)).norm().clamp_min(1e-12)
        for p, gradient in zip(parameters, gradients, strict=True):
            p.add_(gradient * (self.options["rho"] / norm))
        with torch.enable_grad():
            compute()
        for p, before in zip(parameters, start, strict=True):
            p.copy_(before)
        return result


METHOD = SAM
