"""The majority of votes, then scikit-learn's LogisticRegressionCV on frozen features: what a user does first.

Of several classes with most votes, the label as given where it is one, else the first. The head alone is
fitted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hesstune.methods._peers import VotedHeadMethod
from hesstune.weak.votes import Votes


class Majority(VotedHeadMethod):
    """A head on majority labels."""

    maker = "the majority of votes"

    @classmethod
    def voted(cls, votes: Votes, labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """Return the class of most votes."""
        counts = votes.counts.astype(np.float64)
        heard = counts.any(axis=1)
        counts[np.arange(len(labels)), labels] += 0.5
        return np.where(heard, counts.argmax(axis=1), -1)


METHOD = Majority
