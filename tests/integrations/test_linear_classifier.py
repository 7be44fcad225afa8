"""The head of `auto` as a scikit-learn classifier of embeddings."""

import pickle

import numpy as np
import pytest
from scipy import sparse
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from hesstune import NoiseMatrix
from hesstune.errors import DataError, HesstuneError
from hesstune.integrations import sklearn as integration
from hesstune.integrations.sklearn import RobustLinearClassifier
from hesstune.methods._base import HeadMaterial
from hesstune.methods.auto import Auto


def scene(n=400, k=3, rate=0.3, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    x = np.eye(k)[y] + 0.4 * rng.normal(size=(n, k))
    given = np.where(rng.random(n) < rate, (y + 1 + rng.integers(0, k - 1, n)) % k, y)
    return x, y, given


def quick(**options):
    return RobustLinearClassifier(budget="fast", **options)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_scikit_learns_own_checks():
    check_estimator(quick())


@pytest.mark.parametrize("k", [2, 3])
def test_it_is_the_head_of_auto(k):
    x, y, given = scene(k=k)
    names = np.array(["b", "a", "c"])[:k]
    model = quick().fit(x, names[given])
    order = np.argsort(names)
    place = np.argsort(order)
    assert model.classes_.tolist() == sorted(names)
    assert model.coef_.shape == ((1, k) if k == 2 else (k, k))
    assert model.score(x, names[y]) > 0.85
    np.testing.assert_allclose(np.log(model.predict_proba(x)), model.predict_log_proba(x), atol=1e-8)
    first, group, counts = integration._merged(x, place[given], np.zeros(len(x), bool), np.ones(len(x)))
    assert (counts == np.eye(k)[place[given][first]]).all()
    solved = Auto.solve_head(HeadMaterial(x[first], place[given][first], k, budget="fast"))
    logits = x @ solved.weight.T + solved.bias
    np.testing.assert_array_equal(model.predict(x), np.sort(names)[logits.argmax(axis=1)])
    np.testing.assert_array_equal(model.posterior_, solved.evidence.posterior()[group])
    wrong = np.flatnonzero(given != y)
    assert np.isin(model.label_issues_, wrong).mean() > 0.75
    assert np.isin(wrong, model.label_issues_).mean() > 0.75
    quality = model.posterior_[np.arange(len(y)), place[given]][model.label_issues_]
    assert (np.diff(quality) >= 0).all()


def test_order_and_repetition_do_not_matter_and_weights_repeat():
    x, _, given = scene(n=120)
    weight = np.random.default_rng(0).integers(0, 4, 120)
    rows = np.random.default_rng(1).permutation(np.repeat(np.arange(120), weight))
    one = quick().fit(x, given, sample_weight=weight)
    two = quick().fit(x[rows], given[rows])
    np.testing.assert_allclose(one.coef_, two.coef_, atol=1e-6)
    np.testing.assert_allclose(one.posterior_[rows], two.posterior_, atol=1e-6)
    assert np.isfinite(one.posterior_).all()


def test_labels_of_equal_examples_count_by_their_weights():
    x = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [2.0, 2.0]])
    labels, weight = np.array([0, 1, 1, 1, 0]), np.array([3.0, 1.0, 1.0, 2.0, 0.0])
    first, group, counts = integration._merged(x, labels, np.zeros(5, bool), weight)
    assert counts[group[0]].tolist() == [3.0, 1.0]
    assert counts[group[1]].tolist() == [0.0, 3.0]
    assert group[0] == group[2] != group[1] == group[3] != group[4] == -1
    assert (x[first][group[:4]] == x[:4]).all()


def test_a_known_matrix_and_checked_labels_are_used():
    x, y, given = scene()
    matrix = NoiseMatrix.symmetric(3, 0.3)
    models = [quick(noise_matrix=one).fit(x, given) for one in (matrix, matrix.array, 0.3)]
    for model in models:
        np.testing.assert_array_equal(model.coef_, models[0].coef_)
        np.testing.assert_allclose(model.noise_matrix_.array, matrix.array)
    checked = np.arange(400) < 50
    found = quick().fit(x, np.where(checked, y, given), checked=checked)
    assert (found.posterior_.argmax(axis=1)[checked] == y[checked]).all()
    assert not checked[found.label_issues_].any()


def test_it_works_in_pipelines_and_as_a_pickle():
    x, _, given = scene()
    assert cross_val_score(make_pipeline(StandardScaler(), quick()), x, given, cv=3).mean() > 0.55
    model = quick().fit(x, given)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(x), model.predict(x))


@pytest.mark.parametrize(
    ("options", "changes", "error", "shown"),
    [
        ({}, {"y": np.zeros(400)}, DataError, "one class"),
        ({}, {"sample_weight": 1.0 * (scene()[2] == 1)}, HesstuneError, "one class"),
        ({}, {"checked": np.arange(400)}, DataError, "int64"),
        ({}, {"y": np.arange(400) % 3 - 1}, DataError, "-1"),
        ({}, {"y": np.array(["a", "b", None, "c"] * 100, dtype=object)}, DataError, "nan"),
        ({"noise_matrix": np.eye(2)}, {}, HesstuneError, "2"),
        ({"budget": "huge"}, {}, HesstuneError, "huge"),
        ({}, {"X": sparse.csr_matrix(np.ones((400, 3)))}, TypeError, "[Ss]parse"),
    ],
)
def test_wrong_input_is_refused(options, changes, error, shown):
    x, _, given = scene()
    with pytest.raises(error, match=shown):
        RobustLinearClassifier(**options).fit(**{"X": x, "y": given, **changes})


def test_more_examples_are_read_in_parts(monkeypatch, tmp_path):
    x, y, given = scene(n=1500)
    monkeypatch.setattr(integration, "MERGED", 300)
    monkeypatch.setattr("hesstune.noise.latent.head.EM_EXAMPLES", 300)
    monkeypatch.setattr("hesstune.noise.probes.MANY", 300)
    np.save(tmp_path / "x.npy", x.astype(np.float32))
    model = quick().fit(np.load(tmp_path / "x.npy", mmap_mode="r"), given)
    assert model.posterior_.shape == (1500, 3)
    assert model.score(x, y) > 0.85
