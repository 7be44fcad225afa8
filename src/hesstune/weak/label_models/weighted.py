"""Votes weighted by each annotator's accuracy."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from hesstune.weak.label_models import Answer, LabelModel, ModelInputs
from hesstune.weak.label_models.majority import Majority
from hesstune.weak.vote_models import WEIGHTED, choose
from hesstune.weak.votes import Votes


class Weighted(LabelModel):
    """One accuracy for each annotator, shrunk to the mean; the strength has the best held-out likelihood."""

    summary = "Each annotator's votes weighted by its accuracy, which is estimated from the votes."
    record: ClassVar[dict[str, str]] = {
        "chosen": "the candidate",
        "scores": "log-likelihood of a held-out vote, and the standard error of its gain, by candidate",
        "reasons": "why, in sentences",
        "refused": "candidates that lost a class",
        "accuracy": "each annotator's estimated accuracy",
    }
    keeps_classes = True
    candidates: tuple[str, ...] = WEIGHTED

    @classmethod
    def fit(cls, votes: Votes, inputs: ModelInputs) -> Answer:
        """Return the posterior of the candidate with the best held-out likelihood of votes."""
        # A prior that is fitted to the votes favours the classes of annotators who vote most: it is uniform.
        prior = np.full(votes.k, 1 / votes.k) if inputs.balance is None else inputs.balance
        fitted, details = choose(votes, np.log(prior), inputs.seed, cls.candidates)
        if np.isnan(fitted.accuracy).all():  # the majority vote, or all annotators alike
            return Majority.fit(votes, inputs)[0], details
        accuracy = dict(zip(votes.names, np.round(fitted.accuracy, 4).tolist(), strict=True))
        return fitted.posterior(votes), {**details, "accuracy": accuracy}


LABEL_MODEL = Weighted
