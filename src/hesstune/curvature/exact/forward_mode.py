"""The same quadratic forms from forward-mode products: one a layer, whatever the number of classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.autograd.forward_ad as forward_ad

from hesstune.curvature.exact.factor import LogitFactor
from hesstune.curvature.exact.forms import LogitForms
from hesstune.curvature.interception import OnOutput
from hesstune.curvature.layers import CapturedLayer

__all__ = ["exact_by_forward_mode"]


def exact_by_forward_mode(
    run: Callable[[str, OnOutput], torch.Tensor], names: Sequence[str], deltas: Mapping[str, torch.Tensor]
) -> LogitForms:
    """Compute v_iᵀ J_iᵀ Λ J_i v_i from one forward-mode product J_i v_i a layer.

    Cheaper than `exact_forms` where the layers are fewer than about half the classes; needs no
    graph of its own. Call it inside `differentiable`.

    Args:
        run: (layer, what takes its output's place) -> logits (B, K): one forward pass that captures it.
        names: The layers, in the order of the result; at least one.
        deltas: W_i − W_i⁽ˢ⁾ of each.

    Returns:
        The forms, without trace and spectrum.
    """
    columns = []
    for name in names:
        with forward_ad.dual_level():

            def moved(layer: CapturedLayer, z: torch.Tensor) -> torch.Tensor:
                dual: torch.Tensor = forward_ad.make_dual(z, layer.apply(deltas[layer.name]).detach())
                return dual

            primal, tangent = forward_ad.unpack_dual(run(name, moved))
            logits = primal.detach()
            u = torch.zeros_like(logits) if tangent is None else tangent.detach()
        columns.append(LogitFactor(logits).variance(u))
    quadratic = torch.stack(columns, 1)
    return LogitForms(quadratic, quadratic, quadratic, None, None, len(names))
