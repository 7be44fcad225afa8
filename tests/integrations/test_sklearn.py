"""The scikit-learn classifier: its contract, images and texts."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import torch
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
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_texts(tiny_bert):
    texts, labels = zip(*sentences(90), strict=True)
    model = RobustClassifier(
        model=f"hf:{tiny_bert}", method="vanilla", noise_matrix=None, epochs=15, lr=5e-3
    ).fit(list(texts), list(labels))
    assert model.predict(["the film was great", "a dull plot"]).tolist() == ["yes", "no"]
    with pytest.raises(DataError, match="fitted on texts"):
        model.predict(np.zeros((2, 8, 8)))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_scikit_learns_own_checks_of_estimators_for_other_than_tables():
    # Checks that need a table of features are skipped by scikit-learn: two_d_array is False.
    check_estimator(RobustClassifier())


def left_in(folder):
    """What lies in a temporary folder but for torch's own, which it makes when it is imported."""
    return [path for path in folder.iterdir() if not path.name.startswith("torchinductor")]


USE = """
import pickle, sys
import numpy as np

model = pickle.loads(open(sys.argv[1], "rb").read())
np.save(sys.argv[2], model.predict_proba(np.load(sys.argv[3])))
"""


def test_a_fitted_one_pickles_with_its_weights_and_leaves_nothing_behind(digits, tmp_path, monkeypatch):
    x, y = digits
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(here))
    model = quick(epochs=1, train="last:1").fit(x[:60], y[:60])
    probabilities = model.predict_proba(x[:9])
    assert left_in(here) == []
    pickled = pickle.dumps(model)
    weights = sum(p.numel() * p.element_size() for p in model.run_.model().parameters())
    assert weights < len(pickled) < 3 * weights
    assert not any(word in pickled for word in (b"torch._utils", b"torch.storage", b"torch.nn"))
    (tmp_path / "model.pickle").write_bytes(pickled)
    np.save(tmp_path / "x.npy", x[:9])
    paths = [str(tmp_path / name) for name in ("model.pickle", "p.npy", "x.npy")]
    # A copy made now would find a folder of the first one; another process and folder finds none.
    del model
    gc.collect()
    assert left_in(here) == []
    environment = {**os.environ, "TMPDIR": str(there), "OMP_NUM_THREADS": "1"}  # as in this process
    subprocess.run([sys.executable, "-c", USE, *paths], check=True, env=environment)
    np.testing.assert_array_equal(np.load(paths[1]), probabilities)
    assert left_in(there) == []


def test_the_run_of_a_fitted_one(digits, tmp_path):
    x, y = digits
    model = quick(epochs=1).fit(x[:60], y[:60])
    assert model.run_.measure(max_examples=8).names
    again = pickle.loads(pickle.dumps(model))
    with pytest.raises(DataError, match="given in Python"):
        again.run_.measure(max_examples=8)
    assert again.run_.measure(data=(x[:60], y[:60]), max_examples=8).names
    assert again.run_.path != model.run_.path
    kept = quick(epochs=1, out=str(tmp_path / "kept")).fit(x[:60], y[:60])
    probabilities = kept.predict_proba(x[:5])
    np.testing.assert_array_equal(probabilities, again.predict_proba(x[:5]))  # the same seed
    assert kept.run_.path == tmp_path / "kept"
    # A folder that is moved is made again from the classifier.
    (tmp_path / "kept").rename(tmp_path / "elsewhere")
    for found in (kept, pickle.loads(pickle.dumps(kept))):
        np.testing.assert_array_equal(found.predict_proba(x[:5]), probabilities)
        assert found.run_.measure(data=(x[:60], y[:60]), max_examples=2).quadratic.shape[0] == 2
    assert not hasattr(clone(kept), "classes_")


def test_a_module_may_be_the_model(digits):
    x, y = digits
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 10))
    model = quick(model=net, train="all", image_size=8, epochs=2).fit(x[:60], y[:60])
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(x[:5]), model.predict_proba(x[:5]))


PETS = np.array(["cat", "dog"] * 6)
IMAGES = np.random.default_rng(0).random((12, 32, 32))


def pets():
    return quick(method="vanilla", noise_matrix=None, epochs=1)


def ragged(rows):
    made = np.empty(len(rows), dtype=object)
    made[:] = rows
    return made


RAGGED = [
    [[1, 2], [3]] * 6,
    [[[1, 2], [3]]] * 12,
    ragged([[1], [2, 3]] * 6),
    [np.zeros(3)] * 11 + [np.zeros(2)],
]
NO_LIST = [5, None, "one text", (x for x in IMAGES), np.float64(3)]
WRONG = [
    (IMAGES.reshape(12, -1), r"\(N, H, W\)"), (IMAGES * 255, "from 0 to 255 or floats from 0 to 1"),
    *((rows, "^X is ragged") for rows in RAGGED), *((rows, "^X must be a list") for rows in NO_LIST),
]  # fmt: skip


@pytest.mark.parametrize(("x", "message"), WRONG)
def test_wrong_inputs_are_refused_in_terms_of_x(x, message):
    with pytest.raises(DataError, match=message):
        pets().fit(x, PETS)


def test_inputs_of_predict_are_checked_as_those_of_fit():
    model = pets().fit([IMAGES[0], IMAGES[1][:20]] * 6, PETS)  # images of several sizes
    assert model.predict(ragged([IMAGES[0], IMAGES[1][:9]])).shape == (2,)
    for rows in RAGGED:
        with pytest.raises(DataError, match=r"^X is ragged"):
            model.predict(rows)
    with pytest.raises(DataError, match="y has 3 labels"):
        pets().fit(IMAGES[:4], PETS[:3])


@pytest.mark.parametrize("names", [["cat", "dog"], [10, 2], [True, False]])
def test_messages_and_the_run_name_classes_as_y_does(names):
    y = np.array(names * 6)
    model = pets().fit(IMAGES, y)
    assert model.run_.facts.classes == [str(name) for name in sorted(names)]
    assert set(model.predict(IMAGES)) <= set(names)
    few = np.array([names[0]] * 11 + [names[1]])
    with pytest.raises(DataError, match=f"class .{np.array(names)[1]}. has one example"):
        pets().fit(IMAGES, few)
    with pytest.raises(DataError, match="one class only"):
        pets().fit(IMAGES, [*few[:11].tolist(), names[0]])


def test_missing_labels_are_no_class_and_one_hot_labels_are_classes():
    y = PETS.astype(object) if hasattr(PETS, "astype") else np.array(PETS, dtype=object)
    whole = pets().fit(IMAGES, y)
    for missing in (None, float("nan"), "", -1):
        some = y.copy()
        some[3] = missing
        model = pets().fit(IMAGES, some)
        assert model.classes_.tolist() == whole.classes_.tolist()
        assert any("1 of 12 examples without a label" in note for note in model.run_.facts.data_notes)
    hot = (y[:, None] == whole.classes_).astype(int)
    one_hot = pets().fit(IMAGES, hot)
    assert one_hot.classes_.tolist() == list(range(hot.shape[1]))
    np.testing.assert_array_equal(one_hot.predict_proba(IMAGES), whole.predict_proba(IMAGES))
    with pytest.raises(DataError, match="soft labels"):
        pets().fit(IMAGES, hot * 0.8 + 0.2 / hot.shape[1])
