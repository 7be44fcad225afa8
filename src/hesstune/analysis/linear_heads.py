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
    x = np.append(features, np.ones((len(features), 1)), axis=1)
    aims = np.stack([noise.inverse[labels] for noise in noises], axis=1)
    w = np.zeros((x.shape[1], *aims.shape[1:]))
    mean, square = np.zeros_like(w), np.zeros_like(w)
    for step in range(1, STEPS + 1):
        # Rows of F⁻¹ sum to 1, so the gradient in the logits is softmax less the row.
        error = (_softmax(_logits(x, w)) - aims).reshape(len(x), -1) / len(x)
        gradient = (x.T @ error).reshape(w.shape)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.99 * square + 0.01 * gradient**2
        rate = RATE * min(1.0, 2 * (1 - step / (STEPS + 1)))
        w -= rate * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.99**step)) + 1e-8)
        norm = np.sqrt((w[:-1] ** 2).sum(axis=(0, 2), keepdims=True))
        w[:-1] *= np.minimum(1, RADIUS / np.maximum(norm, 1e-12))
    return w


def predicted(features: NDArray[np.float64], heads: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return each head's class of each example, (N, J)."""
    x = np.append(features, np.ones((len(features), 1)), axis=1)
    return np.asarray(_logits(x, heads).argmax(axis=2), dtype=np.int64)


def _logits(x: NDArray[np.float64], w: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((x @ w.reshape(len(w), -1)).reshape(len(x), *w.shape[1:]))


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(axis=2, keepdims=True))
    return np.asarray(powers / powers.sum(axis=2, keepdims=True))
