"""The scikit-learn classifier: its contract, images and texts."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import check_estimator

from hesstune.errors import DataError
from hesstune.integrations.sklearn import RobustClassifier
from sentences import sentences


@pytest.fixture(scope="module")
def digits():
    found = load_digits()
    return found.images / 16, found.target


def quick(**changes):
    options = {"train": "head", "epochs": 4, "image_size": 32, "noise_matrix": "symmetric:0.1"}
    return RobustClassifier(**{**options, **changes})


def test_it_learns_and_scores(digits):
    x, y = digits
    names = np.array(["zero", "one", "two"])
    keep = y < 3
    model = quick(method="vanilla", noise_matrix=None).fit(x[keep][:150], names[y[keep][:150]])
    assert model.classes_.tolist() == ["one", "two", "zero"]
    assert model.score(x[keep][150:250], names[y[keep][150:250]]) > 0.8
    probabilities = model.predict_proba(x[keep][:5])
    assert probabilities.shape == (5, 3)
    np.testing.assert_allclose(probabilities.sum(1), 1.0)
    assert (model.classes_[probabilities.argmax(1)] == model.predict(x[keep][:5])).all()


def test_clones_and_grid_search_work(digits):
    x, y = digits
    model = quick(epochs=1)
    assert clone(model).get_params() == model.get_params()
    search = GridSearchCV(model, {"radius": [0.01, 2.0]}, cv=2).fit(x[:80], y[:80])
    assert search.best_params_["radius"] in (0.01, 2.0)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_the_same_seed_gives_the_same_answer(digits):
    x, y = digits
    a, b = (quick(epochs=1).fit(x[:60], y[:60]).predict_proba(x[:9]) for _ in range(2))
    np.testing.assert_array_equal(a, b)


def test_texts(tiny_bert):
    texts, labels = zip(*sentences(90), strict=True)
    model = RobustClassifier(
        model=f"hf:{tiny_bert}", method="vanilla", noise_matrix=None, epochs=15, lr=5e-3
    ).fit(list(texts), list(labels))
    assert model.predict(["the film was great", "a dull plot"]).tolist() == ["yes", "no"]
    with pytest.raises(DataError, match="fitted on texts"):
        model.predict(np.zeros((2, 8, 8)))


def test_wrong_inputs_are_told(digits):
    x, y = digits
    with pytest.raises(DataError, match=r"shape \(N, H, W\)"):
        quick().fit(x.reshape(len(x), -1)[:20], y[:20])
    with pytest.raises(DataError, match="y has 3 labels"):
        quick().fit(x[:4], y[:3])
    with pytest.raises(DataError, match="from 0 to 255 or floats from 0 to 1"):
        quick().fit(x[:20] * 16, y[:20])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_scikit_learns_own_checks_of_estimators_for_other_than_tables():
    # Checks that need a table of features are skipped by scikit-learn: two_d_array is False.
    check_estimator(RobustClassifier())
