"""Many small linear heads on the same features at once, each inside a ball: for what-if questions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hesstune.noise.matrix import NoiseMatrix

__all__ = ["linear_heads", "predicted"]

STEPS, RATE, RADIUS = 150, 0.02, 16.0


def linear_heads(
    features: NDArray[np.float64], labels: NDArray[np.int64], noises: Sequence[NoiseMatrix]
) -> NDArray[np.float64]:
    """Minimise the consistent loss of each noise matrix over a linear head of norm at most RADIUS.

    The loss is convex; full-batch Adam from zero, the same steps for all, so that heads differ by their
    matrix alone.

    Args:
        features: (N, D), of mean squared norm about 10.
        labels: Noisy labels, (N,).
        noises: J noise matrices.

    Returns:
        Weights and, last, biases, (D + 1, J, K).
    """
    import torch

    x = torch.from_numpy(np.append(features, np.ones((len(features), 1)), axis=1))
    aims = torch.from_numpy(np.stack([noise.inverse[labels] for noise in noises], axis=1))
    w = torch.zeros(x.shape[1], *aims.shape[1:], dtype=torch.float64)
    optimizer = torch.optim.Adam([w], betas=(0.9, 0.99))
    for step in range(1, STEPS + 1):
        # Rows of F⁻¹ sum to 1, so the gradient in the logits is softmax less the row.
        logits = (x @ w.flatten(1)).reshape(aims.shape)
        error = (torch.softmax(logits, dim=2) - aims) / len(x)
        w.grad = (x.T @ error.flatten(1)).reshape(w.shape)
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, 2 * (1 - step / (STEPS + 1)))
        optimizer.step()
        norm = w[:-1].square().sum(dim=(0, 2), keepdim=True).sqrt()
        w[:-1] *= (RADIUS / norm.clamp_min(1e-12)).clamp_max(1)
    return np.asarray(w.numpy())


def predicted(features: NDArray[np.float64], heads: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return each head's class of each example, (N, J)."""
    x = np.append(features, np.ones((len(features), 1)), axis=1)
    logits = (x @ heads.reshape(len(heads), -1)).reshape(len(x), *heads.shape[1:])
    return np.asarray(logits.argmax(axis=2), dtype=np.int64)
