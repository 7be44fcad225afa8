"""Heads that are solved from frozen features before the first step: from what, and the result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hesstune.noise.matrix import NoiseMatrix
    from hesstune.weak.votes import Votes

__all__ = ["Belief", "Budget", "HeadMaterial", "SolvedHead"]

Budget = Literal["fast", "default", "thorough"]
# No probe is surer than so that an example is not of a class.
LEAST = 1e-3


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
        votes: The votes that the labels were made of, or None.
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
    votes: Votes | None = None


@dataclass(frozen=True)
class Belief:
    """What speaks for each class of each training example: its features, and its label as given.

    Attributes:
        probabilities: P(true class | features), (N, K), of a probe that did not see the example.
        likelihood: P(label as given | true class), (N, K); where a person has checked, one-hot.
    """

    probabilities: NDArray[np.float64]
    likelihood: NDArray[np.float64]

    def posterior(self, seen: NDArray[np.float64] | None = None, share: float = 1.0) -> NDArray[np.float64]:
        """Return P(true class | features, label), (N, K), q ∝ p^share · p_net^(1 − share) · likelihood.

        Args:
            seen: ln p_net, (N, K), of another network; None: the probe alone.
            share: The probe's part in the geometric mean of the two.

        Example:
            >>> belief = Belief(np.array([[0.9, 0.1]]), np.array([[0.3, 0.7]]))
            >>> belief.posterior().round(3).tolist()
            [[0.794, 0.206]]
        """
        log_p = np.log(np.maximum(self.probabilities, LEAST))
        if seen is not None:
            log_p = share * log_p + (1.0 - share) * seen
        joint = np.exp(log_p - log_p.max(axis=1, keepdims=True)) * self.likelihood
        return np.asarray(joint / np.maximum(joint.sum(axis=1, keepdims=True), 1e-300))


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
        belief: What deeper layers are trained on: what was found of each example's true class, or None.
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    noise_matrix: NoiseMatrix | None
    name: str
    reason: str
    details: dict[str, Any] = field(default_factory=dict)
    belief: Belief | None = None

    def told(self) -> dict[str, Any]:
        """Return what a run's record says of it, JSON-ready."""
        return {"chosen": self.name, "reason": self.reason, "details": self.details}
