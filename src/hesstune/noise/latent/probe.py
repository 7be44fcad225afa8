"""Softmax regression on soft targets, on principal components of features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_factor, cho_solve

from hesstune.checks import positive
from hesstune.errors import DataError
from hesstune.runtime.device import one_thread
from hesstune.storage.remembered import remembered
from hesstune.storage.tensors import Tree

# Principal components kept at most: a ridge rules the others out where labels are noisy.
COMPONENTS = 256
# Mean squared norm of reduced features, whatever their number: penalties mean the same everywhere.
SQUARED_NORM = 128.0


@dataclass(frozen=True)
class Reduction:
    """A linear map of features: (x − mean) A, of mean squared norm SQUARED_NORM on what it was fitted to.

    Attributes:
        mean: (D,).
        axes: (D, C), the principal axes, scaled.
    """

    mean: NDArray[np.float64]
    axes: NDArray[np.float64]

    @classmethod
    def of(cls, features: ArrayLike, components: int = COMPONENTS) -> Reduction:
        """Fit the map to features, (N, D): at most `components` principal components, and fewer than N.

        Raises:
            DataError: If features are not finite, or no table of two rows or more.

        Example:
            >>> x = np.random.default_rng(0).normal(size=(50, 3))
            >>> round(float((Reduction.of(x).apply(x) ** 2).sum(axis=1).mean()))
            128
        """
        x = np.asarray(features, dtype=np.float64)
        if x.ndim != 2 or len(x) < 2 or not np.isfinite(x).all():
            raise DataError(f"features must be finite, (N, D) with N of at least 2; got shape {x.shape}")
        mean = x.mean(axis=0)
        kept = min(components, len(x) - 1, x.shape[1])
        axes = np.eye(x.shape[1]) if kept == x.shape[1] else _principal_axes(x, kept)
        norm = float(np.sqrt((((x - mean) @ axes) ** 2).sum(axis=1).mean()))
        return cls(mean, axes * (np.sqrt(SQUARED_NORM) / max(norm, 1e-12)))

    def apply(self, features: ArrayLike) -> NDArray[np.float32]:
        """Return the reduced features, (N, C), in single precision."""
        x = np.asarray(features, dtype=np.float64)
        return ((x - self.mean) @ self.axes).astype(np.float32)

    def unfold(
        self, weight: NDArray[np.float64], bias: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return weight, (D, K), and bias, (K,), on features, of a classifier of reduced ones."""
        whole = self.axes @ weight
        return whole, bias - self.mean @ whole


def _principal_axes(x: NDArray[np.float64], kept: int) -> NDArray[np.float64]:
    from sklearn.decomposition import PCA

    def make() -> Tree:
        found = PCA(kept, svd_solver="randomized", random_state=0).fit(x)
        return {"axes": torch.from_numpy(np.ascontiguousarray(found.components_.T, dtype=np.float64))}

    made = remembered(f"{kept} principal axes", {"x": x}, make)["axes"]
    return np.asarray(made.numpy())


