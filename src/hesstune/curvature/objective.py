"""The per-example loss that is measured, and its form with accurate second derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from hesstune.errors import ConfigError, DataError, unknown_name

PerExampleLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Objective:
    """A per-example loss ℓ(f, y) and the properties of its Hessian in the logits f.

    Cross-entropy, the consistent loss, label smoothing and soft targets are all mixtures
    ℓ = −Σ_k c_k log p_k. Their Hessian in f is w·Λ with w = Σ_k c_k and Λ = diag(p) − p pᵀ: the c_k
    matter only through their sum, which is 1 (rows of F⁻¹ sum to 1) times class weights.

    Args:
        loss: `cross_entropy`, `consistent`, or a callable (logits (B, K), targets) -> (B,).
        noise_matrix: For `consistent`: F as an array (F[i, j] = P(noisy = j | true = i)), or anything with
            an `inverse` attribute, such as a noise matrix.
        label_smoothing: ε: the targets become (1 − ε)·onehot + ε/K.
        class_weights: (K,), non-negative: c_k is multiplied by the k-th one.

    Raises:
        ConfigError: If the arguments do not fit together.
    """

    def __init__(
        self,
        loss: str | PerExampleLoss = "cross_entropy",
        noise_matrix: Any = None,
        label_smoothing: float = 0.0,
        class_weights: torch.Tensor | None = None,
    ) -> None:
        if isinstance(loss, str) and loss not in ("cross_entropy", "consistent"):
            raise unknown_name("loss", loss, ["cross_entropy", "consistent"])
        if (loss == "consistent") != (noise_matrix is not None):
            raise ConfigError(
                "loss='consistent' and a noise matrix go together; "
                f"got loss={loss!r} and noise_matrix={'given' if noise_matrix is not None else 'None'}"
            )
        if not 0.0 <= label_smoothing < 1.0:
            raise ConfigError(f"label_smoothing must be in [0, 1); got {label_smoothing}")
        if callable(loss) and (label_smoothing or class_weights is not None):
            raise ConfigError("label_smoothing and class_weights belong inside a loss given as a callable")
        self._callable = loss if callable(loss) else None
        self._inverse = _inverse_of(noise_matrix)
        self._smoothing = label_smoothing
        self._class_weights = class_weights
        if class_weights is not None and bool((torch.as_tensor(class_weights) < 0).any()):
            raise ConfigError("class_weights must not be negative")

    @property
    def is_mixture(self) -> bool:
        """Whether the Hessian in the logits is w·Λ, so that the exact path holds."""
        return self._callable is None

    def coefficients(self, targets: torch.Tensor, classes: int) -> torch.Tensor:
        """Return c of ℓ = −Σ_k c_k log p_k, (B, K), in float64.

        Args:
            targets: Class indices (B,), or soft targets (B, K).
            classes: K.

        Raises:
            DataError: If the targets do not fit the K classes.
        """
        device, table = targets.device, None
        if self._inverse is not None:
            if self._inverse.shape != (classes, classes):
                raise ConfigError(
                    f"the noise matrix has {len(self._inverse)} classes but the model's logits have {classes}"
                )
            table = torch.tensor(self._inverse, dtype=torch.float64, device=device)
        if targets.ndim == 2 and targets.is_floating_point():
            if targets.shape[1] != classes:
                raise DataError(f"soft targets must be (B, {classes}); got {tuple(targets.shape)}")
            mixed = targets.double() if table is None else targets.double() @ table
        else:
            _check_classes(targets, classes)
            indices = targets.long()
            mixed = nn.functional.one_hot(indices, classes).double() if table is None else table[indices]
        if self._smoothing:
            mixed = (1 - self._smoothing) * mixed + self._smoothing / classes
        if self._class_weights is not None:
            weights = torch.as_tensor(self._class_weights, dtype=torch.float64, device=device)
            if weights.shape != (classes,):
                raise ConfigError(f"class_weights must be ({classes},); got {tuple(weights.shape)}")
            mixed = mixed * weights
        return mixed

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss of every example, (B,), on the device of the logits."""
        targets = targets.to(logits.device)
        if self._callable is not None:
            losses = self._callable(logits, targets)
            if losses.shape != logits.shape[:1]:
                raise ConfigError(
                    f"the loss must return one value an example, ({logits.shape[0]},); "
                    f"got {tuple(losses.shape)}. Use reduction='none'"
                )
            return losses
        coefficients = self.coefficients(targets, logits.shape[1]).to(logits.dtype)
        return -(coefficients * torch.log_softmax(logits, dim=1)).sum(1)

    def curvature_weight(self, targets: torch.Tensor, classes: int) -> torch.Tensor:
        """Return w = Σ_k c_k of every example, (B,), float64: the Hessian in the logits is w·Λ."""
        return self.coefficients(targets, classes).sum(1)


