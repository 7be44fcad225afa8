"""The consistent loss ("backward correction"): equal to the clean loss in expectation."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from hesstune.checks import one_of
from hesstune.errors import ConfigError, DataError, HesstuneWarning
from hesstune.noise.matrix import NoiseMatrix

CONDITION_WARNING = 100.0
# Logits beyond this size are cut, so that the loss and its mean stay finite in float32.
LOGIT_LIMIT = 1e30
REDUCTIONS = ("mean", "sum", "none")


def reduced(losses: torch.Tensor, reduction: str) -> torch.Tensor:
    """Return the mean or the sum of losses, (N,), or these themselves."""
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()


def check_targets(logits: torch.Tensor, targets: torch.Tensor) -> None:
    """Raise DataError unless targets are (N,) integer class indices that fit the (N, K) logits."""
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise DataError(
            f"logits must be (N, K) and targets (N,); got {tuple(logits.shape)} and {tuple(targets.shape)}. "
            "Multi-label targets and regression are not supported"
        )
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise DataError(
            f"targets must be integer class indices; got {targets.dtype}. "
            "Multi-label targets and regression are not supported"
        )
    k = logits.shape[1]
    outside = (targets < 0) | (targets >= k)
    if bool(outside.any()):
        at = int(outside.nonzero()[0, 0])
        raise DataError(
            f"targets must be in [0, {k}); got {int(targets[at])} at index {at}. "
            "Is the label column zero-based?"
        )


class ConsistentLoss(nn.Module):
    """Cross-entropy corrected for label noise: ℓ̄(f, ỹ) = Σ_k (F⁻¹)[ỹ, k] ℓ(f, k).

    E[ℓ̄(f, ỹ) | y] = ℓ(f, y) for ỹ drawn from row y of F. F⁻¹ has negative entries, so the loss is
    unbounded below: train with a distance constraint. Source: the paper, section 4; Natarajan et
    al. 2013; Patrini et al. 2017.

    Args:
        noise_matrix: F for K classes, a `NoiseMatrix` or an array, (K, K), with rows that sum to 1.
        reduction: `mean` (over examples), `sum` or `none`.
        weight: Class weights w, (K,): the expectation becomes w_y ℓ(f, y). They multiply the loss of
            the *true* class, inside the sum, so the loss stays unbiased; `mean` divides by N.
        sampling: Relative rates q, (K,), at which examples of each noisy label are drawn; the loss is
            divided by q[ỹ], so that a balanced sampler leaves it unbiased.

    Raises:
        NoiseMatrixError: If F is singular.

    Example:
        >>> from hesstune import NoiseMatrix
        >>> loss = ConsistentLoss(NoiseMatrix.symmetric(3, 0.2))
        >>> round(float(loss(torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0]))), 3)
        -0.332
    """

    inverse: torch.Tensor

    def __init__(
        self,
        noise_matrix: NoiseMatrix | ArrayLike,
        reduction: str = "mean",
        weight: torch.Tensor | None = None,
        sampling: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        if isinstance(noise_matrix, str | int | float):
            raise ConfigError(
                f"noise_matrix must be a NoiseMatrix or an array, (K, K); got {noise_matrix!r}: for a rate "
                "give NoiseMatrix.symmetric(K, RATE)"
            )
        if not isinstance(noise_matrix, NoiseMatrix):
            noise_matrix = NoiseMatrix(noise_matrix)
        self.reduction = one_of("reduction", reduction, REDUCTIONS)
        self.k = k = noise_matrix.k
        inverse = torch.from_numpy(np.array(noise_matrix.inverse))
        if noise_matrix.condition > CONDITION_WARNING:
            warnings.warn(
                f"the noise matrix has condition number {noise_matrix.condition:.3g} (over "
                f"{CONDITION_WARNING:g}): the corrected loss will be very noisy; consider "
                "NoiseMatrix.regularized",
                HesstuneWarning,
                stacklevel=3,
            )
        noise_matrix.warn_if_weak(near=1.0)
        if weight is not None:
            inverse = inverse * _class_vector("weight", weight, k)[None, :]
        if sampling is not None:
            inverse = inverse / _class_vector("sampling", sampling, k)[:, None]
        # Not part of the state dict: F belongs to the run's records, not to the model's weights.
        self.register_buffer("inverse", inverse, persistent=False)
        self._cast: torch.Tensor | None = None

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss of (N, K) logits against noisy targets, in float32 or better.

        Targets are (N,) integers, or (N, K) floating-point soft labels s: then Σ_j s[j] ℓ̄(f, j), which is
        consistent if F[i, j] is the mean of s[j] over the examples of class i.
        """
        soft = targets.shape == logits.shape and targets.is_floating_point()
        # Rows that are no distribution are several labels at once, not a soft one.
        soft = soft and bool(((targets.sum(dim=1) - 1).abs() < 1e-3).all())
        if not soft:
            check_targets(logits, targets)
        if logits.shape[1] != self.k:
            raise DataError(
                f"the noise matrix is for {self.k} classes, but the logits have {logits.shape[1]}"
            )
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        log_p = torch.log_softmax(logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT), dim=1)
        # The cast is kept: a training loop asks for the same device and dtype at every step.
        if (inverse := self._cast) is None or (inverse.device, inverse.dtype) != (log_p.device, log_p.dtype):
            inverse = self._cast = self.inverse.to(log_p)
        rows = targets.to(inverse) @ inverse if soft else inverse[targets.long()]
        losses = -(rows * log_p).sum(dim=1)
        return reduced(losses, self.reduction)


def _class_vector(name: str, values: torch.Tensor, k: int) -> torch.Tensor:
    vector = torch.as_tensor(values, dtype=torch.float64, device="cpu")
    if vector.shape != (k,) or not bool(torch.isfinite(vector).all()) or bool((vector <= 0).any()):
        raise ConfigError(f"{name} must be {k} finite numbers above 0; got {vector.tolist()}")
    return vector
