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
    with pytest.raises(DataError, match=r"images of the shape \(N, H, W\)"):
        quick().fit(x.reshape(len(x), -1)[:20], y[:20])
    with pytest.raises(DataError, match="y has 3 labels"):
        quick().fit(x[:4], y[:3])
    with pytest.raises(DataError, match="from 0 to 255 or floats from 0 to 1"):
        quick().fit(x[:20] * 16, y[:20])


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
    environment = {**os.environ, "TMPDIR": str(there)}
    subprocess.run([sys.executable, "-c", USE, *paths], check=True, env=environment)
    np.testing.assert_array_equal(np.load(paths[1]), probabilities)
    assert left_in(there) == []


def test_the_run_of_a_fitted_one_can_be_asked(digits, tmp_path):
    x, y = digits
    model = quick(epochs=1).fit(x[:60], y[:60])
    assert model.run_.measure(max_examples=8).names
    again = pickle.loads(pickle.dumps(model))
    with pytest.raises(DataError, match="given in Python"):
        again.run_.measure(max_examples=8)
    assert again.run_.measure(data=(x[:60], y[:60]), max_examples=8).names
    assert again.run_.path != model.run_.path
    kept = quick(epochs=1, out=str(tmp_path / "kept")).fit(x[:60], y[:60])
    assert kept.run_.path == tmp_path / "kept"
    np.testing.assert_array_equal(kept.predict_proba(x[:5]), again.predict_proba(x[:5]))


def test_a_module_may_be_the_model(digits):
    x, y = digits
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 10))
    model = quick(model=net, train="all", image_size=8, epochs=2).fit(x[:60], y[:60])
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(x[:5]), model.predict_proba(x[:5]))


PETS = np.array(["cat", "dog"] * 6)
IMAGES = np.random.default_rng(0).random((12, 32, 32))


def pets(**changes):
    return quick(method="vanilla", noise_matrix=None, epochs=1, **changes)


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


@pytest.mark.parametrize("rows", RAGGED, ids=["lists", "nested", "objects", "arrays"])
def test_ragged_inputs_are_told_in_terms_of_x(rows):
    with pytest.raises(DataError, match=r"^X is ragged: row \d+ .*; X must be a list of texts or images, or"):
        pets().fit(rows, PETS)
    fitted = pets().fit(IMAGES, PETS)
    with pytest.raises(DataError, match=r"^X is ragged"):
        fitted.predict(rows)


@pytest.mark.parametrize("wrong", [5, None, "one text", (x for x in IMAGES), np.float64(3)])
def test_what_is_no_list_of_inputs_is_told(wrong):
    with pytest.raises(DataError, match=r"^X must be a list of texts or images"):
        pets().fit(wrong, PETS)


def test_images_of_several_sizes_are_no_ragged_table():
    model = pets().fit([IMAGES[0], IMAGES[1][:20]] * 6, PETS)
    assert model.predict(ragged([IMAGES[0], IMAGES[1][:9]])).shape == (2,)


@pytest.mark.parametrize("names", [["cat", "dog"], [10, 2], [True, False]])
def test_messages_and_the_run_call_classes_as_y_does(names):
    y = np.array(names * 6)
    model = pets().fit(IMAGES, y)
    assert model.run_.facts.classes == [str(name) for name in sorted(names)]
    assert set(model.predict(IMAGES)) <= set(names)
    few = np.array([names[0]] * 11 + [names[1]])
    with pytest.raises(DataError, match=f"class '{np.array(names)[1]}' has one example"):
        pets().fit(IMAGES, few)
    with pytest.raises(DataError, match="y has one class only"):
        pets().fit(IMAGES, [*few[:11].tolist(), names[0]])


def test_a_folder_that_is_moved_or_gone_takes_nothing_along(tmp_path):
    model = pets(out=str(tmp_path / "run")).fit(IMAGES, PETS)
    before = model.predict_proba(IMAGES)
    kept = pickle.dumps(model)
    assert model.run_.path == tmp_path / "run"
    assert model.run_.measure(max_examples=2).quadratic.shape[0] == 2  # pickling took nothing from it
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    for found in (model, pickle.loads(kept)):
        np.testing.assert_array_equal(found.predict_proba(IMAGES), before)
        assert found.run_.path.is_dir()
        measured = found.run_.measure(data=(IMAGES, PETS), max_examples=2)
        assert measured.quadratic.shape[0] == 2
    fresh = clone(model)
    assert not hasattr(fresh, "classes_")
    assert fresh.fit(IMAGES, PETS).run_.path == tmp_path / "run"
