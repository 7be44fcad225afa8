"""The losses that methods share, with class balance taken into account."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.errors import DataError
from hesstune.losses.consistent import ConsistentLoss
from hesstune.methods._setup import MethodSetup
from hesstune.noise.matrix import NoiseMatrix

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def balanced_rates(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the relative rates q, (K,), at which a balanced sampler draws each label, mean 1.

    An example of label j is drawn q[j] times as often as under uniform sampling: q[j] = n / (K n_j).

    Raises:
        DataError: If a class has no training example.
    """
    if (counts == 0).any():
        absent = int(np.flatnonzero(counts == 0)[0])
        raise DataError(f"class {absent} has no training example, so classes cannot be balanced")
    rates: NDArray[np.float64] = counts.sum() / (len(counts) * counts.astype(np.float64))
    return rates


def clean_shares(
    noise_matrix: NoiseMatrix, counts: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return the true classes' shares π, (K,), estimated from the labels, and which of them were raised.

    π̂ = F⁻ᵀπ̃ has the covariance F⁻ᵀ(diag π̃ − π̃π̃ᵀ)F⁻¹/n. A share below its own standard error, or below
    one example, cannot be distinguished from zero or from that error: it is raised to it, so that its weight
    1/(Kπ) stays of the size that the examples can tell.
    """
    n = int(counts.sum())
    noisy = counts / n
    inverse = noise_matrix.inverse
    covariance = inverse.T @ (np.diag(noisy) - np.outer(noisy, noisy)) @ inverse / n
    least = np.maximum(np.sqrt(np.diagonal(covariance).clip(min=0.0)), 1.0 / n)
    found = noisy @ inverse
    shares = np.maximum(found, least)
    return shares / shares.sum(), np.flatnonzero(found < least)


def class_weights(setup: MethodSetup) -> torch.Tensor | None:
    """Return the weights of the noisy labels, (K,), or None where classes are not weighted."""
    return torch.from_numpy(balanced_rates(setup.counts)) if setup.balance == "weights" else None


def cross_entropy(setup: MethodSetup) -> Loss:
    """Return plain cross-entropy; balanced weights follow the noisy labels' frequencies."""

    def losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if targets.ndim == 2:
            targets = targets.to(logits)
        return torch.nn.functional.cross_entropy(logits, targets, reduction="none")

    return averaged(setup, losses)


def averaged(setup: MethodSetup, losses: Loss) -> Loss:
    """Return the mean of per-example losses, weighted by class where classes are balanced so."""
    weight = class_weights(setup)

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        values = losses(logits, targets)
        return (values if weight is None else weight.to(values)[targets] * values).mean()

    return loss


def consistent(setup: MethodSetup) -> ConsistentLoss:
    """Return the consistent loss, unbiased for the clean risk or the class-balanced clean risk.

    Balance weighs the *true* classes by 1/(K π_k), π of `clean_shares`; a balanced sampler is undone by
    its own rates, which leaves the same expectation.
    """
    assert setup.noise_matrix is not None
    if setup.balance == "none":
        return ConsistentLoss(setup.noise_matrix)
    rates = balanced_rates(setup.counts)
    prior, _ = clean_shares(setup.noise_matrix, setup.counts)
    weight = torch.from_numpy(1.0 / (setup.noise_matrix.k * prior))
    sampling = torch.from_numpy(rates) if setup.balance == "sampler" else None
    return ConsistentLoss(setup.noise_matrix, weight=weight, sampling=sampling)
