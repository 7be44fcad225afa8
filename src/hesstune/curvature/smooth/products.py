"""Hessian-vector products of every example and layer of a batch from one retained graph.

The Hessian of Σ_batch ℓ in a layer's output z_i is block diagonal over examples (eval mode), and
H_i = A_iᵀ (∇²_{z_i} ℓ) A_i with A_i: ΔW -> Δz_i. So one double backward gives each example its own
product, it starts and ends at z_i, and weights take no part in it. The first backward pass is
shared by all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch.autograd.graph import GradientEdge

from hesstune.curvature.capture import Capture
from hesstune.curvature.layers import CapturedLayer
from hesstune.curvature.objective import PerExampleLoss
from hesstune.curvature.smooth.losses import stable_losses
from hesstune.curvature.smooth.quadrature import Krylov
from hesstune.curvature.smooth.token_space import span_is_affordable, token_space

__all__ = ["LayerProducts"]


class LayerProducts:
    """Products with ∇²_{z_i} ℓ for every captured layer of one forward pass of B examples.

    Args:
        captured: From `capture`, inside `differentiable`.
        targets: Whatever `loss` takes, batch first.
        loss: (logits (B, K), targets) -> (B,), each entry of its own example alone.
        names: The layers whose products will be asked for.
    """

    def __init__(
        self, captured: Capture, targets: torch.Tensor, loss: PerExampleLoss, names: Sequence[str]
    ) -> None:
        self.layers = {name: captured.layers[name] for name in names}
        losses = stable_losses(loss, captured.logits, targets)
        self._edges = {name: layer.edge for name, layer in self.layers.items()}
        self._slopes: dict[str, torch.Tensor | None] = dict.fromkeys(self.layers)
        if losses.requires_grad:  # otherwise it depends on none of them
            slopes = _gradients([losses.sum()], list(self._edges.values()), create_graph=True)
            self._slopes = dict(zip(self.layers, slopes, strict=True))
        self._live: dict[str, torch.Tensor] | None = None

    def product(self, name: str, tangent: torch.Tensor) -> torch.Tensor:
        """Return ∇²_{z_i} ℓ · tangent, both raw outputs of the layer."""
        slope = self._slopes[name]
        if slope is None or not slope.requires_grad:  # the loss is linear in z_i
            return torch.zeros_like(tangent)
        # Convolutions differentiate wrongly twice where the seed of a single example has odd strides.
        seed = torch.empty_like(slope).copy_(tangent)
        found = _gradients([slope], [self._edges[name]], [seed])[0]
        return torch.zeros_like(tangent) if found is None else found

    def krylov(self, name: str, delta: torch.Tensor) -> Krylov:
        """Start Lanczos at v = delta, in an orthonormal basis of the layer's inputs.

        H_i = A_iᵀ M A_i with M = ∇²_{z_i} ℓ, so H_i⁺ sees only v's part in the span of the layer's
        inputs a_t, the tokens that M knows of. Leaving the rest out changes no value, makes the
        vectors shorter, and narrows the bracket: the rest is weight at λ = 0 that the moments
        alone cannot place.
        """
        layer = self.layers[name]
        with torch.no_grad():
            if layer.kind != "conv_transpose" and span_is_affordable(layer):
                return token_space(partial(self.product, name), layer, delta, self._live_tokens(layer))
            return _weight_space(partial(self.product, name), layer, delta)

    def _live_tokens(self, layer: CapturedLayer) -> torch.Tensor:
        """Tell which tokens the loss depends on at all, (B, G, T): padding behind a mask is not live.

        One product with a random tangent at every layer at once: a token whose rows of the whole
        Hessian are not zero gets an exact zero there with probability 0.
        """
        if self._live is None:
            generator = torch.Generator().manual_seed(0)
            slopes = {n: s for n, s in self._slopes.items() if s is not None and s.requires_grad}
            probes = [
                torch.empty_like(s).copy_(torch.randn(s.shape, generator=generator)) for s in slopes.values()
            ]
            found = _gradients(list(slopes.values()), [self._edges[n] for n in slopes], probes)
            self._live = {
                n: self.layers[n].output_tokens(g).ne(0).any(-1)
                for n, g in zip(slopes, found, strict=True)
                if g is not None
            }
        live = self._live.get(layer.name)
        if live is None:
            live = torch.zeros(layer.tokens().shape[:3], dtype=torch.bool, device=layer.input.device)
        return live


def _gradients(
    outputs: Sequence[torch.Tensor],
    edges: Sequence[GradientEdge],
    seeds: Sequence[torch.Tensor] | None = None,
    create_graph: bool = False,
) -> Sequence[torch.Tensor | None]:
    if not edges:
        return ()
    return torch.autograd.grad(
        outputs, edges, seeds, retain_graph=True, create_graph=create_graph, allow_unused=True
    )


def _weight_space(
    curvature: Callable[[torch.Tensor], torch.Tensor], layer: CapturedLayer, delta: torch.Tensor
) -> Krylov:
    shape = (layer.examples, *layer.weight.shape)

    def product(x: torch.Tensor) -> torch.Tensor:
        tangent = layer.apply_each(x.reshape(shape))
        return layer.pullback(curvature(tangent)).flatten(1)

    start = delta.to(layer.weight.dtype).expand(shape).flatten(1)
    return Krylov(product, start)
