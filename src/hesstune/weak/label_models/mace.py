"""MACE by crowd-kit."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from hesstune.errors import MissingExtraError
from hesstune.weak.label_models import Answer, LabelModel, ModelInputs
from hesstune.weak.votes import Votes


@contextlib.contextmanager
def no_deprecations() -> Iterator[None]:
    """Hide crowd-kit's warnings about pandas' old keywords."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


def crowd_frame(votes: Votes) -> Any:
    """Return the votes as crowd-kit takes them: a data frame of rows task, worker, label."""
    import pandas as pd

    return pd.DataFrame({"task": votes.example, "worker": votes.annotator, "label": votes.vote})


class Mace(LabelModel):
    """A share of each annotator's votes is given without looking. Source: Hovy et al. 2013."""

    summary = "Estimates how often each annotator votes without looking (Hovy et al. 2013), by crowd-kit."

    @classmethod
    def fit(cls, votes: Votes, inputs: ModelInputs) -> Answer:
        """Return crowd-kit's probabilities; MissingExtraError if crowd-kit is not installed."""
        try:
            from crowdkit.aggregation import MACE
        except ImportError:
            raise MissingExtraError("crowd-kit", "noise", "the label model mace") from None
        with no_deprecations():
            found = MACE(random_state=inputs.seed).fit_predict_proba(crowd_frame(votes))
        table = np.zeros((len(votes), votes.k))
        columns = [int(c) for c in found.columns]  # the classes that occur
        table[np.asarray(found.index, dtype=np.int64)[:, None], columns] = found.to_numpy()
        return table / table.sum(axis=1, keepdims=True), {}


LABEL_MODEL = Mace
