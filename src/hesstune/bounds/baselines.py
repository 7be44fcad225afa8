"""Older complexity measures that users compare with, as pure functions of norms and margins.

All are stated up to their universal constants and logarithms where the papers leave them unnamed, so
each ranks models and none is a guarantee.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hesstune.checks import positive
from hesstune.errors import ConfigError

__all__ = [
    "distance_sum",
    "mars_measure",
    "pac_bayes_spectral_measure",
    "parameter_count_measure",
    "spectral_measure",
]


def _columns(**columns: ArrayLike) -> list[NDArray[np.float64]]:
    arrays = {name: np.asarray(values, np.float64) for name, values in columns.items()}
    length = len(next(iter(arrays.values())))
    for name, array in arrays.items():
        if array.ndim != 1 or len(array) != length:
            raise ConfigError(f"{name} must be one number a layer, shape ({length},); got {array.shape}")
        if not np.all(np.isfinite(array)) or np.any(array < 0):
            raise ConfigError(f"{name} must be finite and at least 0; got {array}")
    return list(arrays.values())


def _nonzero(name: str, norms: NDArray[np.float64]) -> NDArray[np.float64]:
    if np.any(norms == 0):
        raise ConfigError(f"{name} holds a zero at layer {int(np.argmin(norms))}; leave that layer out")
    return norms


def distance_sum(distances: ArrayLike) -> float:
    """Return Σ_i ‖v_i‖, the distance from the reference summed over layers.

    Nagarajan & Kolter, Generalization in deep networks: the role of distance from initialization (2019).
    """
    (norms,) = _columns(distances=distances)
    return float(norms.sum())


def spectral_measure(
    spectral: ArrayLike, distance_21: ArrayLike, n: int, margin: float, radius: float = 1.0
) -> float:
    """Return B·R/(γ√n), R = Π‖W_i‖₂ · (Σ_i (‖v_iᵀ‖_{2,1}/‖W_i‖₂)^(2/3))^(3/2).

    Bartlett, Foster & Telgarsky, Spectrally-normalized margin bounds for neural networks (2017),
    Theorem 1.1, with 1-Lipschitz activations and the reference as the reference matrices.

    Args:
        spectral: ‖W_i‖₂ of each layer, (L,).
        distance_21: The sums over output rows of the Euclidean norms of v_i's rows, (L,).
        n: Number of examples.
        margin: γ, the margin of the logits.
        radius: B, the root mean square norm of the inputs.

    Example:
        >>> round(spectral_measure([2.0, 3.0], [1.0, 1.0], n=100, margin=1.0), 4)
        0.7023
    """
    norms, distance = _columns(spectral=spectral, distance_21=distance_21)
    ratio = distance / _nonzero("spectral", norms)
    product = float(np.exp(np.log(norms).sum()))
    complexity = product * float((ratio ** (2 / 3)).sum() ** 1.5)
    return (
        positive("radius", radius) * complexity / (positive("margin", margin) * math.sqrt(positive("n", n)))
    )


def pac_bayes_spectral_measure(
    spectral: ArrayLike, frobenius: ArrayLike, n: int, margin: float, width: int, radius: float = 1.0
) -> float:
    """Return √(B²D²h ln(Dh) · Π‖W_i‖₂² · Σ_i ‖v_i‖_F²/‖W_i‖₂² / (γ²n)).

    Neyshabur, Bhojanapalli & Srebro, A PAC-Bayesian approach to spectrally-normalized margin bounds
    (2018), Theorem 1, with the distance from the reference in place of the norm (its prior is centred
    there), D layers of width at most h.
    """
    norms, distance = _columns(spectral=spectral, frobenius=frobenius)
    depth = len(norms)
    size = depth**2 * positive("width", width) * math.log(depth * width)
    ratio = float(((distance / _nonzero("spectral", norms)) ** 2).sum())
    product = float(np.exp(np.log(norms).sum()))
    scale = positive("radius", radius) * product / positive("margin", margin)
    return scale * math.sqrt(size * ratio / positive("n", n))


def mars_measure(mars: ArrayLike, distance: ArrayLike, n: int, inputs: int, radius: float = 1.0) -> float:
    """Return X·√(ln(2d)) · Π_i 2B_i · Σ_i D_i/B_i / √n in the MARS norm.

    Gouk, Hospedales & Pontil, Distance-based regularisation of deep networks for fine-tuning (2021),
    Theorem 1: B_i = ‖W_i‖_∞, D_i = ‖v_i‖_∞ (largest absolute row sums), d input dimensions bounded by
    X in the maximum norm.
    """
    norms, moved = _columns(mars=mars, distance=distance)
    product = float(np.exp(np.log(2 * _nonzero("mars", norms)).sum()))
    scale = positive("radius", radius) * math.sqrt(math.log(2 * positive("inputs", inputs)))
    return scale * product * float((moved / norms).sum()) / math.sqrt(positive("n", n))


def parameter_count_measure(distances: ArrayLike, parameters: int, n: int) -> float:
    """Return √(p · Σ_i ‖v_i‖₂ / n), p the number of weights.

    Long & Sedghi, Generalization bounds for deep convolutional neural networks (2020), Theorem 2.1,
    with spectral norms of the distances and the logarithms left out.
    """
    (norms,) = _columns(distances=distances)
    return math.sqrt(positive("parameters", parameters) * float(norms.sum()) / positive("n", n))
