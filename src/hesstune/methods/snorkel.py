"""snorkel's LabelModel on votes, then scikit-learn's LogisticRegressionCV on frozen features.

The head alone is fitted. Source: Ratner et al. 2019, by the package snorkel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hesstune.methods._peers import VotedHeadMethod
from hesstune.weak.label_models import label
from hesstune.weak.votes import Votes


class Snorkel(VotedHeadMethod):
    """A head on snorkel's labels."""

    maker = "snorkel's LabelModel"

    @classmethod
    def voted(cls, votes: Votes, labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """Return the likeliest classes."""
        return label(votes, "snorkel", seed=seed).labels


METHOD = Snorkel
