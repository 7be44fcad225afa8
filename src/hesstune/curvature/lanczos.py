"""The smooth path: v_iᵀ H_i⁺ v_i and Tr H_i⁺ by Lanczos, for all examples of a batch at once.

If smooth operations follow a layer (GELU, softmax attention, layer norm), H_i has negative eigenvalues and
its positive part has no closed form. Lanczos needs only products with H_i.

The Hessian of Σ_batch ℓ in a layer's output z_i is block diagonal over examples, and H_i = A_iᵀ (∇²_{z_i} ℓ)
A_i with A_i: ΔW -> Δz_i. So one double backward pass to z_i gives each example its own product, and all
layers share the first backward pass. A layer without captured input is measured in weight space, example by
example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.autograd.graph import GradientEdge

from hesstune.curvature.batches import each_alone
from hesstune.curvature.capture import Capture, Interceptor
from hesstune.curvature.layers import CapturedLayer
from hesstune.curvature.objective import PerExampleLoss, stable_losses
from hesstune.curvature.quadrature import Krylov, Stopping
from hesstune.forward import Inputs, logits_of, named_parameters

# Relative to the largest squared singular value of the tokens: the image under A_i of the part of v that is
# left out is below 1e-6 of the largest possible one.
_RANK_TOLERANCE = 1e-12
# With a larger rank the eigenproblem of the tokens' span costs more than it saves.
_LARGEST_SPAN = 1024

# (layer, v) -> Lanczos started at v: the weight's shape, or one for each example, (B, *weight.shape).
KrylovSource = Callable[[str, torch.Tensor], Krylov]


@dataclass
class LanczosForms:
    """v_iᵀ H_i⁺ v_i of B examples and L layers, float64 on the CPU.

    Attributes:
        names: The L layers.
        quadratic: The estimate, (B, L): the harmonic mean of the bounds.
        lower: A lower bound, (B, L).
        upper: An upper bound, (B, L). Both hold in exact arithmetic, with an allowance for rounding.
    """

    names: list[str]
    quadratic: torch.Tensor
    lower: torch.Tensor
    upper: torch.Tensor

    @classmethod
    def joined(cls, parts: Sequence[LanczosForms]) -> LanczosForms:
        """Join the forms of several batches, of the same layers."""
        fields = ("quadratic", "lower", "upper")
        return cls(parts[0].names, *(torch.cat([getattr(part, field) for part in parts]) for field in fields))


@dataclass
class Traces:
    """Tr H_i⁺ of B examples and L layers, float64 on the CPU.

    Attributes:
        names: The L layers.
        value: The trace, (B, L): exact, or an estimate.
        stderr: Its standard error over the probes, (B, L); 0 if the trace is exact.
    """

    names: list[str]
    value: torch.Tensor
    stderr: torch.Tensor


class LayerProducts:
    """Products with ∇²_{z_i} ℓ for the named captured layers of one forward pass of B examples."""

    def __init__(
        self, captured: Capture, targets: torch.Tensor, loss: PerExampleLoss, names: Sequence[str]
    ) -> None:
        self.layers = {name: captured.layers[name] for name in names}
        losses = stable_losses(loss, captured.logits, targets)
        self._edges = {name: layer.edge for name, layer in self.layers.items()}
        self._slopes: dict[str, torch.Tensor | None] = dict.fromkeys(self.layers)
        if losses.requires_grad:  # otherwise it depends on none of the layers
            slopes = _gradients([losses.sum()], list(self._edges.values()), create_graph=True)
            self._slopes = dict(zip(self.layers, slopes, strict=True))
        self._live: dict[str, torch.Tensor] | None = None

    def product(self, name: str, tangent: torch.Tensor) -> torch.Tensor:
        """Return ∇²_{z_i} ℓ · tangent, both raw outputs of the layer."""
        slope = self._slopes[name]
        if slope is None or not slope.requires_grad:  # the loss is linear in z_i
            return torch.zeros_like(tangent)
        # The second derivative of a convolution is wrong if the seed of a single example has unusual strides.
        seed = torch.empty_like(slope).copy_(tangent)
        found = _gradients([slope], [self._edges[name]], [seed])[0]
        return torch.zeros_like(tangent) if found is None else found

    def krylov(self, name: str, delta: torch.Tensor) -> Krylov:
        """Start Lanczos at v = delta, in an orthonormal basis of the layer's inputs.

        H_i = A_iᵀ M A_i with M = ∇²_{z_i} ℓ, so only v's part in the span of the live tokens a_t counts.
        Without the other part the value is the same, the vectors are shorter, and the bracket is narrower,
        because all its weight is at λ = 0, which the moments alone do not show.
        """
        layer = self.layers[name]
        with torch.no_grad():
            if layer.kind != "conv_transpose" and span_is_affordable(layer):
                return _token_space(partial(self.product, name), layer, delta, self._live_tokens(layer))
            return _weight_space(partial(self.product, name), layer, delta)

    def _live_tokens(self, layer: CapturedLayer) -> torch.Tensor:
        """Tell on which tokens the loss depends, (B, G, T): it does not depend on masked padding.

        By one product with a random tangent at all layers: a token with nonzero rows of the Hessian gets an
        exact zero with probability 0.
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


