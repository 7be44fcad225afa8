"""Methods made of scikit-learn estimators, on the labels as given or on labels from votes."""

import contextlib

import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import hesstune as ht
from hesstune.errors import ConfigError, DataError
from hesstune.methods import estimator_method, method_name
from hesstune.methods._base import HeadMaterial
from hesstune.study.compare import compare
from hesstune.weak import Votes, label

ESTIMATOR = make_pipeline(StandardScaler(), LogisticRegression(C=0.1))


class ByProbabilities(BaseEstimator):
    """An estimator without a decision function."""

    def fit(self, x, y):
        self.inner_ = LogisticRegression().fit(x, y)
        self.classes_ = self.inner_.classes_
        return self

    def predict_proba(self, x):
        return self.inner_.predict_proba(x)


def majority(votes):
    return label(votes, "majority").labels


def crowd(n=240, k=3):
    """Four annotators of accuracies .9, .8, .7 and .35, and features; a tenth has no vote."""
    rng = np.random.default_rng(0)
    true = np.arange(n) % k
    table = np.stack(
        [np.where(rng.random(n) < p, true, rng.integers(0, k, n)) for p in (0.9, 0.8, 0.7, 0.35)], axis=1
    )
    table[rng.random(table.shape) < 0.1] = -1
    table[::10] = -1
    return true, Votes(table, k), np.eye(k)[true] + 0.2 * rng.normal(size=(n, k))


@pytest.mark.parametrize("estimator", [ESTIMATOR, LogisticRegression(), ByProbabilities()])
@pytest.mark.parametrize("classes", [[0, 1, 2], [0, 2]])
def test_the_head_gives_the_estimators_probabilities(estimator, classes):
    true, _, x = crowd()
    # Features of very different means and scales.
    x = np.concatenate([x, 1e6 + 1e-3 * x[:, :1], 1e-20 * x[:, 1:2]], axis=1)
    rows = np.isin(true, classes)
    found = estimator_method("peer", estimator).solve_head(HeadMaterial(x[rows], true[rows], 3))
    logits = x[rows] @ found.weight.T + found.bias
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    theirs = estimator.fit(x[rows], true[rows]).predict_proba(x[rows])
    np.testing.assert_allclose((p / p.sum(axis=1, keepdims=True))[:, classes], theirs, atol=1e-4)


def test_an_estimator_whose_scores_are_not_linear_is_refused():
    true, _, x = crowd()
    with pytest.raises(ConfigError, match="RandomForestClassifier"):
        estimator_method("forest", RandomForestClassifier(5)).solve_head(HeadMaterial(x, true, 3))


def test_labels_from_votes_replace_those_given_where_there_are_votes():
    true, votes, x = crowd()
    given = np.where(np.arange(len(true)) % 2, true, (true + 1) % 3)  # half of them wrong
    made = majority(votes)
    found = estimator_method("voted", ESTIMATOR, majority).solve_head(HeadMaterial(x, given, 3, votes=votes))
    alone = estimator_method("alone", ESTIMATOR).solve_head(
        HeadMaterial(x, np.where(made < 0, given, made), 3)
    )
    np.testing.assert_array_equal(found.weight, alone.weight)
    assert str(int((made < 0).sum())) in found.reason


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ({"votes": None}, "none"),
        ({"votes": Votes([[0, 1]] * 240, 2)}, "for 2"),
        ({"votes": Votes([[0, 0]] * 240, 3)}, "240"),  # all one class
        ({"combine": lambda votes: np.zeros(3, dtype=int)}, "240"),
        ({"combine": lambda votes: np.full(240, 3)}, "240"),
    ],
)
def test_votes_that_make_no_head_are_refused(change, value):
    true, votes, x = crowd()
    made = HeadMaterial(x, true, 3, votes=change.get("votes", votes))
    with pytest.raises(DataError, match=value):
        estimator_method("voted", ESTIMATOR, change.get("combine", majority)).solve_head(made)


def test_missing_votes_are_an_error_before_anything_is_computed(tiny, tmp_path, monkeypatch):
    def never(*_args, **_kwargs):
        raise AssertionError("features were computed")

    monkeypatch.setattr("hesstune.training.estimates.head_features", never)
    name = method_name(estimator_method("by_votes", ESTIMATOR, majority))
    with pytest.raises(ConfigError, match="'by_votes' needs votes"):
        ht.finetune(tiny, method=name, train="head", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_comparison_holds_them_beside_auto(tiny, voted, tmp_path):
    options = tiny | {"data": f"csv:{voted}", "inject_noise": None, "train": "head"}
    del options["method"]
    peers = [estimator_method("voted_peer", ESTIMATOR, majority), estimator_method("peer", ESTIMATOR)]
    found = compare(options, methods=["auto", *peers], seeds=1, out=tmp_path / "a")
    done = {c["method"]: c["metrics"]["test_accuracy"] for c in found.results["cells"]}
    assert done.keys() == {"auto", "voted_peer", "peer"}
    assert all(cell["metrics"]["seconds"] > 0 for cell in found.results["cells"])  # heads cost, too
    assert ht.finetune(options, method=peers[1], out=tmp_path / "run").outcome.test_accuracy == done["peer"]
    for more in ({"jobs": 2}, {"engine": "ray"}):
        with pytest.raises(ConfigError, match=r"voted_peer|peer"):
            compare(options, methods=["auto", *peers], seeds=1, out=tmp_path / "b", **more)


@pytest.mark.parametrize("limit", [1, 2, 3, 12])
@pytest.mark.parametrize("method", ["auto", estimator_method("few", ESTIMATOR)])
def test_few_examples_are_fitted_or_refused_without_a_run(tmp_path, limit, method):
    options = {"data": "digits", "image_size": 32, "limit": limit, "train": "head", "out": tmp_path / "run"}
    with contextlib.suppress(ht.HesstuneError):
        assert ht.finetune(options, method=method).outcome.test_accuracy is not None
    assert method != "auto" or (tmp_path / "run" / "run.json").exists() == (limit > 1)
