"""What every label model is: a name, a computation, the fields of its record and a sentence for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hesstune.weak.votes import Votes

Checked = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Rows and true classes of human-checked examples."""
Answer = tuple[NDArray[np.float64], dict[str, Any]]
"""P(class | votes), (N, K), and the model's own numbers, JSON-ready."""


@dataclass(frozen=True)
class ModelInputs:
    """What a label model may use beside the votes.

    Attributes:
        features: (N, D), or None.
        checked: Human-checked examples, or None.
        balance: (K,) shares of the classes, or None if unknown.
        seed: Seed of ties, folds and restarts.
    """

    features: NDArray[np.float64] | None
    checked: Checked | None
    balance: NDArray[np.float64] | None
    seed: int


class LabelModel:
    """A label model: the class LABEL_MODEL of a file in this folder, whose name is the model's."""

    # A sentence for people.
    summary: ClassVar[str]
    # The keys of its record, and what they mean.
    record: ClassVar[dict[str, str]] = {}
    needs_features: ClassVar[bool] = False
    # Whether its answers are probabilities of the true class, so that they say how often labels are wrong.
    is_calibrated: ClassVar[bool] = True
    # Whether it fits so few numbers that it cannot assign all examples to one class.
    keeps_classes: ClassVar[bool] = False

    @classmethod
    def fit(cls, votes: Votes, inputs: ModelInputs) -> Answer:
        """Return posterior and record of votes, on every example at least one."""
        raise NotImplementedError