def _check_classes(targets: torch.Tensor, classes: int) -> None:
    if targets.ndim != 1 or targets.is_floating_point():
        raise DataError(
            "targets must be class indices (B,) or soft targets (B, K); "
            f"got shape {tuple(targets.shape)}, {targets.dtype}"
        )
    wrong = (targets < 0) | (targets >= classes)
    if bool(wrong.any()):
        index = int(wrong.nonzero()[0])
        raise DataError(
            f"targets must be in [0, {classes}); got {int(targets[index])} at index {index}. "
            "Is the label column zero-based?"
        )


def _inverse_of(noise_matrix: Any) -> np.ndarray | None:
    if noise_matrix is None:
        return None
    inverse = getattr(noise_matrix, "inverse", None)
    if inverse is None:
        array = np.asarray(noise_matrix, dtype=np.float64)
        if array.ndim != 2 or array.shape[0] != array.shape[1]:
            raise ConfigError(f"noise_matrix must be a (K, K) matrix; got shape {array.shape}")
        if np.linalg.cond(array) > 1e12:
            raise ConfigError("the noise matrix is singular, so the consistent loss does not exist")
        inverse = np.linalg.inv(array)
    return np.asarray(inverse, dtype=np.float64)


def mixture_losses(logits: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
    """Return −Σ_k c_k log p_k, (B,), with accurate derivatives on fitted examples.

    With w = Σ_k c_k and t the most probable class it is w·log(1 + Σ_{k≠t} e^{f_k − f_t}) +
    Σ_k (w[k = t] − c_k) f_k: if p is close to one-hot, the second derivative of log-softmax cancels (its
    relative error is about ε/(1 − p)); that of this form does not.

    Args:
        logits: f, (B, K), K at least 2.
        coefficients: c, (B, K); one-hot targets for plain cross-entropy. Constants.
    """
    order = logits.detach().argsort(dim=1, descending=True, stable=True)
    top = order[:, :1]
    odds = torch.logsumexp(logits.gather(1, order[:, 1:]) - logits.gather(1, top), dim=1)
    total = coefficients.sum(1, keepdim=True)
    linear = (torch.zeros_like(coefficients).scatter(1, top, total) - coefficients).to(logits.dtype)
    # log(1 + e^x): on each side of 0 the form with accurate derivatives. Above its threshold torch's softplus
    # is the identity, which is not accurate enough.
    above = odds + nn.functional.softplus(-odds.clamp(min=0))
    below = nn.functional.softplus(odds.clamp(max=0))
    logistic = torch.where(odds > 0, above, below)
    return total.squeeze(1).to(logits.dtype) * logistic + (linear * logits).sum(1)


def stable_losses(loss: PerExampleLoss, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the loss of every example, (B,), in the stable form if it is a mixture of cross-entropies."""
    targets = targets.to(logits.device)
    if isinstance(loss, Objective) and loss.is_mixture:
        return mixture_losses(logits, loss.coefficients(targets, logits.shape[1]))
    return loss(logits, targets)


def loss_slopes(loss: PerExampleLoss, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the gradient of every example's loss in its logits, (B, K)."""
    leaf = logits.detach().requires_grad_()
    with torch.enable_grad():
        losses = stable_losses(loss, leaf, targets)
        return torch.autograd.grad(losses.sum(), leaf)[0] if losses.requires_grad else torch.zeros_like(leaf)
