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

from collections.abc import Mapping, Sequence

import torch

from hesstune.curvature.capture import Capture
from hesstune.curvature.exact.factor import LogitFactor
from hesstune.curvature.exact.forms import LogitForms
from hesstune.curvature.exact.passes import Passes
from hesstune.curvature.exact.skipping import likely_classes_alone
from hesstune.curvature.layers import CapturedLayer

__all__ = ["exact_forms"]


def exact_forms(
    captured: Capture,
    names: Sequence[str],
    deltas: Mapping[str, torch.Tensor],
    *,
    trace: bool = False,
    spectrum: bool = False,
    tol: float = 0.0,
    seed: int = 0,
) -> LogitForms:
    """Compute v_iᵀ H_i v_i, H_i = J_iᵀ Λ J_i, for every named layer and every example of one capture.

    Args:
        captured: From `capture`, inside `differentiable`; its graph is kept.
        names: Layers in `captured.layers`, in the order of the result.
        deltas: W_i − W_i⁽ˢ⁾ of each; a layer left out has not moved, and its quadratic form is 0.
        trace: Also Tr H_i, from the same passes.
        spectrum: Also the nonzero eigenvalues; keeps K − 1 gradients of every output at once.
        tol: Stop before all K − 1 passes once the skipped classes add at most this share to every
            entry and trace, told by random probes (99 % each), where that is likely to halve the passes;
            0 takes all. Not used together with the spectrum.
        seed: Of the probes.

    Returns:
        The forms of J_iᵀ Λ J_i; `LogitForms.of_loss` makes a loss's own of them.
    """
    factor = LogitFactor(captured.logits)
    layers = [captured.layers[name] for name in names]
    changes = [_change(layer, deltas.get(layer.name)) for layer in layers]
    passes = Passes(captured.logits, layers, changes, trace=trace, spectrum=spectrum)
    with passes.watching():
        if not tol or spectrum:
            for rank in range(factor.columns):
                passes.add(*factor.seed(rank))
            return passes.forms()
        return likely_classes_alone(passes, factor, tol, seed)


def _change(layer: CapturedLayer, delta: torch.Tensor | None) -> torch.Tensor | None:
    if delta is None:
        return None
    with torch.no_grad():
        return layer.apply(delta)
