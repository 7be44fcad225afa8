"""crowd-kit's Dawid-Skene on votes, then scikit-learn's LogisticRegressionCV on frozen features.

The head alone is fitted. Source: Dawid and Skene 1979, by the package crowd-kit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hesstune.errors import MissingExtraError
from hesstune.methods._peers import VotedHeadMethod
from hesstune.weak.label_models import crowd_frame, no_deprecations
from hesstune.weak.votes import Votes

ROUNDS = 100


class CrowdKit(VotedHeadMethod):
    """A head on crowd-kit's labels."""

    maker = "crowd-kit's Dawid-Skene"

    @classmethod
    def voted(cls, votes: Votes, labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """Return the likeliest classes."""
        try:
            from crowdkit.aggregation import DawidSkene
        except ImportError:
            raise MissingExtraError("crowd-kit", "noise", "the method crowd_kit") from None
        with no_deprecations():
            found = DawidSkene(n_iter=ROUNDS).fit_predict(crowd_frame(votes))
        return np.asarray(found.reindex(range(len(votes)), fill_value=-1).to_numpy(), dtype=np.int64)


METHOD = CrowdKit
