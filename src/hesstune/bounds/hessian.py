"""The paper's measures: they rank models and layers, but are no guarantees.

The maxima over given examples and the largest observed loss stand in for suprema over the
distribution, and an O(n^(−3/4)) term with an unknown constant is left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hesstune.checks import positive, stochastic_matrix
from hesstune.errors import ConfigError, NoiseMatrixError

__all__ = [
    "constrained_distance_measure",
    "hessian_distance_measure",
    "inverse_norm",
    "noisy_hessian_distance_measure",
]


def _terms(name: str, values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    if array.ndim != 1:
        raise ConfigError(f"{name} must be one number a layer, shape (L,); got shape {array.shape}")
    if not np.all(np.isfinite(array)) or np.any(array < 0):
        raise ConfigError(f"{name} must be finite and at least 0; got {array}")
    return array


def hessian_distance_measure(quadratic: ArrayLike, n: int, bound: float) -> float:
    """Return Σ_i √(C·𝓗_i / n), the Hessian distance measure (paper, Theorem 2.1).

    Args:
        quadratic: 𝓗_i = max over examples of v_iᵀ H_i⁺ v_i, one a layer, (L,).
        n: Size of the training set.
        bound: C, a bound on the loss.

    Raises:
        ConfigError: If a value is negative, not finite, or n or C is not above 0.

    Example:
        >>> hessian_distance_measure([4.0, 1.0], n=100, bound=1.0)
        0.30000000000000004
    """
    scale = positive("bound", bound) / positive("n", n)
    return float(np.sqrt(scale * _terms("quadratic", quadratic)).sum())


def constrained_distance_measure(radius: ArrayLike, trace: ArrayLike, n: int, bound: float) -> float:
    """Return Σ_i √(C·α_i²·max Tr H_i⁺ / n), the measure of distance-constrained fine-tuning.

    It is at least `hessian_distance_measure` where ‖v_i‖ ≤ α_i, since v ᵀH⁺v ≤ ‖v‖² Tr H⁺ (paper,
    section 2.2).

    Args:
        radius: α_i, one a layer, (L,).
        trace: The largest Tr H_i⁺ over the examples, (L,).
        n: Size of the training set.
        bound: C, a bound on the loss.
    """
    alpha, tr = _terms("radius", radius), _terms("trace", trace)
    if len(alpha) != len(tr):
        raise ConfigError(f"radius and trace must have one number a layer; got {len(alpha)} and {len(tr)}")
    return hessian_distance_measure(alpha**2 * tr, n, bound)


def inverse_norm(noise_matrix: Any) -> float:
    """Return ρ = max_i Σ_j |F⁻¹[i, j]|, the factor by which the consistent loss can exceed C.

    sup |ℓ̄| ≤ ρ·C. A row sum where F's rows sum to 1; the paper states the column sum of the
    transposed convention (section 2.3).

    Args:
        noise_matrix: F, (K, K), rows sum to 1; an array or an object with `.array`.

    Raises:
        NoiseMatrixError: If F is malformed or singular.

    Example:
        >>> round(inverse_norm([[0.8, 0.2], [0.2, 0.8]]), 4)
        1.6667
    """
    matrix = stochastic_matrix(getattr(noise_matrix, "array", noise_matrix))
    if np.linalg.matrix_rank(matrix) < len(matrix):
        raise NoiseMatrixError("the noise matrix is singular, so the consistent loss does not exist for it")
    return float(np.abs(np.linalg.inv(matrix)).sum(axis=1).max())


def noisy_hessian_distance_measure(quadratic: ArrayLike, n: int, bound: float, noise_matrix: Any) -> float:
    """Return Σ_i √(ρ·C·𝓗_i / n), the measure for training with the consistent loss.

    ρ scales the bound on the loss. On the exact path the Hessian is the one of plain cross-entropy,
    because the rows of F⁻¹ sum to 1 (paper, Theorem 2.3 and section 2.3).
    """
    return hessian_distance_measure(quadratic, n, positive("bound", bound) * inverse_norm(noise_matrix))
