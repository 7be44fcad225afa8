"""The exact path: v_iᵀ H_i⁺ v_i of all layers and all examples of a batch from K − 1 backward passes.

Where everything after layer i is piecewise linear and W_i is used once, f is piecewise linear in
W_i, so H_i = H_i⁺ = J_iᵀ Λ J_i with Λ = diag(p) − p pᵀ, J_i = ∂f/∂vec(W_i). Write q for the
probabilities of the K − 1 classes other than the likeliest one, t. In the coordinates e_k − e_t,
Λ is diag(q) − q qᵀ = B Bᵀ with the columns

    b_k = √q_k · s_k,    s_k = (e_k − e_t) − γ Σ_j q_j (e_j − e_t),    γ = 1 / (1 + √p_t),

since (I − γ √q√qᵀ)² = I − √q√qᵀ. So v_iᵀ H_i v_i = Σ_k q_k ⟨J_iᵀ s_k, v_i⟩² and
Tr H_i = Σ_k q_k ‖J_iᵀ s_k‖²: sums of non-negative terms, with nothing to cancel on fitted examples
(1 − p_t tiny), K − 1 backward passes, and every partial sum a lower bound. Each example takes its
classes in the order of its own probabilities, so the largest terms usually come first.

⟨J_iᵀ s, v_i⟩ = ⟨∂(sᵀf)/∂z_i, D_i⟩ with D_i = (W_i − W_i⁽ˢ⁾)·a_i: the passes go to the layer
outputs z_i only, never to weights, and each gradient is used and dropped as soon as it is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.autograd.forward_ad as forward_ad
from torch import nn

from hesstune.curvature.capture import Capture, capture
from hesstune.curvature.layers import CapturedLayer, Layout
from hesstune.forward import Inputs

__all__ = ["ExactForms", "LogitFactor", "exact_by_forward_mode", "exact_forms", "sources"]

# Gaussian probes of the skipped classes.
_PROBES = 4
# The probability that the bound of an entry fails, over all looks at it together.
_FAILS = 0.01


def _probe_factor(look: int) -> float:
    """Return the factor between the probes' mean square and a bound at the look-th look, from 0.

    The bound is looked at again after further passes, until it is small enough, so each look has a share of
    what may fail: 1/2, 1/4, …. The mean square of m probes is χ²_m/m times the truth.
    """
    from scipy.special import gammaincinv

    return _PROBES / (2 * float(gammaincinv(_PROBES / 2, _FAILS * 0.5 ** (look + 1))))


@dataclass
class ExactForms:
    """Forms of J_iᵀ Λ J_i for B examples and L layers, in float64.

    Attributes:
        quadratic: v_iᵀ H_i v_i, (B, L).
        lower: A bound from below, (B, L): equal to `quadratic` unless classes were skipped.
        upper: A bound from above, (B, L): likewise; with skipped classes it holds with probability
            99 % an entry.
        trace: Tr H_i, (B, L), or None.
        spectrum: The K − 1 largest eigenvalues of H_i, descending, (B, L, K − 1), or None; the others are 0.
        passes: How many backward (or forward-mode) passes were taken.
    """

    quadratic: torch.Tensor
    lower: torch.Tensor
    upper: torch.Tensor
    trace: torch.Tensor | None
    spectrum: torch.Tensor | None
    passes: int


class LogitFactor:
    """The factor B of Λ = B Bᵀ for a batch of logits, one scaled column s_k at a time.

    Args:
        logits: (B, K).
    """

    def __init__(self, logits: torch.Tensor) -> None:
        log_p = torch.log_softmax(logits.detach().double(), dim=1)
        self.order = log_p.argsort(dim=1, descending=True, stable=True)
        self._top = self.order[:, :1]
        self._q = log_p.exp().scatter(1, self._top, 0.0)
        top_p = log_p.gather(1, self._top).exp()
        self._gamma = 1 / (1 + top_p.sqrt())
        self.sorted_q = self._q.gather(1, self.order[:, 1:])
        self._dtype = logits.dtype

    @property
    def columns(self) -> int:
        """K − 1."""
        return self.sorted_q.shape[1]

    def seed(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return s_k, (B, K), and q_k, (B,), of each example's class of that rank."""
        coefficients = torch.zeros_like(self._q)
        coefficients.scatter_(1, self.order[:, rank + 1, None], 1.0)
        return self._combined(coefficients), self.sorted_q[:, rank]

    def probe(self, start: int, normals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return one random combination of all columns from rank `start` on, scaled, and its weight.

        The expected squared product with it, times the weight, is the sum over those classes.

        Args:
            start: The first rank that is left out so far.
            normals: (K − 1,), standard normal, one a rank, so that it does not depend on the batch.
        """
        scale = self.sorted_q[:, start]
        ratio = (self.sorted_q[:, start:] / scale.clamp(min=1e-300)[:, None]).sqrt()
        ranked = torch.zeros_like(self._q)
        ranked[:, start + 1 :] = ratio * normals[start:].to(ratio)
        coefficients = torch.zeros_like(self._q).scatter(1, self.order, ranked)
        return self._combined(coefficients), scale

    def variance(self, u: torch.Tensor) -> torch.Tensor:
        """Return uᵀ Λ u from all of u, (B, K), in float64, centred on the likeliest class."""
        d = (u - u.gather(1, self._top)).double()
        mean = (self._q * d).sum(1, keepdim=True)
        top = (1 - self._gamma) / self._gamma  # √p_t
        return (self._q * (d - mean).square()).sum(1) + (top * mean).square().squeeze(1)

    def _combined(self, coefficients: torch.Tensor) -> torch.Tensor:
        total = coefficients.sum(1, keepdim=True)
        rows = coefficients - total * self._gamma * self._q
        shift = total * (1 - self._gamma * self._q.sum(1, keepdim=True))
        return rows.scatter_add(1, self._top, -shift).to(self._dtype)


def exact_forms(
    captured: Capture,
    names: Sequence[str],
    deltas: Mapping[str, torch.Tensor],
    *,
    trace: bool = False,
    spectrum: bool = False,
    tol: float | None = None,
    seed: int = 0,
) -> ExactForms:
    """Compute v_iᵀ H_i v_i, H_i = J_iᵀ Λ J_i, for every named layer and every example of one capture.

    Args:
        captured: From `capture`, inside `differentiable`; its graph is kept.
        names: Layers in `captured.layers`, in the order of the result.
        deltas: W_i − W_i⁽ˢ⁾ of each; a layer left out has not moved, and its quadratic form is 0.
        trace: Also Tr H_i, from the same passes.
        spectrum: Also the nonzero eigenvalues; keeps K − 1 gradients of every output at once.
        tol: Stop before all K − 1 passes once the skipped classes add at most this share to every
            entry, told by random probes (99 % an entry); None takes all passes. Not used
            together with trace or spectrum.
        seed: Of the probes.

    Returns:
        The forms for weight w = 1; multiply by each example's w.
    """
    factor = LogitFactor(captured.logits)
    layers = [captured.layers[name] for name in names]
    changes = [_change(layer, deltas.get(layer.name)) for layer in layers]
    passes = _Passes(captured.logits, layers, changes, trace=trace, spectrum=spectrum)
    with passes.watching():
        if tol is None or trace or spectrum:
            for rank in range(factor.columns):
                passes.add(*factor.seed(rank))
            return passes.forms()
        return _pruned(passes, factor, tol, seed)


def _change(layer: CapturedLayer, delta: torch.Tensor | None) -> torch.Tensor | None:
    if delta is None:
        return None
    with torch.no_grad():
        return layer.apply(delta)


def _pruned(passes: _Passes, factor: LogitFactor, tol: float, seed: int) -> ExactForms:
    columns = factor.columns
    generator = torch.Generator().manual_seed(seed)
    normals = torch.randn(_PROBES, columns, generator=generator, dtype=torch.float64)
    mass = factor.sorted_q.flip(1).cumsum(1).flip(1)  # mass[:, r]: of the classes from rank r on
    share = (mass / mass[:, :1].clamp(min=1e-300)).amax(0)
    enough = int((share > tol / _probe_factor(0)).sum())
    done = look = 0
    while enough + _PROBES < columns:
        for rank in range(done, enough):
            passes.add(*factor.seed(rank))
        done = enough
        lower = passes.quadratic
        squares = [passes.product(*factor.probe(done, row)) for row in normals]
        rest = torch.stack(squares).mean(0)
        upper = lower + _probe_factor(look) * rest
        look += 1
        if bool((upper - lower <= tol * lower).all()):
            return ExactForms(lower + rest, lower, upper, None, None, passes.taken)
        # What is left falls about as the mass of the classes: go on to where that would do.
        excess = float(((upper - lower) / (tol * lower).clamp(min=1e-300)).max())
        enough = max(done + 1, int((share > share[done] / excess).sum()))
    for rank in range(done, columns):
        passes.add(*factor.seed(rank))
    return passes.forms()


class _Passes:
    """Backward passes to the layer outputs, and what is accumulated from them."""

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

    @property
    def quadratic(self) -> torch.Tensor:
        return self._quadratic.clone()

    @contextmanager
    def watching(self) -> Iterator[None]:
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

    def _run(self, seed: torch.Tensor) -> torch.Tensor:
        self._u = [None] * len(self._layers)
        self._squares = [None] * len(self._layers)
        edges = [self._layers[i].edge for i in self._sources]
        gradients = torch.autograd.grad(self._logits, edges, seed, retain_graph=True, allow_unused=True)
        for index, gradient in zip(self._sources, gradients, strict=True):
            if gradient is not None:
                self._use(index, gradient)
        self.taken += 1
        return self._stacked(self._u)

    def _stacked(self, values: Sequence[torch.Tensor | None]) -> torch.Tensor:
        zero = self._logits.new_zeros(self._logits.shape[0])
        return torch.stack([zero if v is None else v for v in values], dim=1).double()

    def product(self, seed: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return weight[:, None] * self._run(seed).square()

    def add(self, seed: torch.Tensor, weight: torch.Tensor) -> None:
        self._quadratic += self.product(seed, weight)
        self._roots.append(weight.sqrt())
        if self._norms and self._trace is not None:
            self._trace += weight[:, None] * self._stacked(self._squares)

    @torch.no_grad()
    def forms(self) -> ExactForms:
        trace, spectrum = self._trace, None
        if self._keep:
            roots = torch.stack(self._roots, 1)  # (B, K − 1)
            values = []
            for layer, kept in zip(self._layers, self._kept, strict=True):
                gram = _gradient_gram(layer, kept).double() * roots[:, :, None] * roots[:, None, :]
                values.append(torch.linalg.eigvalsh(gram).clamp(min=0).flip(1))
            spectrum = torch.stack(values, 1)
            trace = spectrum.sum(2)
        q = self._quadratic
        return ExactForms(q, q, q, trace, spectrum, self.taken)


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


def exact_by_forward_mode(
    model: nn.Module,
    inputs: Inputs,
    names: Sequence[str],
    deltas: Mapping[str, torch.Tensor],
    layouts: Mapping[str, Layout],
    copied: frozenset[str] = frozenset(),
) -> tuple[ExactForms, torch.Tensor]:
    """Compute the same quadratic forms from one forward-mode product J_i v_i a layer.

    Cheaper than `exact_forms` where the layers are fewer than about half the classes; needs no
    graph of its own. Call it inside `differentiable(model, names)`.

    Returns:
        The forms, without trace and spectrum, and the logits (B, K).
    """
    columns = []
    logits = None
    for name in names:
        with forward_ad.dual_level():

            def moved(layer: CapturedLayer, z: torch.Tensor) -> torch.Tensor:
                dual: torch.Tensor = forward_ad.make_dual(z, layer.apply(deltas[layer.name]).detach())
                return dual

            out = capture(model, inputs, [name], layouts, moved, copied).logits
            primal, tangent = forward_ad.unpack_dual(out)
            logits = primal.detach()
            u = torch.zeros_like(logits) if tangent is None else tangent.detach()
        columns.append(LogitFactor(logits).variance(u))
    assert logits is not None
    quadratic = torch.stack(columns, 1)
    return ExactForms(quadratic, quadratic, quadratic, None, None, len(names)), logits
