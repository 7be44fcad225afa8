"""What a bound is told of its examples and their labels: losses, their part of δ, and the words for it."""

from __future__ import annotations

from typing import Any

from hesstune.bounds.noisy import CleanLoss, KnownNoise, NoiseConfidenceSet, clean_losses, zero_one_loss
from hesstune.errors import ConfigError, NoiseMatrixError

__all__ = ["kind_of", "losses_for", "noise_as_told", "sample_assumptions", "spent_by"]


def noise_as_told(noise_matrix: Any, noise_is: str) -> str:
    """Return how the noise is known: what a matrix says of itself is not overruled by `known`."""
    origin = getattr(noise_matrix, "origin", "stated")
    return origin if noise_is == "known" and origin in ("estimated", "instance_dependent") else noise_is


def spent_by(noise_matrix: Any, delta: float) -> float:
    """Return the part of delta that a confidence set of the noise has; delta is checked.

    Raises:
        ConfigError: If nothing of delta is left.
    """
    spent = noise_matrix.delta if isinstance(noise_matrix, NoiseConfidenceSet) else 0.0
    if not 0 < delta - spent < 1 or not delta < 1:
        least = f"above the noise set's own {spent:g} and below 1" if spent else "in (0, 1)"
        raise ConfigError(f"delta must lie {least}; got {delta}")
    return float(spent)


def losses_for(noise_matrix: Any, k: int, method: str = "tightest") -> list[CleanLoss]:
    """Return the losses whose means bound the clean risk: 1 − I where labels are true.

    Raises:
        NoiseMatrixError: If the matrix is for other classes, or leaves nothing to learn from.
    """
    if noise_matrix is None:
        return [zero_one_loss(k)]
    known = noise_matrix if isinstance(noise_matrix, NoiseConfidenceSet) else KnownNoise(noise_matrix)
    if known.k != k:
        raise NoiseMatrixError(f"the noise matrix is for {known.k} classes; the model has {k}")
    return clean_losses(known, method)


def kind_of(noise_matrix: Any) -> str:
    """Say in words how the labels' noise is known."""
    if noise_matrix is None:
        return "clean"
    if isinstance(noise_matrix, NoiseConfidenceSet):
        return "noisy, with a confidence set for the noise matrix"
    return "noisy, with a known noise matrix"


def sample_assumptions(n: int, noise_matrix: Any, noise_is: str, repeats: str) -> list[str]:
    """List, in words, what must hold of the examples and their labels, and what was fixed before them."""
    told = [
        f"the {n} examples are independent draws from the distribution that the model will meet",
        "delta, the method, every option and the part of the data that the bound counts on were chosen "
        "without regard to the result",
    ]
    if repeats == "allow":
        told.append("repeated inputs are independent draws of a distribution that has such repeats")
    if noise_matrix is not None:
        told.append("label noise depends on the true class alone, not on the input")
        if isinstance(noise_matrix, NoiseConfidenceSet):
            told.append(
                f"the clean sample's {int(noise_matrix.counts.sum())} examples are independent of the "
                "certificate's and have the same noise"
            )
        elif noise_is == "known":
            told.append("the noise matrix is known, not estimated")
    return told
