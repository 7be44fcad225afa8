"""NSO: the mean of the gradients at w + U and w − U, U ~ N(0, σ²I): descent on E ℓ(w + U).

The smoothed loss is ℓ + σ²/2·Tr H to second order, so the trace of the Hessian is regularised.
Source: Zhang, Li, Ju 2024, algorithm 1 with one two-point perturbation; σ = 0.01 within their range.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch

from hesstune.forward import unmoved_statistics
from hesstune.methods._base import Method, T
from hesstune.methods._setup import Option


class NSO(Method):
    """Cross-entropy by noise-stability optimisation; two backward passes a step."""

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


METHOD = NSO
