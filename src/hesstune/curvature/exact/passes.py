"""Backward passes to the layers' outputs, and what is accumulated from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from hesstune.curvature.exact.forms import LogitForms
from hesstune.curvature.layers import CapturedLayer

__all__ = ["Passes", "sources"]


class Passes:
    """Backward passes to the layer outputs, and what is accumulated from them.

    Args:
        logits: With their graph, (B, K).
        layers: The L layers.
        changes: D_i of each, raw outputs; None where the layer has not moved.
        trace: Whether Σ_k q_k ‖J_iᵀ s_k‖² is accumulated, too.
        spectrum: Whether all gradients are kept for the eigenvalues.
    """

    def __init__(
        self,
        logits: torch.Tensor,
        layers: Sequence[CapturedLayer],
        changes: Sequence[torch.Tensor | None],
        *,
        trace: bool,
        spectrum: bool,
    ) -> None:
        self._logits, self._layers, self._changes = logits, layers, changes
        self._norms = trace and not spectrum
        self._keep = spectrum
        for layer in layers:
            layer.keeps_tokens |= self._norms  # each of the K − 1 passes needs them
        shape = (logits.shape[0], len(layers))
        self._quadratic = torch.zeros(shape, dtype=torch.float64, device=logits.device)
        self._trace = torch.zeros_like(self._quadratic) if trace else None
        self._kept: list[list[torch.Tensor]] = [[] for _ in layers]
        self._roots: list[torch.Tensor] = []
        self._u: list[torch.Tensor | None] = []
        self._squares: list[torch.Tensor | None] = []
        self._sources = sources(layers)
        self.taken = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Use each gradient as soon as it is there; passes are taken inside."""
        # A node's pre-hook sees the gradient of its output and lets it be freed at once; only the
        # layers that no other layer feeds are not executed, so theirs are returned.
        handles = []
        for index, layer in enumerate(self._layers):
            if index not in self._sources:
                handles.append(layer.edge.node.register_prehook(self._hook(index, layer.edge.output_nr)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, index: int, output: int) -> Callable[..., None]:
        def hook(gradients: tuple[torch.Tensor | None, ...]) -> None:
            gradient = gradients[output]
            if gradient is not None:
                self._use(index, gradient)

        return hook

    @torch.no_grad()
    def _use(self, index: int, gradient: torch.Tensor) -> None:
        layer, change = self._layers[index], self._changes[index]
        if change is not None:
            self._u[index] = layer.inner(gradient, change)
        if self._norms:
            self._squares[index] = _square_norm(layer, gradient)
        if self._keep:
            self._kept[index].append(gradient)

    def products(self, seed: torch.Tensor) -> torch.Tensor:
        """Take one pass with a seed of (B, K); return ⟨J_iᵀ s, v_i⟩ of every example and layer, (B, L)."""
        self._u = [None] * len(self._layers)
        self._squares = [None] * len(self._layers)
        if self._logits.requires_grad:  # otherwise they depend on none of the layers
            edges = [self._layers[i].edge for i in self._sources]
            gradients = torch.autograd.grad(self._logits, edges, seed, retain_graph=True, allow_unused=True)
            for index, gradient in zip(self._sources, gradients, strict=True):
                if gradient is not None:
                    self._use(index, gradient)
        self.taken += 1
        return self._stacked(self._u)

    def _stacked(self, values: Sequence[torch.Tensor | None]) -> torch.Tensor:
        zero = self._logits.new_zeros(self._logits.shape[0])
        return torch.stack([zero if v is None else v.to(zero.device) for v in values], dim=1).double()

    def terms(self, seed: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Take one pass; return q_k ⟨J_iᵀ s_k, v_i⟩² and q_k ‖J_iᵀ s_k‖², (B, L), without adding them."""
        product = weight[:, None] * self.products(seed).square()
        return product, weight[:, None] * self._stacked(self._squares) if self._norms else None

    def add(self, seed: torch.Tensor, weight: torch.Tensor) -> None:
        """Take one pass, s_k of (B, K) and q_k of (B,), and add what it gives."""
        product, norm = self.terms(seed, weight)
        self._quadratic += product
        self._roots.append(weight.sqrt())
        if norm is not None and self._trace is not None:
            self._trace += norm

    @torch.no_grad()
    def forms(self) -> LogitForms:
        """Return what was added up so far; it is exact once all K − 1 passes were taken."""
        trace, spectrum = self._trace, None
        if self._keep:
            roots = torch.stack(self._roots, 1)  # (B, K − 1)
            values = []
            for layer, kept in zip(self._layers, self._kept, strict=True):
                gram = _gradient_gram(layer, kept).double().to(roots.device)
                gram = gram * roots[:, :, None] * roots[:, None, :]
                values.append(torch.linalg.eigvalsh(gram).clamp(min=0).flip(1))
            spectrum = torch.stack(values, 1)
            trace = spectrum.sum(2)
        q = self._quadratic
        return LogitForms(q, q, q, trace, spectrum, self.taken)


def _square_norm(layer: CapturedLayer, gradient: torch.Tensor) -> torch.Tensor:
    """Return ‖Σ_t g_t a_tᵀ‖² of every example, (B,)."""
    if layer.prefers_gram():
        tokens = layer.output_tokens(gradient)
        return ((layer.gram() @ tokens) * tokens).flatten(1).sum(1)
    return layer.pullback(gradient).flatten(1).square().sum(1)


def _gradient_gram(layer: CapturedLayer, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return ⟨J_iᵀ s_k, J_iᵀ s_l⟩ of every example, (B, K − 1, K − 1)."""
    if layer.prefers_gram():
        tokens = [layer.output_tokens(g) for g in gradients]
        gram = layer.gram()
        left = torch.stack([(gram @ t).flatten(1) for t in tokens], 1)
        right = torch.stack([t.flatten(1) for t in tokens], 1)
        product = left @ right.transpose(1, 2)
        return (product + product.transpose(1, 2)) / 2
    rows = torch.stack([layer.pullback(g).flatten(1) for g in gradients], 1)
    return rows @ rows.transpose(1, 2)


def sources(layers: Sequence[CapturedLayer]) -> list[int]:
    """Return the layers whose input depends on no other layer of the list."""
    nodes = {layer.edge.node for layer in layers}
    found = []
    for index, layer in enumerate(layers):
        stack = [node for node, _ in layer.edge.node.next_functions if node is not None]
        seen = set()
        while stack:
            node = stack.pop()
            if node in nodes:
                break
            if node not in seen:
                seen.add(node)
                stack += [n for n, _ in node.next_functions if n is not None]
        else:
            found.append(index)
    return found
