"""The sum of the annotators' probabilities."""

from __future__ import annotations

import numpy as np

from hesstune.weak.label_models import Answer, LabelModel, ModelInputs
from hesstune.weak.votes import Votes


class Soft(LabelModel):
    """Mean probabilities."""

    summary = "The mean of the annotators' probabilities as given, or of their votes."
    is_calibrated = False
    keeps_classes = True

    @classmethod
    def fit(cls, votes: Votes, inputs: ModelInputs) -> Answer:
        """Return the mean of what the annotators say of an example."""
        total = votes.counts if votes.soft is None else votes.soft.sum(axis=1)
        return total / np.maximum(total.sum(axis=1, keepdims=True), 1e-300), {}


LABEL_MODEL = Soft
