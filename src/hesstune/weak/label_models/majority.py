"""Majority vote."""

from __future__ import annotations

from hesstune.weak.label_models import Answer, LabelModel, ModelInputs
from hesstune.weak.votes import Votes


class Majority(LabelModel):
    """Shares of the votes."""

    summary = "The class with the most votes; ties are drawn at random by the seed."
    is_calibrated = False
    keeps_classes = True

    @classmethod
    def fit(cls, votes: Votes, inputs: ModelInputs) -> Answer:
        """Return each class's share of an example's votes."""
        return votes.counts / votes.counts.sum(axis=1, keepdims=True), {}


LABEL_MODEL = Majority
