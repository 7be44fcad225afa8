"""The closed form: v_iᵀ G_i v_i of all layers and examples of a batch from at most K − 1 backward passes.

G_i = J_iᵀ Λ J_i is the Gauss–Newton part of H_i, with Λ = diag(p) − p pᵀ and J_i = ∂f/∂vec(W_i). If
everything after layer i is piecewise linear and W_i is used once, the logits f are piecewise linear in W_i,
so H_i = H_i⁺ = G_i: the exact path. Let q be the probabilities of the K − 1 classes other than the most
probable one, t. In the coordinates e_k − e_t, Λ is diag(q) − q qᵀ = B Bᵀ with columns

    b_k = √q_k · s_k,    s_k = (e_k − e_t) − γ Σ_j q_j (e_j − e_t),    γ = 1 / (1 + √p_t),

since (I − γ √q√qᵀ)² = I − √q√qᵀ. So v_iᵀ G_i v_i = Σ_k q_k ⟨J_iᵀ s_k, v_i⟩² and Tr G_i = Σ_k q_k ‖J_iᵀ s_k‖².
With the sum over layers in place of one product it is uᵀ Λ u, u = Σ_i J_i v_i: all layers moved together. The
terms are non-negative: nothing cancels on fitted examples, and every partial sum is a lower bound.

⟨J_iᵀ s, v_i⟩ = ⟨∂(sᵀf)/∂z_i, D_i⟩ with D_i = (W_i − W_i⁽ˢ⁾)·a_i, so the passes end at the layer outputs z_i,
and each gradient is freed as soon as it is used.

Classes of little probability can be skipped. Their part of an entry is estimated from random combinations:
with g standard normal, the squared product of v_i with J_iᵀ Σ_k √q_k g_k s_k is that part times χ²₁.

With many classes the trace is estimated from a few passes: `TraceSum`. If the forms need all passes, they use
the columns of its orthogonal matrix, so the trace adds no pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad

from hesstune.curvature.capture import Capture, OnOutput
from hesstune.curvature.declared import TRACE_PASSES
from hesstune.curvature.factor import LogitFactor, TraceSum
from hesstune.curvature.layers import CapturedLayer
from hesstune.errors import MeasureError

# Gaussian probes of the skipped classes.
_PROBES = 4
# The probability that the bound of an entry fails, over all times that it is checked.
FAILURE_PROBABILITY = 0.01
# With more classes their K × K matrices take minutes for each layer and example.
_SPECTRUM_CLASSES = 4096
# The tensors of `ExactForms` that are linear in Λ.
_TENSORS = ("quadratic", "lower", "upper", "trace", "trace_stderr", "spectrum", "joint", "residual")


@dataclass(frozen=True, kw_only=True)
class FormOptions:
    """What is computed beside the forms, and how.

    Attributes:
        trace: Also Tr G_i.
        spectrum: Also the nonzero eigenvalues; keeps K − 1 gradients of every output at once. The trace is
            then their sum.
        joint: Also uᵀ Λ u of all layers moved together, from the same passes.
        tol: Skip classes if that is likely to halve the passes and they add at most this share to every
            entry, each with 99 % by random probes; 0 takes all passes. Not used with the spectrum.
        trace_passes: The largest number of passes with norms for the trace, at least 2. The trace is exact if
            it is at least K − 1.
        seed: Of the probes.
        numbers: The examples' numbers, which choose their probes of the trace; default: their places.
        slopes: The loss's gradient in the logits, (B, K): also predict the part of H_i⁺ that G_i leaves out.
    """

    trace: bool = False
    spectrum: bool = False
    joint: bool = False
    tol: float = 0.0
    trace_passes: int = TRACE_PASSES
    seed: int = 0
    numbers: Sequence[int] | None = None
    slopes: torch.Tensor | None = None


@dataclass(kw_only=True)
class ExactForms:
    """v_iᵀ G_i v_i, Tr G_i and eigenvalues of G_i of B examples and L layers, in float64.

    They are those of H_i⁺ for layers that only piecewise-linear operations follow.

    Attributes:
        names: The L layers.
        quadratic: v_iᵀ G_i v_i, (B, L).
        lower: A lower bound, (B, L): equal to `quadratic` unless classes were skipped.
        upper: An upper bound, (B, L). With skipped classes it holds with probability 99 % for each entry.
        passes: The number of backward (or forward-mode) passes.
        all_passes: K − 1.
        trace: Tr G_i, (B, L), or None if not requested.
        trace_stderr: Its standard error over the probes, (B, L); 0 if it took all K − 1 passes.
        spectrum: The K − 1 largest eigenvalues, descending, (B, L, K − 1), or None; the others are 0.
        joint: uᵀ Λ u with u = Σ_i J_i v_i, (B, 1), or None if not requested.
        residual: The size of v_iᵀ (H_i − G_i) v_i, (B, L), predicted by `BackwardPasses.residual`, or None if
            not requested.
        losses: ℓ of every example, (B,); None for the forms of J_iᵀ Λ J_i themselves.
    """

    names: list[str]
    quadratic: torch.Tensor
    lower: torch.Tensor
    upper: torch.Tensor
    passes: int
    all_passes: int
    trace: torch.Tensor | None = None
    trace_stderr: torch.Tensor | None = None
    spectrum: torch.Tensor | None = None
    joint: torch.Tensor | None = None
    residual: torch.Tensor | None = None
    losses: torch.Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence[ExactForms]) -> ExactForms:
        """Join the forms of several batches, of the same layers."""
        found: dict[str, Any] = {}
        for key in _TENSORS:
            columns = [getattr(part, key) for part in parts]
            if columns[0] is not None:
                found[key] = torch.cat(columns)
        return replace(parts[0], **found, passes=max(part.passes for part in parts))

    def of_loss(self, weight: torch.Tensor, losses: torch.Tensor) -> ExactForms:
        """Return the forms, on the CPU, for a loss with Hessian w·Λ in the logits.

        Args:
            weight: w of every example, (B,); with a negative one the positive part is 0.
            losses: ℓ of every example, (B,).
        """
        forms = {key: value for key in _TENSORS if (value := getattr(self, key)) is not None}
        scaled = {
            key: (weight.clamp(min=0).view(-1, *[1] * (value.ndim - 1)) * value).cpu()
            for key, value in forms.items()
        }
        return replace(self, **scaled, losses=losses.detach().double().cpu())


class BackwardPasses:
    """Backward passes to the layer outputs that accumulate the quadratic forms.

    Args:
        logits: With their graph, (B, K).
        layers: The L layers.
        changes: D_i of each, raw outputs; None if the layer has not moved. Default: none has.
        trace: Whether some of the passes give ‖J_iᵀ s_k‖², too.
        spectrum: Whether all gradients are kept for the eigenvalues.
        joint: Whether the forms have a last column for all layers moved together.
    """

    def __init__(
        self,
        logits: torch.Tensor,
        layers: Sequence[CapturedLayer],
        changes: Sequence[torch.Tensor | None] = (),
        *,
        trace: bool = False,
        spectrum: bool = False,
        joint: bool = False,
    ) -> None:
        self._logits, self._layers, self._joint = logits, layers, joint
        self._changes = changes or [None] * len(layers)
        self._norms, self._keep = False, spectrum
        self._sizes: list[torch.Tensor | None] | None = None
        for layer in layers:
            layer.keeps_tokens |= trace and not spectrum  # each pass that gives norms needs them
        zeros = torch.zeros((logits.shape[0], len(layers) + 1), dtype=torch.float64, device=logits.device)
        self._quadratic = zeros if joint else zeros[:, 1:]
        self._kept: list[list[torch.Tensor]] = [[] for _ in layers]
        self._roots: list[torch.Tensor] = []
        self._u: list[torch.Tensor | None] = []
        self._squares: list[torch.Tensor | None] = []
        self._sources = independent_layers(layers)
        self.taken = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Use each gradient as soon as it is computed; take passes inside this context."""
        # A node's pre-hook gets the gradient of its output, which is then freed. The nodes of independent
        # layers are not executed, so `torch.autograd.grad` returns their gradients instead.
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
                self._accumulate(index, gradient)

        return hook

    @torch.no_grad()
    def _accumulate(self, index: int, gradient: torch.Tensor) -> None:
        """Take a layer's output gradient into the products of this pass."""
        layer, change = self._layers[index], self._changes[index]
        if change is not None:
            self._u[index] = layer.inner(gradient, change)
            if self._sizes is not None:
                self._sizes[index] = _sum_of_token_norms(layer, gradient, change)
        if self._norms:
            self._squares[index] = _square_norm(layer, gradient)
        if self._keep:
            self._kept[index].append(gradient)

    def products(self, seed: torch.Tensor) -> torch.Tensor:
        """Take one pass with a seed of (B, K); return ⟨J_iᵀ s, v_i⟩ of every example and layer, (B, L)."""
        self._u = [None] * len(self._layers)
        self._squares = [None] * len(self._layers)
        if self._logits.requires_grad:  # otherwise the logits depend on none of the layers
            edges = [self._layers[i].edge for i in self._sources]
            gradients = torch.autograd.grad(self._logits, edges, seed, retain_graph=True, allow_unused=True)
            for index, gradient in zip(self._sources, gradients, strict=True):
                if gradient is not None:
                    self._accumulate(index, gradient)
        self.taken += 1
        return self._stacked(self._u)

    def _stacked(self, values: Sequence[torch.Tensor | None]) -> torch.Tensor:
        zero = self._logits.new_zeros(self._logits.shape[0])
        return torch.stack([zero if v is None else v.to(zero.device) for v in values], dim=1).double()

    def terms(
        self, seed: torch.Tensor, weight: torch.Tensor, norms: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take one pass; return q_k ⟨J_iᵀ s_k, v_i⟩² and (0 without `norms`) q_k ‖J_iᵀ s_k‖², (B, L)."""
        self._norms = norms
        products = self.products(seed)
        if self._joint:
            products = torch.cat([products, products.sum(1, keepdim=True)], 1)
        return weight[:, None] * products.square(), weight[:, None] * self._stacked(self._squares)

    def add(self, seed: torch.Tensor, weight: torch.Tensor, norms: bool = False) -> torch.Tensor:
        """Take one pass, s_k of (B, K) and q_k of (B,), and add its term to the forms; return the norms."""
        product, norm = self.terms(seed, weight, norms)
        self._quadratic += product
        self._roots.append(weight.sqrt())
        return norm

    def residual(self, slopes: torch.Tensor, deltas: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Predict the size of v_iᵀ (H_i − G_i) v_i from one pass, (B, L).

        It is ‖v_i‖/‖W_i‖ · Σ_t ‖∂ℓ/∂z_t‖ ‖D_t‖ over the tokens t of the output: H_i − G_i is linear in
        ∂ℓ/∂f, and smooth operations change their slopes by about the relative change of the activations.
        """
        self._sizes = [None] * len(self._layers)
        self._norms = self._keep = False
        self.products(slopes.to(self._logits.dtype))
        found, self._sizes = self._stacked(self._sizes), None
        norms = torch.linalg.vector_norm
        changes = [
            norms(deltas[layer.name]) / norms(layer.weight.detach()).clamp(min=1e-30)
            if layer.name in deltas
            else torch.zeros(())
            for layer in self._layers
        ]
        return found * torch.stack([change.to(found) for change in changes])

    @torch.no_grad()
    def forms(self) -> ExactForms:
        """Return the sums so far, with traces and eigenvalues of kept gradients; exact after K − 1 passes."""
        forms = _forms([layer.name for layer in self._layers], self._quadratic, self.taken, self._logits)
        if self._keep:
            roots = torch.stack(self._roots, 1)  # (B, K − 1)
            values = []
            for layer, kept in zip(self._layers, self._kept, strict=True):
                if not kept:  # the logits do not depend on it
                    values.append(torch.zeros_like(roots))
                    continue
                gram = _gradient_gram(layer, kept).double().to(roots.device)
                gram = gram * roots[:, :, None] * roots[:, None, :]
                values.append(torch.linalg.eigvalsh(gram).clamp(min=0).flip(1))
            spectrum = torch.stack(values, 1)
            trace = spectrum.sum(2)
            forms = replace(forms, trace=trace, trace_stderr=torch.zeros_like(trace), spectrum=spectrum)
        return forms


def _forms(names: Sequence[str], quadratic: torch.Tensor, passes: int, logits: torch.Tensor) -> ExactForms:
    """Return forms without skipped classes."""
    return ExactForms(
        names=list(names),
        quadratic=quadratic,
        lower=quadratic,
        upper=quadratic,
        passes=passes,
        all_passes=logits.shape[1] - 1,
    )


def _square_norm(layer: CapturedLayer, gradient: torch.Tensor) -> torch.Tensor:
    """Return ‖Σ_t g_t a_tᵀ‖² of every example, (B,)."""
    if layer.prefers_gram():
        # ⟨A Aᵀ, G Gᵀ⟩: no temporary tensor is larger than T × T.
        tokens = layer.output_tokens(gradient)
        norms: torch.Tensor = torch.linalg.vecdot(layer.gram().flatten(1), (tokens @ tokens.mT).flatten(1))
        return norms
    return layer.pullback(gradient).flatten(1).square().sum(1)


def _sum_of_token_norms(layer: CapturedLayer, gradient: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Return Σ_t ‖g_t‖ ‖D_t‖ over the positions t of every example's output, (B,)."""
    channels = -1 if layer.kind == "linear" else 1 - layer.weight.ndim
    g, d = (torch.linalg.vector_norm(layer.examples_first(x), dim=channels) for x in (gradient, change))
    sums: torch.Tensor = (g * d).reshape(len(g), -1).sum(1)
    return sums


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


def independent_layers(layers: Sequence[CapturedLayer]) -> list[int]:
    """Return the indices of the layers with an input that depends on no other layer of the list."""
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


def exact_forms(
    captured: Capture,
    names: Sequence[str],
    deltas: Mapping[str, torch.Tensor],
    asked: FormOptions | None = None,
) -> ExactForms:
    """Compute v_iᵀ J_iᵀ Λ J_i v_i for every named layer and every example of one capture.

    Args:
        captured: From `capture`, inside `differentiable`; its graph is kept.
        names: Layers in `captured.layers`, in the order of the result.
        deltas: W_i − W_i⁽ˢ⁾ of each; the quadratic form of a missing layer is 0.
        asked: What else is computed, and how; default: nothing, from all passes.

    Returns:
        The forms; `of_loss` converts them to those of a loss.
    """
    asked = asked or FormOptions()
    logits, factor, joint = captured.logits, LogitFactor(captured.logits), asked.joint
    if not names:
        none = logits.new_zeros((len(logits), 0), dtype=torch.float64)
        values = logits.new_zeros((len(logits), 0, factor.columns), dtype=torch.float64)
        forms = _forms(names, none, 0, logits)
        zero = logits.new_zeros((len(logits), 1), dtype=torch.float64)
        trace, spectrum = none if asked.trace else None, values if asked.spectrum else None
        joint_form = zero if joint else None
        return replace(forms, trace=trace, trace_stderr=trace, spectrum=spectrum, joint=joint_form)
    layers = [captured.layers[name] for name in names]
    with torch.no_grad():
        changes = [layer.apply(deltas[layer.name]) if layer.name in deltas else None for layer in layers]
    norms = asked.trace and not asked.spectrum
    passes = BackwardPasses(logits, layers, changes, trace=norms, spectrum=asked.spectrum, joint=joint)
    skips = asked.tol > 0 and not asked.spectrum and planned_passes(factor, asked.tol) < factor.columns
    # With skipped classes the passes of the most probable ones count for the trace, too.
    traces = _trace_sum(factor, asked, None if skips else _head_weight(captured)) if norms else None
    with passes.watching():
        if skips:
            found = _skip_classes(passes, factor, asked, traces)
        else:
            found = _all_classes(passes, factor, traces)
        if asked.slopes is not None:
            found = replace(found, residual=passes.residual(asked.slopes, deltas))
    if traces is not None:
        found = _with_traces(found, traces)
    if not joint:
        return found
    columns = {key: getattr(found, key)[:, :-1] for key in ("quadratic", "lower", "upper")}
    return replace(found, **columns, joint=found.quadratic[:, -1:])


def with_probed_traces(forms: ExactForms, captured: Capture, asked: FormOptions) -> ExactForms:
    """Return the forms, computed in another way, with traces from at most `trace_passes` backward passes."""
    passes = BackwardPasses(captured.logits, [captured.layers[name] for name in forms.names], trace=True)
    factor = LogitFactor(captured.logits)
    traces = _trace_sum(factor, asked, _head_weight(captured))
    with passes.watching():
        _rest_of_trace(passes, traces, 0)
    return replace(_with_traces(forms, traces), passes=forms.passes + passes.taken)


def _trace_sum(factor: LogitFactor, asked: FormOptions, head: torch.Tensor | None) -> TraceSum:
    return TraceSum(factor, asked.trace_passes, seed=asked.seed, numbers=asked.numbers, head=head)


def _head_weight(captured: Capture) -> torch.Tensor | None:
    """Return the weight of the last linear layer with K outputs an example, (K, D), or None."""
    found = [
        layer.weight.detach().mT if layer.transposed else layer.weight.detach()
        for layer in captured.layers.values()
        if layer.kind == "linear" and layer.shape.numel() == captured.logits.numel()
    ]
    return found[-1] if found and len(found[-1]) == captured.logits.shape[1] else None


def _with_traces(forms: ExactForms, traces: TraceSum) -> ExactForms:
    trace, stderr = traces.estimate()
    return replace(forms, trace=trace, trace_stderr=stderr)


def exact_by_forward_mode(
    run: Callable[[str, OnOutput], torch.Tensor], names: Sequence[str], deltas: Mapping[str, torch.Tensor]
) -> ExactForms:
    """Compute v_iᵀ J_iᵀ Λ J_i v_i, and the joint form, from one forward-mode product J_i v_i for each layer.

    It is faster than `exact_forms` if there are fewer layers than about half the classes. `run` takes a layer
    and a function that replaces its output, captures the layer in a forward pass inside `differentiable`,
    and returns the logits, (B, K). At least one layer has a delta; the forms of the others are 0.
    """
    columns: dict[str, torch.Tensor] = {}
    total: torch.Tensor | None = None
    for name in (name for name in names if name in deltas):
        with forward_ad.dual_level():

            def moved(layer: CapturedLayer, z: torch.Tensor) -> torch.Tensor:
                dual: torch.Tensor = forward_ad.make_dual(z, layer.apply(deltas[layer.name]).detach())
                return dual

            primal, tangent = forward_ad.unpack_dual(run(name, moved))
            logits = primal.detach()
            u = torch.zeros_like(logits) if tangent is None else tangent.detach()
        factor = LogitFactor(logits)
        total = u if total is None else total + u
        columns[name] = factor.variance(u)
    assert total is not None
    zero = torch.zeros_like(columns[name])
    quadratic = torch.stack([columns.get(name, zero) for name in names], 1)
    forms = _forms(names, quadratic, len(columns), logits)
    return replace(forms, joint=factor.variance(total)[:, None])


def probe_factor(look: int) -> float:
    """Return the factor between the probes' mean square and a bound at check number `look`, from 0.

    The bound is checked again after further passes until it is small enough, so the checks share the
    probability of failure: 1/2, 1/4, …. The mean square of m probes is χ²_m/m times the true value.
    """
    from scipy.special import gammaincinv

    return _PROBES / (2 * float(gammaincinv(_PROBES / 2, _failure_share(look))))


def _failure_share(look: int) -> float:
    return float(FAILURE_PROBABILITY * 0.5 ** (look + 1))


def refuse_large_spectrum(classes: int) -> None:
    """Refuse eigenvalues of so many classes: K − 1 gradients and a K × K matrix for each layer and example.

    Raises:
        MeasureError: If there are more than 4,096.
    """
    if classes > _SPECTRUM_CLASSES:
        raise MeasureError(
            "the spectrum takes K − 1 gradients of every layer and a K × K matrix: at most "
            f"{_SPECTRUM_CLASSES} logits, and the network has {classes}. Leave out spectrum (--spectrum)"
        )


def planned_passes(factor: LogitFactor, tol: float) -> int:
    """Return the expected number of passes with skipping; K − 1 unless skipping halves them."""
    passes = int((factor.shares > tol / probe_factor(0)).sum()) + _PROBES
    return passes if 2 * passes <= factor.columns else factor.columns


def _all_classes(passes: BackwardPasses, factor: LogitFactor, traces: TraceSum | None) -> ExactForms:
    """Take all K − 1 passes; those for a trace by probes are along the columns of an orthogonal matrix."""
    if traces is None:
        for rank in range(factor.columns):
            passes.add(*factor.seed(rank))
        return passes.forms()
    for index in range(factor.columns):
        norms = passes.add(*traces.column(index), norms=index < traces.passes)
        if index < traces.passes:
            traces.take(norms)
    return passes.forms()


def _rest_of_trace(passes: BackwardPasses, traces: TraceSum | None, done: int) -> None:
    """Take the passes that the trace needs beside those of the first classes, which are done."""
    if traces is not None:
        for index in range(min(done, traces.leading), traces.passes):
            traces.take(passes.terms(*traces.column(index), norms=True)[1])


def _skip_classes(
    passes: BackwardPasses, factor: LogitFactor, asked: FormOptions, traces: TraceSum | None
) -> ExactForms:
    """Take passes until the skipped classes add at most a share `tol` to every entry."""
    columns, share, tol = factor.columns, factor.shares, asked.tol
    generator = torch.Generator().manual_seed(asked.seed)
    normals = torch.randn(_PROBES, columns, generator=generator, dtype=torch.float64)
    leading = 0 if traces is None else traces.leading
    done = look = 0
    enough = planned_passes(factor, tol) - _PROBES

    def take(end: int) -> None:
        for rank in range(done, end):
            norms = passes.add(*factor.seed(rank), norms=rank < leading)
            if traces is not None and rank < leading:
                traces.take(norms)

    while enough + _PROBES < columns:
        take(enough)
        done = enough
        entries = [passes.terms(*factor.combination(done, row[done:]))[0] for row in normals]
        known, skipped = passes.forms(), torch.stack(entries).mean(0)
        upper = known.quadratic + probe_factor(look) * skipped
        excess = _excess(upper, known.quadratic, tol)
        if excess <= 1:
            _rest_of_trace(passes, traces, done)
            return replace(known, quadratic=known.quadratic + skipped, upper=upper, passes=passes.taken)
        look += 1
        # The skipped part falls about as the mass of the classes: go on to a rank that is small enough.
        enough = max(done + 1, int((share > share[done] / excess).sum()))
    take(columns)
    _rest_of_trace(passes, traces, columns)
    return passes.forms()


def _excess(upper: torch.Tensor, lower: torch.Tensor, tol: float) -> float:
    """Return the largest width of a bound, as a multiple of `tol` times its lower end."""
    return float(((upper - lower) / (tol * lower).clamp(min=1e-300)).max())