class WeightProducts:
    """Products with H_i of a layer without captured input: tied, shared, or used functionally.

    One double backward pass to the weight for each example. Call it inside `differentiable(model, [name])`.
    """

    def __init__(
        self, model: nn.Module, inputs: Inputs, targets: torch.Tensor, loss: PerExampleLoss, name: str
    ) -> None:
        self._weight = named_parameters(model)[name]
        self._slopes: list[torch.Tensor] = []
        for row, one in each_alone(inputs):
            with Interceptor(model):
                logits = logits_of(model, one)
            value = stable_losses(loss, logits, targets[row : row + 1])
            slope = None
            if value.requires_grad:
                total = value.sum()
                slope = torch.autograd.grad(total, self._weight, create_graph=True, allow_unused=True)[0]
            self._slopes.append(torch.zeros_like(self._weight) if slope is None else slope)

    def krylov(self, delta: torch.Tensor) -> Krylov:
        """Start Lanczos at v = delta in weight space."""
        shape = (len(self._slopes), *self._weight.shape)
        return Krylov(self._hessian_products, delta.to(self._weight.dtype).expand(shape).flatten(1))

    def hutchinson(self, probes: int, generator: torch.Generator) -> torch.Tensor:
        """Return Σ_examples zᵀ H_i z for Gaussian z, (probes,) float64, with mean Σ Tr H_i."""
        found = []
        for _ in range(probes):
            probe = torch.randn(self._weight.shape, generator=generator, dtype=torch.float64)
            each = probe.to(self._weight).flatten().expand(len(self._slopes), -1)
            found.append((each * self._hessian_products(each)).double().sum().cpu())
        return torch.stack(found)

    def _hessian_products(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([self._hessian_product(s, v) for s, v in zip(self._slopes, x, strict=True)])

    def _hessian_product(self, slope: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        if not slope.requires_grad:
            return torch.zeros_like(vector)
        seed = vector.view_as(self._weight)
        found = torch.autograd.grad(slope, self._weight, seed, retain_graph=True, allow_unused=True)[0]
        return torch.zeros_like(vector) if found is None else found.flatten()


def lanczos_forms(
    source: KrylovSource, deltas: Mapping[str, torch.Tensor], stopping: Stopping
) -> LanczosForms:
    """Compute v_iᵀ H_i⁺ v_i of every example of one source, for v_i by layer name, in their order."""
    brackets = [stopping.run(source(name, delta)) for name, delta in deltas.items()]
    columns = (torch.stack([getattr(b, key) for b in brackets], 1) for key in ("value", "lower", "upper"))
    return LanczosForms(list(deltas), *columns)


def quadrature_traces(
    sources: Iterable[AbstractContextManager[KrylovSource]],
    weights: Mapping[str, torch.Tensor],
    batched: Sequence[str],
    stopping: Stopping,
    probes: int,
    seed: int,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Estimate Tr H_i⁺, the mean of zᵀ H_i⁺ z over z ~ N(0, I), by stochastic Lanczos quadrature.

    Source: Ubaru, Chen & Saad, 2017. A layer's probes depend on the seed and its place alone.

    Args:
        sources: The sources of the parts of a batch.
        weights: By layer name.
        batched: The layers that have one graph for all examples.
        stopping: When each probe's recurrence stops.
        probes: How many, at least 2.
        seed: Of the probes.

    Returns:
        The mean over the probes and its standard error, (B,) each, layer by layer.
    """
    places = {name: place for place, name in enumerate(n for n in batched if n in weights)}

    def probes_of(name: str) -> Iterator[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + places[name] if name in places else seed)
        for _ in range(probes):
            z = torch.randn(weights[name].shape, generator=generator, dtype=torch.float64)
            yield z.to(weights[name])

    found: dict[str, list[torch.Tensor]] = {name: [] for name in weights}
    for opened in sources:
        with opened as source:
            for name, values in found.items():
                values.append(torch.stack([stopping.run(source(name, z)).value for z in probes_of(name)]))
    columns = []
    for name, values in found.items():
        # The last digit of a mean depends on how many examples are averaged at once: those that share a
        # graph.
        together = values if name in places else [torch.cat(values, 1)]
        errors = [part.std(0) / probes**0.5 for part in together]
        columns.append((torch.cat([part.mean(0) for part in together]), torch.cat(errors)))
    return columns


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
    """Start Lanczos on the layer's weights, v = delta."""
    shape = (layer.examples, *layer.weight.shape)

    def product(x: torch.Tensor) -> torch.Tensor:
        tangent = layer.apply_each(x.reshape(shape))
        return layer.pullback(curvature(tangent)).flatten(1)

    start = delta.to(layer.weight.dtype).expand(shape).flatten(1)
    return Krylov(product, start)


def span_is_affordable(layer: CapturedLayer) -> bool:
    """Tell whether the eigenproblem of the tokens' span costs less than it saves."""
    _, tokens, inputs, _ = layer.counts()
    return min(tokens, inputs) <= _LARGEST_SPAN


def _token_space(
    curvature: Callable[[torch.Tensor], torch.Tensor],
    layer: CapturedLayer,
    delta: torch.Tensor,
    live: torch.Tensor,
) -> Krylov:
    """Start Lanczos in an orthonormal basis Q of the live tokens' span, A = R Qᵀ: H = Q (Rᵀ M R) Qᵀ.

    `curvature` is the product with M = ∇²_{z_i} ℓ, raw output to raw output. `live`, (B, G, T) bool, are the
    tokens that the loss depends on.
    """
    places, tokens = _gathered(layer.tokens().double(), live)
    factor, basis = _orthonormal(tokens)
    start = (_matrices(layer, delta.double()) @ basis).mT  # vQ, (B, G, r, O/G)
    rank = basis.shape[-1]
    mapping = torch.zeros(*live.shape, rank, dtype=layer.weight.dtype, device=live.device)
    mapping.scatter_(2, places.expand(-1, -1, -1, rank), factor.to(mapping.dtype))

    def product(x: torch.Tensor) -> torch.Tensor:
        tangent = layer.from_output_tokens(mapping @ x.view(start.shape))
        return (mapping.mT @ layer.output_tokens(curvature(tangent))).flatten(1)

    return Krylov(product, start.flatten(1).to(layer.weight.dtype))


def _orthonormal(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Factor A, (B, G, T, I), into R (B, G, T, r) and Q (B, G, I, r), A = R Qᵀ; spare columns of Q are 0.

    Through the smaller one of A Aᵀ = V Σ Vᵀ (R = V √Σ, Q = Aᵀ V / √Σ) and AᵀA = Q Σ Qᵀ (R = A Q).
    """
    fewer_tokens = tokens.shape[2] <= tokens.shape[3]
    values, vectors = torch.linalg.eigh(tokens @ tokens.mT if fewer_tokens else tokens.mT @ tokens)
    kept = values > _RANK_TOLERANCE * values[..., -1:]
    rank = max(1, int(kept.sum(-1).max()))
    values, kept = values[..., -rank:].unsqueeze(-2), kept[..., -rank:].unsqueeze(-2)
    vectors = vectors[..., -rank:] * kept
    if not fewer_tokens:
        return tokens @ vectors, vectors
    roots = values.clamp_min(0).sqrt()
    return vectors * roots, tokens.mT @ (vectors * torch.where(kept, 1 / roots, 0.0))


def _gathered(tokens: torch.Tensor, live: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the places of the live tokens, (B, G, T', 1), and these tokens; others in T' are set to 0."""
    count = max(1, int(live.sum(-1).max()))
    order = torch.argsort(live.to(torch.int8), dim=2, descending=True, stable=True)
    places = order[..., :count].unsqueeze(-1)
    found = tokens.gather(2, places.expand(-1, -1, -1, tokens.shape[3]))
    return places, found * live.unsqueeze(-1).gather(2, places)


def _matrices(layer: CapturedLayer, delta: torch.Tensor) -> torch.Tensor:
    """View weights as (B or 1, G, O/G, I): what `layer.tokens()` are multiplied by."""
    each = delta if delta.ndim > layer.weight.ndim else delta.unsqueeze(0)
    if layer.transposed:
        each = each.mT
    groups = layer.counts()[0]
    return each.reshape(each.shape[0], groups, each.shape[1] // groups, -1)
