"""Features reduced to principal components of one scale, and linear classifiers brought back from there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from hesstune.errors import DataError
from hesstune.storage.remembered import remembered
from hesstune.storage.tensors import Tree

__all__ = ["COMPONENTS", "Reduction"]

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
