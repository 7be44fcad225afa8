"""Probes: softmax regression on frozen features, for hard labels and for soft targets.

`fit_probe` is scikit-learn's, for class indices. `SoftProbes` take class probabilities as targets and
are made for many short fits on the same rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import solve_triangular

from hesstune.checks import class_count, integer_labels, positive
from hesstune.errors import ConfigError, DataError
from hesstune.runtime.device import one_thread
from hesstune.storage.remembered import remembered
from hesstune.storage.tensors import Tree

# Principal components kept at most: a ridge rules the others out if labels are noisy.
COMPONENTS = 256
# Mean squared norm of reduced features, whatever their number: penalties mean the same everywhere.
SQUARED_NORM = 128.0
# With more rows, principal axes come from the covariance; rows converted to double precision at a time.
MANY, CHUNK = 50_000, 65_536
# Probabilities that are computed in one product, at most.
AT_ONCE = 1 << 22
# What rounding of a scatter may change, in units of its trace times the precision.
ROUNDING = 8
# Full fits stop when no logit of the training rows has moved further.
TOLERANCE = 1e-3
# Of `cross_fit`: folds, principal components (with more, a probe on a few thousand examples fits noise), and
# inverse penalties tried, on features whose mean squared norm is the number of components.
FOLDS, CROSS_FIT_COMPONENTS, CROSS_FIT_STRENGTHS = 5, 128, (0.003, 0.03, 0.3)


@dataclass(frozen=True)
class Linear:
    """Logits x W + b.

    Attributes:
        weight: W, (D, K).
        bias: b, (K,); −∞ for a class without examples.
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]

    def logits(self, x: ArrayLike) -> NDArray[np.float64]:
        """Return the logits of features, (N, K)."""
        found = np.asarray(x) @ self.weight.astype(np.asarray(x).dtype) + self.bias
        return np.asarray(found, dtype=np.float64)

    def probabilities(self, x: ArrayLike) -> NDArray[np.float64]:
        """Return P(class | features), (N, K)."""
        from scipy.special import softmax

        return np.asarray(softmax(np.asarray(x, dtype=np.float64) @ self.weight + self.bias, axis=1))


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
        rows = np.asarray(features)
        if rows.ndim != 2 or len(rows) < 2 or not all(np.isfinite(part).all() for part in _parts(rows)):
            raise DataError(f"features must be finite, (N, D) with N of at least 2; got shape {rows.shape}")
        kept = min(components, len(rows) - 1, rows.shape[1])
        if len(rows) > MANY:
            mean, covariance = _moments(rows)
            axes = (
                np.eye(len(mean)) if kept == len(mean) else np.linalg.eigh(covariance)[1][:, ::-1][:, :kept]
            )
            norm = float(np.sqrt(((covariance @ axes) * axes).sum()))
        else:
            x = rows.astype(np.float64)
            mean = x.mean(axis=0)
            axes = np.eye(x.shape[1]) if kept == x.shape[1] else _principal_axes(x, kept)
            norm = float(np.sqrt((((x - mean) @ axes) ** 2).sum(axis=1).mean()))
        return cls(mean, axes * (np.sqrt(SQUARED_NORM) / max(norm, 1e-12)))

    def apply(self, features: ArrayLike) -> NDArray[np.float32]:
        """Return the reduced features, (N, C), in single precision."""
        rows = np.asarray(features)
        found = np.empty((len(rows), self.axes.shape[1]), dtype=np.float32)
        at = 0
        for part in _parts(rows):
            found[at : at + len(part)] = (part - self.mean) @ self.axes
            at += len(part)
        return found

    def unfold(
        self, weight: NDArray[np.float64], bias: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return weight, (D, K), and bias, (K,), on features, of a classifier of reduced ones."""
        whole = self.axes @ weight
        return whole, bias - self.mean @ whole


def _parts(rows: NDArray[Any]) -> Iterator[NDArray[np.float64]]:
    """Return the rows in double precision, in parts: a memory-mapped array is never read as a whole."""
    return (rows[at : at + CHUNK].astype(np.float64) for at in range(0, len(rows), CHUNK))


def _moments(rows: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean, (D,), and the covariance, (D, D), of rows, divided by their number."""
    mean = np.sum([part.sum(axis=0) for part in _parts(rows)], axis=0) / len(rows)
    covariance = np.zeros((len(mean), len(mean)))
    for part in _parts(rows):
        covariance += (part - mean).T @ (part - mean)
    return mean, covariance / len(rows)


def _principal_axes(x: NDArray[np.float64], kept: int) -> NDArray[np.float64]:
    from sklearn.decomposition import PCA

    def make() -> Tree:
        found = PCA(kept, svd_solver="randomized", random_state=0).fit(x)
        return {"axes": torch.from_numpy(np.ascontiguousarray(found.components_.T, dtype=np.float64))}

    made = remembered(f"{kept} principal axes", {"x": x}, make)["axes"]
    return np.asarray(made.numpy())


def fit_probe(
    features: ArrayLike, labels: ArrayLike, k: int, *, strength: float = 1.0, steps: int = 300
) -> Linear:
    """Fit multinomial logistic regression with an L2 penalty (scikit-learn's C = strength).

    A fit that has not converged after its steps is returned as it is. If all labels are of one class, the
    probe predicts no other.

    Args:
        features: (N, D).
        labels: (N,) class indices; classes may be missing.
        k: Number of classes.
        strength: Inverse of the penalty.
        steps: At most so many steps of L-BFGS.

    Example:
        >>> probe = fit_probe([[0.0], [0.2], [1.0]], [0, 0, 2], k=3)
        >>> probe.probabilities([[0.0]]).round(2).tolist()
        [[0.71, 0.0, 0.29]]
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    x = np.asarray(features, dtype=np.float64)
    y = integer_labels(labels, k, "labels")
    present = np.unique(y)
    # A row a class in memory, as scikit-learn's own: products with it then agree to the last digit.
    weight, bias = np.zeros((k, x.shape[1])).T, np.full(k, -np.inf)
    if len(present) == 1:
        bias[present] = 0.0
        return Linear(weight, bias)
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(C=positive("strength", strength), max_iter=steps).fit(x, y)
    if len(present) == 2:
        bias[present] = 0.0, fitted.intercept_[0]
        weight[:, present[1]] = fitted.coef_[0]
    else:
        weight[:, present], bias[present] = fitted.coef_.T, fitted.intercept_
    return Linear(weight, bias)


def cross_fit(
    features: ArrayLike,
    labels: ArrayLike,
    k: int,
    *,
    folds: int = FOLDS,
    seed: int = 0,
    groups: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """Return g(x)[j] = P(noisy = j | x) of every example from a probe that was not trained on it.

    Folds are drawn uniformly; examples of a group are in one fold. The probe is multinomial logistic
    regression on principal components; its penalty has the largest held-out likelihood of the noisy labels.
    A class that a fold's probe has not seen gets the share 1/(n + K) of it, never zero.

    Args:
        features: (N, D) features of the pretrained network, frozen.
        labels: Noisy labels, (N,).
        k: Number of classes.
        folds: Number of folds.
        seed: Of the folds.
        groups: (N,) groups of copies; None: each example is its own.

    Raises:
        ConfigError: If there are more folds than groups.
        DataError: If features are not finite or do not match the labels.

    Example:
        >>> y = np.arange(60) % 2
        >>> g = cross_fit(np.eye(2)[y] + 0.1 * np.random.default_rng(0).normal(size=(60, 2)), y, 2)
        >>> bool((g.argmax(axis=1) == y).all())
        True
    """
    k = class_count(k)
    given = integer_labels(labels, k, "noisy labels")
    x = reduced_features(features, len(given))
    own = np.arange(len(given)) if groups is None else np.unique(groups, return_inverse=True)[1]
    units = int(own.max(initial=-1)) + 1
    if not 2 <= folds <= units:
        copies = "" if units == len(given) else f" ({len(given)} with copies)"
        raise ConfigError(f"{units} examples{copies} cannot be cut into {folds} folds for cross-fitting")
    order = np.random.default_rng([seed, 0xCF]).permutation(units)
    parts = np.array_split(order, folds)
    if groups is not None:
        parts = [np.flatnonzero(np.isin(own, some)) for some in parts]
    best, best_fit = np.zeros((len(given), k)), -np.inf
    for strength in CROSS_FIT_STRENGTHS:
        g = np.empty((len(given), k))
        for rows in parts:
            rest = np.setdiff1d(np.arange(len(given)), rows)
            p = fit_probe(x[rest], given[rest], k, strength=strength, steps=200).probabilities(x[rows])
            floor = 1.0 / (len(rest) + k)
            g[rows] = (p + floor * (p == 0)) / (1 + floor * (p == 0).sum(axis=1, keepdims=True))
        fit = float(np.log(g[np.arange(len(given)), given]).mean())
        if fit > best_fit:
            best, best_fit = g, fit
    return best


def reduced_features(features: ArrayLike, n: int) -> NDArray[np.float64]:
    """Return at most CROSS_FIT_COMPONENTS centred components, (n, C), of that mean squared norm."""
    from sklearn.decomposition import PCA

    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or len(x) != n or not np.isfinite(x).all():
        raise DataError(f"features must be finite, ({n}, D), one row a label; got shape {x.shape}")
    if x.shape[1] > CROSS_FIT_COMPONENTS and n > CROSS_FIT_COMPONENTS:
        x = PCA(CROSS_FIT_COMPONENTS, svd_solver="randomized", random_state=0).fit_transform(x)
    x = x - x.mean(axis=0)
    scale = max(float(np.sqrt((x * x).sum(axis=1).mean())), 1e-12)
    return np.asarray(x / scale * np.sqrt(CROSS_FIT_COMPONENTS))


class SoftProbes:
    """Softmax regressions on the same rows, each fitted without the rows held out from it.

    Each minimises −Σ_i w_i Σ_k q_ik ln softmax(x_i W + b)_k + |W|²/(2c), for any targets q, by bound
    optimisation: the Hessian is bounded by ½ XᵀX ⊗ I whatever W is (Böhning 1992), so one Cholesky factor
    serves every step of every fit; Nesterov's momentum is restarted if it points away from the
    minimum. One product of matrices serves all regressions: several times as fast as one after the other.

    Args:
        x: (N, D) features.
        strength: c, the inverse of the penalty, as scikit-learn's C.
        weight: (N,) how much each example counts; None: once.
        held_out: The rows held out from each regression; default: one regression of all rows.

    Example:
        >>> from scipy.special import softmax
        >>> x = np.array([[-1.0], [1.0]])
        >>> (found,) = SoftProbes(x, 10.0).fit(np.array([[0.9, 0.1], [0.1, 0.9]]))
        >>> softmax(found.logits(x), axis=1).round(1).tolist()
        [[0.9, 0.1], [0.1, 0.9]]
    """

    @one_thread()
    def __init__(
        self,
        x: ArrayLike,
        strength: float,
        weight: ArrayLike | None = None,
        held_out: Sequence[NDArray[np.int64]] = (),
    ) -> None:
        rows = np.asarray(x)
        kind, d = rows.dtype, rows.shape[1]
        self._strength, self._held_out = positive("strength", strength), held_out
        counts = np.ones(len(rows), kind) if weight is None else np.asarray(weight, dtype=kind)
        every = np.tile(counts, (max(len(held_out), 1), 1))
        for at, out in enumerate(held_out):
            every[at, out] = 0
        self._counts = None if weight is None and not held_out else every[:, None, :]
        self._totals = every.sum(axis=1, dtype=np.float64)
        centre = rows.sum(axis=0, dtype=np.float64) / len(rows)
        self._x = np.ascontiguousarray(rows - centre.astype(kind))
        # Each regression is centred on the mean of its own rows, beside that of all.
        self._means = (every @ self._x).astype(np.float64) / self._totals[:, None]
        self._centres = centre.astype(kind) + self._means
        scatters = np.repeat(_scatter(self._x, weight)[None], len(every), axis=0)
        for at, out in enumerate(held_out):
            scatters[at] -= _scatter(self._x[out], None if weight is None else counts[out])
        scatters -= self._totals[:, None, None] * self._means[:, :, None] * self._means[:, None, :]
        # Features of low rank have eigenvalues of 0; rounding may make them negative.
        rounding = ROUNDING * float(np.finfo(kind).eps) * float(np.trace(scatters[0]))
        factors = np.linalg.cholesky(0.5 * scatters + np.eye(d) * (1 / self._strength + rounding))
        inverses = [solve_triangular(one, np.eye(d), lower=True, check_finite=False) for one in factors]
        self._inverse = np.stack(inverses).astype(kind)  # of the Cholesky factors, (M, D, D)
        # A rough bound on how far logits move with the weights: the root mean square norm of the rows.
        self._scale = np.sqrt(float(np.einsum("nd,nd->", self._x, self._x)) / self._x.size)
        self._weight: NDArray[np.float64]  # (M, K, D), of the last fit
        self._bias: NDArray[np.float64]  # (M, K)

    @one_thread()
    def fit(
        self,
        targets: NDArray[np.float64],
        steps: int = 300,
        *,
        start: Linear | None = None,
        go_on: bool = False,
    ) -> list[Linear]:
        """Return the regressions after at most so many steps.

        Args:
            targets: q, (N, K), rows of class probabilities.
            steps: At most so many.
            start: Where all of them start; None: at the classes' shares.
            go_on: Start where the last fit ended instead.
        """
        across, (n, k) = np.ascontiguousarray(targets.T, dtype=self._x.dtype), targets.shape
        if go_on:
            self._weight, self._bias = self._weight.copy(), self._bias.copy()
        elif start is not None:
            self._weight = np.repeat(start.weight.T[None], len(self._totals), axis=0)
            self._bias = start.bias + self._centres @ start.weight
        else:
            counts = np.ones((1, 1, n)) if self._counts is None else self._counts
            shares = (counts[:, 0] @ targets + 1e-3) / (self._totals[:, None] + 1e-3 * k)
            self._weight, self._bias = np.zeros((len(shares), k, self._x.shape[1])), np.log(shares)
        size = max(1, AT_ONCE // (n * k))
        for at in range(0, len(self._bias), size):
            self._fit(slice(at, at + size), across, steps)
        return [
            Linear(weight.T, bias - weight @ centre)
            for weight, bias, centre in zip(self._weight, self._bias, self._centres, strict=True)
        ]

    def _fit(self, some: slice, targets: NDArray[np.floating], steps: int) -> None:
        """Take the steps of some regressions; targets are (K, N): fast to sum."""
        weight, bias = self._weight[some], self._bias[some]
        ahead, ahead_bias, momentum = weight, bias, np.ones((len(bias), 1, 1))
        for _ in range(steps):
            step, step_bias = self._step(some, targets, ahead, ahead_bias)
            moved, moved_bias = ahead + step - weight, ahead_bias + step_bias - bias
            along = (step * moved).sum(axis=(1, 2)) + (step_bias * moved_bias).sum(axis=1)
            momentum[along < 0] = 1.0  # past the minimum: restart
            weight, bias = ahead + step, ahead_bias + step_bias
            if self._converged(moved, moved_bias):
                break
            following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
            share, momentum = (momentum - 1) / following, following
            ahead, ahead_bias = weight + share * moved, bias + share[:, 0] * moved_bias
        self._weight[some], self._bias[some] = weight, bias

    def _step(
        self,
        some: slice,
        targets: NDArray[np.floating],
        weight: NDArray[np.float64],
        bias: NDArray[np.float64],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the steps to the minima of the bounds, for W, (M, K, D), and b, (M, K)."""
        kind, means, flat = self._x.dtype, self._means[some], (-1, self._x.shape[1])
        # Rows times W: the other way round the product of so few classes takes twice as long.
        p = np.ascontiguousarray((self._x @ weight.reshape(flat).T.astype(kind)).T)
        p = p.reshape(*bias.shape, -1)
        p += (bias - np.einsum("mkd,md->mk", weight, means)).astype(kind)[:, :, None]
        p -= p.max(axis=1, keepdims=True)
        np.exp(p, out=p)
        p /= p.sum(axis=1, keepdims=True)
        left = np.subtract(targets, p, out=p)
        if self._counts is not None:
            left *= self._counts[some]
        sums = left.sum(axis=2, dtype=np.float64)
        gradient = (left.reshape(-1, len(self._x)) @ self._x).reshape(weight.shape)
        gradient = gradient - sums[:, :, None] * means[:, None, :] - weight / self._strength
        inverse = self._inverse[some]
        step = (gradient.astype(kind) @ inverse.transpose(0, 2, 1)) @ inverse
        return step.astype(np.float64), 2 * sums / self._totals[some, None]

    def held_out_logits(self) -> NDArray[np.float64]:
        """Return each row's logits, (N, K), by the regression that it was held out from; NaN for no such."""
        found = np.full((len(self._x), self._bias.shape[1]), np.nan)
        for at, rows in enumerate(self._held_out):
            weight, mean = self._weight[at], self._means[at]
            found[rows] = Linear(weight.T, self._bias[at] - weight @ mean).logits(self._x[rows])
        return found

    def _converged(self, moved: NDArray[np.float64], moved_bias: NDArray[np.float64]) -> bool:
        far = self._scale * float(np.sqrt((moved * moved).sum(axis=(1, 2)).max()))
        return far < TOLERANCE and bool(np.abs(moved_bias).max() < TOLERANCE)


def _scatter(x: NDArray[np.floating], weight: ArrayLike | None) -> NDArray[np.float64]:
    """Return Σ_i w_i x_i x_iᵀ, (D, D), by a product in the precision of x."""
    counted = x if weight is None else x * np.asarray(weight, dtype=x.dtype)[:, None]
    return np.asarray(counted.T @ x, dtype=np.float64)
