"""Heads on labels that other packages make of votes: the peers of data with labelers."""

import numpy as np
import pytest

import hesstune as ht
from hesstune.errors import ConfigError, DataError
from hesstune.methods import _peers, method_class
from hesstune.methods._head import HeadMaterial
from hesstune.storage.remembered import remembering
from hesstune.study.compare import compare
from hesstune.weak.votes import Votes

EXTRA = {"crowd_kit": "crowdkit", "snorkel": "snorkel"}


def installed(name):
    """The method's class; its package is there, or the test is skipped."""
    if name in EXTRA:
        pytest.importorskip(EXTRA[name])
    return method_class(name)


def crowd(n=240, k=3):
    """Four labelers of accuracies .9, .8, .7 and .35, on features that tell; a tenth nobody votes on."""
    rng = np.random.default_rng(0)
    true = np.arange(n) % k
    table = np.stack(
        [np.where(rng.random(n) < p, true, rng.integers(0, k, n)) for p in (0.9, 0.8, 0.7, 0.35)], axis=1
    )
    table[rng.random(table.shape) < 0.1] = -1
    table[::10] = -1
    x = np.eye(k)[true] + 0.2 * rng.normal(size=(n, k))
    return true, table, x


@pytest.mark.parametrize("name", ["majority", "crowd_kit", "snorkel"])
def test_labels_are_the_packages_and_the_head_is_fitted_to_them(name):
    true, table, x = crowd()
    given = np.where(np.arange(len(true)) % 2, true, (true + 1) % 3)  # half of them wrong
    votes = Votes(table, 3)
    made = installed(name).voted(votes, given, seed=0)
    silent = (table < 0).all(axis=1)
    assert (made[silent] == -1).all()
    assert (made[~silent] >= 0).all()
    assert (made[~silent] == true[~silent]).mean() > 0.85
    found = method_class(name).solve_head(HeadMaterial(x, given, 3, votes=votes))
    assert (np.asarray(x @ found.weight.T + found.bias).argmax(axis=1) == true).mean() > 0.95
    assert f"{silent.sum()} examples have no vote" in found.reason


def test_the_majority_is_counted_and_a_tie_is_the_labels():
    table = np.array([[0, 0, 1], [1, 0, -1], [2, 1, 0], [-1, -1, -1], [2, -1, -1]])
    made = method_class("majority").voted(Votes(table, 3), np.array([1, 1, 2, 0, 0]), seed=0)
    assert made.tolist() == [0, 1, 2, -1, 2]
    # A label that nobody voted for settles nothing.
    made = method_class("majority").voted(Votes(table[:2], 3), np.array([2, 2]), seed=0)
    assert made.tolist() == [0, 0]


def test_crowd_kits_labels_are_crowd_kits():
    _, table, _ = crowd()
    aggregation = pytest.importorskip("crowdkit.aggregation")
    pandas = pytest.importorskip("pandas")
    rows = [(i, j, v) for i, own in enumerate(table) for j, v in enumerate(own) if v >= 0]
    frame = pandas.DataFrame(rows, columns=["task", "worker", "label"])
    theirs = aggregation.DawidSkene(n_iter=100).fit_predict(frame)
    made = method_class("crowd_kit").voted(Votes(table, 3), np.zeros(len(table), dtype=int), seed=0)
    assert made[theirs.index].tolist() == theirs.tolist()


def test_without_votes_it_is_said_before_anything_is_computed(tiny, tmp_path, monkeypatch):
    def never(*_args, **_kwargs):
        raise AssertionError("features were computed")

    monkeypatch.setattr("hesstune.training.solve.head_features", never)
    with pytest.raises(
        ConfigError, match=r"method 'majority' needs votes, which .* has not: give columns vote_"
    ):
        ht.finetune(tiny, method="majority", train="head", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    _, table, x = crowd()
    made = HeadMaterial(x[:, :2], np.zeros(len(x), dtype=int), 2, votes=Votes(table, 3))
    with pytest.raises(DataError, match="needs votes for the 2 classes; those given are for 3"):
        method_class("majority").solve_head(made)


def test_a_comparison_holds_them_beside_auto(tiny, voted, tmp_path):
    options = tiny | {"data": f"csv:{voted}", "inject_noise": None, "train": "head"}
    del options["method"]
    found = compare(options, methods=["auto", "majority", "sklearn_cv"], seeds=1, out=tmp_path / "a")
    done = {c["method"]: c["metrics"]["test_accuracy"] for c in found.results["cells"]}
    assert done.keys() == {"auto", "majority", "sklearn_cv"}
    # The labels that a run makes of votes are their majority: these two are the same head.
    assert done["majority"] == done["sklearn_cv"]
    assert all(cell["metrics"]["seconds"] > 0 for cell in found.results["cells"])  # heads cost, too


def test_labels_that_all_fall_into_one_class_are_refused():
    table = np.zeros((12, 2), dtype=int)
    made = HeadMaterial(
        np.random.default_rng(0).normal(size=(12, 3)), np.arange(12) % 2, 2, votes=Votes(table, 2)
    )
    with pytest.raises(DataError, match=r"puts all 12 training examples into one class.*auto or majority"):
        method_class("majority").solve_head(made)


def test_peers_share_a_penalty(monkeypatch):
    """scikit-learn's own head and cleanlab's take the same C: it is sought once in a comparison."""
    true, _, x = crowd()
    made = HeadMaterial(x, np.where(np.arange(len(true)) % 5, true, 0), 3)
    alone = method_class("cleanlab").solve_head(made)
    sought, fitted = [], _peers._fitted
    monkeypatch.setattr(_peers, "_fitted", lambda *given: sought.append(given) or fitted(*given))
    with remembering():
        first = method_class("sklearn_cv").solve_head(made)
        shared = method_class("cleanlab").solve_head(made)
        again = method_class("sklearn_cv").solve_head(made)
    assert len(sought) == 1
    assert shared.name == alone.name
    np.testing.assert_array_equal(shared.weight, alone.weight)
    np.testing.assert_array_equal(first.weight, again.weight)
