"""Heads that are solved from frozen features before the first step: from what, and the result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hesstune.noise.matrix import NoiseMatrix

__all__ = ["Budget", "HeadMaterial", "SolvedHead"]

Budget = Literal["fast", "default", "thorough"]


@dataclass(frozen=True)
class HeadMaterial:
    """What a head is solved from: the training examples, as a frozen network sees them.

    Attributes:
        features: (N, D) what the head is given.
        labels: (N,) labels as given, possibly wrong.
        k: Number of classes K.
        soft: (N, K) soft labels to be trained on instead, or None.
        checked: (rows, true labels) that a person has checked, or None.
        noise_matrix: F where the user knows it, or None.
        weight: (N,) how much each example counts, or None: once.
        budget: How many candidates may be tried.
        seed: Of everything drawn.
    """

    features: NDArray[np.float64]
    labels: NDArray[np.int64]
    k: int
    soft: NDArray[np.float64] | None = None
    checked: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
    noise_matrix: NoiseMatrix | None = None
    weight: NDArray[np.float64] | None = None
    budget: Budget = "default"
    seed: int = 0


@dataclass(frozen=True)
class SolvedHead:
    """A linear head, and what was found on the way.

    Attributes:
        weight: (K, D), as `torch.nn.Linear` keeps it.
        bias: (K,).
        noise_matrix: The noise that deeper layers and validation should believe in, or None.
        name: What was chosen, for people.
        reason: Why, in a sentence.
        details: Candidates, scores and cost, JSON-ready.
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    noise_matrix: NoiseMatrix | None
    name: str
    reason: str
    details: dict[str, Any] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """Return what a run's record says of it, JSON-ready."""
        return {"chosen": self.name, "reason": self.reason, "details": self.details}
