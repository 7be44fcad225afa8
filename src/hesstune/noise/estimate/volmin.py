"""The noise matrix of least volume that explains the noisy labels, learnt with a linear classifier."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hesstune.checks import class_count, integer_labels
from hesstune.errors import DataError
from hesstune.noise.matrix import NoiseMatrix

__all__ = ["volmin"]


def volmin(
    features: ArrayLike,
    labels: ArrayLike,
    k: int,
    *,
    weight: float = 1e-2,
    decay: float = 1e-3,
    steps: int = 400,
    lr: float = 0.02,
) -> NoiseMatrix:
    """Minimise −mean ln Σ_i p_i(x) F[i, ỹ] + weight·ln det F over a linear classifier p and F.

    F starts near the identity and is kept diagonally dominant in the sense of the paper's
    parametrisation, (I + σ(A)) with rows normalised, A's diagonal unused. Source: Li et al. 2021,
    equation 5. Full-batch Adam from zero: the same input gives the same matrix.

    Args:
        features: (N, D) features, standardised inside.
        labels: Noisy labels, (N,).
        k: Number of classes.
        weight: Weight of the volume.
        decay: Weight decay of the classifier.
        steps: Steps of Adam.
        lr: Its learning rate.

    Raises:
        DataError: If the features are not finite or do not match the labels.
    """
    import torch

    k = class_count(k)
    given = integer_labels(labels, k, "noisy labels")
    x = _standardised(features, len(given))
    inputs, targets = torch.from_numpy(x), torch.from_numpy(given)
    w = torch.zeros(x.shape[1], k, dtype=torch.float64, requires_grad=True)
    b = torch.zeros(k, dtype=torch.float64, requires_grad=True)
    a = torch.full((k, k), -2.0 - np.log(k), dtype=torch.float64, requires_grad=True)
    eye = torch.eye(k, dtype=torch.float64)
    optimizer = torch.optim.Adam([w, b, a], lr=lr)

    def matrix() -> torch.Tensor:
        raw = eye + (1 - eye) * torch.sigmoid(a)
        return raw / raw.sum(dim=1, keepdim=True)

    for _ in range(steps):
        optimizer.zero_grad()
        noise = matrix()
        noisy = torch.softmax(inputs @ w + b, dim=1) @ noise
        fit = -torch.log(noisy[torch.arange(len(targets)), targets] + 1e-12).mean()
        loss = fit + weight * torch.linalg.slogdet(noise)[1] + decay * (w * w).sum()
        loss.backward()
        optimizer.step()
    return NoiseMatrix(matrix().detach().numpy())


def _standardised(features: ArrayLike, n: int) -> NDArray[np.float64]:
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or len(x) != n or not np.isfinite(x).all():
        raise DataError(f"features must be finite, ({n}, D), one row a label; got shape {x.shape}")
    x = x - x.mean(axis=0)
    # One scale for all: features that hardly vary must not be blown up to matter as much as the rest.
    return np.asarray(x / max(float(np.sqrt((x * x).sum(axis=1).mean())), 1e-12) * np.sqrt(10.0))
