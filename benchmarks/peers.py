"""Heads of other packages as methods, for `compare` and the benchmarks beside `auto`.

Importing the module makes them known by name: `sklearn_cv`, `cleanlab`, `majority`, `crowd_kit` and `snorkel`
(`pip install cleanlab crowd-kit snorkel`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from hesstune.methods import Method, estimator_method, method_name
from hesstune.weak import Votes
from hesstune.weak.label_models.mace import crowd_frame, no_deprecations

# scikit-learn's C on standardised features, from a mean to hardly a penalty.
STRENGTHS = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1e0]
# Of a support vector machine; 1 is scikit-learn's default.
SVC_STRENGTHS = [0.1, 1.0, 10.0]


class CrossValidated(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """LogisticRegressionCV on standardised features; C by cross-validated accuracy on the labels as given."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def fit(self, x: NDArray[np.float64], y: NDArray[np.int64]) -> CrossValidated:
        """Fit, with at most as many folds as the rarest class has examples."""
        fewest = int(np.bincount(y)[np.unique(y)].min())
        folds = StratifiedKFold(max(2, min(5, fewest)), shuffle=True, random_state=self.seed)
        model = LogisticRegressionCV(
            Cs=STRENGTHS, cv=folds, max_iter=200, scoring="accuracy", use_legacy_attributes=False
        )
        self.pipeline_: Pipeline = make_pipeline(StandardScaler(), model).fit(x, y)
        self.classes_, self.strength_ = self.pipeline_.classes_, float(model.C_)
        return self

    def decision_function(self, x: NDArray[np.float64]) -> Any:
        """Return the scores of the classes."""
        return self.pipeline_.decision_function(x)


class Pruned(CrossValidated):
    """cleanlab's CleanLearning around LogisticRegression with the C of `CrossValidated`."""

    def fit(self, x: NDArray[np.float64], y: NDArray[np.int64]) -> Pruned:
        """Find label issues, prune them and fit again."""
        from cleanlab.classification import CleanLearning

        strength = CrossValidated(self.seed).fit(x, y).strength_
        scaler, present = StandardScaler().fit(x), np.unique(y)
        learner = CleanLearning(
            LogisticRegression(C=strength, max_iter=200),
            seed=self.seed,
            # In one process: a fork beside torch's threads can deadlock.
            find_label_issues_kwargs={"n_jobs": 1},
            verbose=False,
        )
        learner.fit(scaler.transform(x), np.searchsorted(present, y))
        self.pipeline_ = Pipeline([("scale", scaler), ("fit", learner.clf)])
        self.classes_, self.strength_ = present[learner.clf.classes_], strength
        return self


class SupportVectors(CrossValidated):
    """SVC with an RBF kernel on standardised features; C by cross-validated accuracy on given labels."""

    def fit(self, x: NDArray[np.float64], y: NDArray[np.int64]) -> SupportVectors:
        """Fit, with at most as many folds as the rarest class has examples."""
        fewest = int(np.bincount(y)[np.unique(y)].min())
        folds = StratifiedKFold(max(2, min(5, fewest)), shuffle=True, random_state=self.seed)
        search = GridSearchCV(make_pipeline(StandardScaler(), SVC()), {"svc__C": SVC_STRENGTHS}, cv=folds)
        self.pipeline_ = search.fit(x, y).best_estimator_
        self.classes_, self.strength_ = self.pipeline_.classes_, float(search.best_params_["svc__C"])
        return self


def majority(votes: Votes) -> NDArray[np.int64]:
    """Return the class with the most votes, the first of several; -1 without a vote."""
    return np.where(votes.counts.any(axis=1), votes.counts.argmax(axis=1), -1)


def crowd_kit(votes: Votes) -> NDArray[np.int64]:
    """Return the labels of crowd-kit's Dawid-Skene."""
    from crowdkit.aggregation import DawidSkene

    return _aggregated(DawidSkene(n_iter=100), votes)


def mace(votes: Votes) -> NDArray[np.int64]:
    """Return the labels of crowd-kit's MACE."""
    from crowdkit.aggregation import MACE

    return _aggregated(MACE(random_state=0), votes)


def _aggregated(model: Any, votes: Votes) -> NDArray[np.int64]:
    with no_deprecations():
        found = model.fit_predict(crowd_frame(votes))
    return np.asarray(found.reindex(range(len(votes)), fill_value=-1).to_numpy(), dtype=np.int64)


def snorkel(votes: Votes) -> NDArray[np.int64]:
    """Return the labels of snorkel's LabelModel."""
    import torch
    from snorkel.labeling.model import LabelModel

    state = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):  # snorkel seeds the global generators
        model = LabelModel(cardinality=votes.k, verbose=False)
        model.fit(votes.table, n_epochs=500, seed=0, progress_bar=False)
    np.random.set_state(state)  # noqa: NPY002
    labels: NDArray[np.int64] = model.predict(votes.table, tie_break_policy="abstain")
    return labels


PEERS: dict[str, type[Method]] = {
    "sklearn_cv": estimator_method("sklearn_cv", CrossValidated()),
    "cleanlab": estimator_method("cleanlab", Pruned()),
    **{
        own.__name__: estimator_method(own.__name__, CrossValidated(), own)
        for own in (majority, crowd_kit, snorkel)
    },
}
for each in PEERS.values():
    method_name(each)