# Full fits stop when no logit of the training rows has moved further.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Linear:
    """Logits x W + b.

    Attributes:
        weight: W, (D, K).
        bias: b, (K,).
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]

    def logits(self, x: ArrayLike) -> NDArray[np.float64]:
        """Return the logits of features, (N, K)."""
        found = np.asarray(x) @ self.weight.astype(np.asarray(x).dtype) + self.bias
        return np.asarray(found, dtype=np.float64)


class SoftProbe:
    """Minimise −Σ_i w_i Σ_k q_ik ln softmax(x_i W + b)_k + |W|²/(2c), for any targets q.

    By bound optimisation: the Hessian is bounded by ½ XᵀX ⊗ I whatever W is (Böhning 1992), so one Cholesky
    factor serves every step of every fit on these rows; Nesterov's momentum is restarted where it turns.

    Args:
        x: (N, D) features.
        strength: c, the inverse of the penalty, as scikit-learn's C.
        weight: (N,) how much each example counts; None: once.

    Example:
        >>> from scipy.special import softmax
        >>> x = np.array([[-1.0], [1.0]])
        >>> found = SoftProbe(x, 10.0).fit(np.array([[0.9, 0.1], [0.1, 0.9]]))
        >>> softmax(found.logits(x), axis=1).round(1).tolist()
        [[0.9, 0.1], [0.1, 0.9]]
    """

    @one_thread()
    def __init__(self, x: ArrayLike, strength: float, weight: ArrayLike | None = None) -> None:
        rows = np.asarray(x)
        self._strength = positive("strength", strength)
        self._weight = None if weight is None else np.asarray(weight, dtype=np.float64)[:, None]
        counted = np.ones((len(rows), 1)) if self._weight is None else self._weight
        self._total = float(counted.sum())
        self._mean = (rows * counted).sum(axis=0) / self._total
        self._x = np.ascontiguousarray(rows - self._mean.astype(rows.dtype))
        scatter = (self._x * counted.astype(rows.dtype)).T @ self._x
        # A rough bound on how far logits move with the weights: the root mean square norm of the rows.
        self._scale = np.sqrt(float((self._x**2).sum()) / len(self._x)) / np.sqrt(rows.shape[1])
        self._factor = cho_factor(0.5 * scatter.astype(np.float64) + np.eye(rows.shape[1]) / self._strength)

    @one_thread()
    def fit(self, targets: NDArray[np.float64], start: Linear | None = None, steps: int = 300) -> Linear:
        """Return the classifier after at most so many steps from a start, or from the classes' shares.

        Args:
            targets: q, (N, K), rows of class probabilities.
            start: A classifier fitted on these rows before.
            steps: At most so many.
        """
        k = targets.shape[1]
        if start is None:
            counted = targets if self._weight is None else targets * self._weight
            shares = (counted.sum(axis=0) + 1e-3) / (self._total + 1e-3 * k)
            weight, bias = np.zeros((self._x.shape[1], k)), np.log(shares)
        else:
            weight, bias = start.weight, start.bias + self._mean @ start.weight
        ahead, ahead_bias, momentum = weight, bias, 1.0
        across = np.ascontiguousarray(targets.T, dtype=self._x.dtype)
        for _ in range(steps):
            step, step_bias = self._step(across, ahead, ahead_bias)
            moved, moved_bias = ahead + step - weight, ahead_bias + step_bias - bias
            if float((step * moved).sum() + step_bias @ moved_bias) < 0:  # past the valley: restart
                momentum = 1.0
            weight, bias = ahead + step, ahead_bias + step_bias
            if self._rests(moved, moved_bias):
                break
            following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
            share, momentum = (momentum - 1) / following, following
            ahead, ahead_bias = weight + share * moved, bias + share * moved_bias
        return Linear(weight, bias - self._mean @ weight)

    def _step(
        self, targets: NDArray[np.floating], weight: NDArray[np.float64], bias: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the step of the bound's minimum, for W and b; targets are (K, N): fast to sum."""
        kind = self._x.dtype
        # Rows times W: the other way round the product of so few classes takes twice as long.
        p = np.ascontiguousarray((self._x @ weight.astype(kind)).T)
        p += bias.astype(kind)[:, None]
        p -= p.max(axis=0)
        np.exp(p, out=p)
        p /= p.sum(axis=0)
        rest = np.subtract(targets, p, out=p)
        if self._weight is not None:
            rest *= self._weight[:, 0].astype(kind)
        gradient = (rest @ self._x).T.astype(np.float64) - weight / self._strength
        step = cho_solve(self._factor, gradient, check_finite=False)
        return np.asarray(step), 2 * rest.sum(axis=1, dtype=np.float64) / self._total

    def _rests(self, moved: NDArray[np.float64], moved_bias: NDArray[np.float64]) -> bool:
        return self._scale * float(np.linalg.norm(moved)) < TOLERANCE and bool(
            np.abs(moved_bias).max() < TOLERANCE
        )
