"""Label models against closed forms, crowd-kit itself, brute force and simulation."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hesstune.errors import ConfigError, DataError
from hesstune.noise.probes import fit_probe
from hesstune.weak.dependence import dependence
from hesstune.weak.label_models import LABEL_MODELS, label, label_model_class
from hesstune.weak.label_models.dawid_skene import dawid_skene
from hesstune.weak.votes import Votes, patterns

tables = hnp.arrays(np.int64, st.tuples(st.integers(1, 30), st.integers(1, 4)), elements=st.integers(-1, 3))


def simulated(n=1500, k=3, accuracies=(0.8, 0.7, 0.6, 0.6), seed=0, cover=0.9):
    """Independent labelers that err uniformly, with abstentions."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    table = np.empty((n, len(accuracies)), dtype=np.int64)
    for d, accuracy in enumerate(accuracies):
        wrong = (y + rng.integers(1, k, n)) % k
        table[:, d] = np.where(rng.random(n) < accuracy, y, wrong)
        table[rng.random(n) > cover, d] = -1
    return y, Votes(table, k)


def test_majority_and_its_ties_by_seed():
    votes = Votes([[0, 0, 1], [1, 2, -1], [2, -1, -1]] * 200, k=3)
    found = label(votes)
    np.testing.assert_allclose(found.posterior[:3], [[2 / 3, 1 / 3, 0], [0, 0.5, 0.5], [0, 0, 1]])
    assert (found.labels[0::3] == 0).all()
    ties = found.labels[1::3]
    assert set(ties.tolist()) == {1, 2}
    assert 60 < (ties == 1).sum() < 140
    assert (label(votes, seed=0).labels == found.labels).all()
    assert (label(votes, seed=1).labels != found.labels).any()


def test_soft_sums_probabilities():
    soft = np.array([[[0.6, 0.4], [0.05, 0.95]], [[0.7, 0.3], [0.6, 0.4]]])
    found = label(Votes([[0, 1], [0, 0]], 2, soft=soft), "soft")
    np.testing.assert_allclose(found.posterior, [[0.325, 0.675], [0.65, 0.35]])
    assert found.labels.tolist() == [1, 0]


@pytest.mark.parametrize("model", ["dawid_skene", "mace"])
def test_crowd_kit_through_our_interface(model):
    aggregation = pytest.importorskip("crowdkit.aggregation")
    import pandas as pd

    y, votes = simulated(300)
    rows = [(n, j, votes.table[n, j]) for n in range(300) for j in range(votes.m) if votes.table[n, j] != -1]
    frame = pd.DataFrame(rows, columns=["task", "worker", "label"])
    theirs = {
        "dawid_skene": lambda: aggregation.DawidSkene(n_iter=200).fit_predict_proba(frame),
        "mace": lambda: aggregation.MACE(random_state=0).fit_predict_proba(frame),
    }[model]()
    found = label(votes, model)
    heard = theirs.index.to_numpy()
    np.testing.assert_allclose(found.posterior[heard][:, theirs.columns], theirs.to_numpy(), atol=1e-9)
    assert (found.labels[heard] == y[heard]).mean() > 0.75


@given(tables)
def test_distinct_rows_stand_for_all_examples(table):
    votes = Votes(table, k=4)
    found = patterns(votes)
    assert (found.votes.table[found.of] == table).all()
    assert len(np.unique(found.votes.table, axis=0)) == len(found.votes)
    assert (found.weight == np.bincount(found.of)).all()


def test_more_labelers_than_fit_one_integer_have_their_distinct_rows_too():
    table = np.random.default_rng(0).integers(-1, 30, (6, 40))[[0, 1, 2, 3, 4, 5, 0, 3]]
    found = patterns(Votes(table, k=30))
    assert found.of.tolist() == [0, 1, 2, 3, 4, 5, 0, 3]


@given(tables)
def test_dawid_skene_on_distinct_rows_is_dawid_skene_on_all(table):
    votes = Votes(table[(table != -1).any(axis=1)], k=4)
    if not len(votes):
        return
    found = patterns(votes)
    on_all = dawid_skene(votes, np.ones(len(votes)), steps=30)
    on_distinct = dawid_skene(found.votes, found.weight, steps=30)
    np.testing.assert_allclose(on_distinct[0][found.of], on_all[0], atol=1e-6)
    np.testing.assert_allclose(on_distinct[1], on_all[1], atol=1e-6)


def test_features_help_where_few_annotators_err_together():
    rng = np.random.default_rng(0)
    n = 900
    y = rng.integers(0, 3, n)
    x = 5 * np.eye(8)[y] + rng.normal(size=(n, 8))
    wrong = (y[:, None] + rng.integers(1, 3, (n, 3))) % 3
    table = np.where(rng.random((n, 3)) < [0.7, 0.6, 0.55], y[:, None], wrong)
    copied = rng.random(n) < 0.3
    table[copied, 1] = table[copied, 0]
    votes = Votes(table, 3)
    right = (label(votes).labels == y).mean()
    assert (label(votes, "soft_features", features=x).labels == y).mean() > right + 0.1
    kept = label(votes, "soft_features", features=x, clean=(np.arange(30), y[:30])).posterior
    assert (kept[:30].argmax(axis=1) == y[:30]).all()


DOCS = (Path(__file__).parents[2] / "docs" / "howto" / "weak-labels.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", LABEL_MODELS)
def test_label_models_are_documented_and_record_what_they_declare(name):
    kind = label_model_class(name)
    assert f"| `{name}` | {kind.summary} |" in DOCS
    if name == "mace":
        pytest.importorskip("crowdkit")
    y, votes = simulated(200)
    soft = Votes(votes.table, 3, soft=votes.onehot)
    for own in (votes, soft):
        for features in (None, np.eye(3)[y]) if not kind.needs_features else (np.eye(3)[y],):
            assert set(label(own, name, features=features).details) <= set(kind.record)


def test_all_abstain_rows_and_silent_labelers_are_left_out():
    y, votes = simulated(200)
    table = votes.table.copy()
    table[:5] = -1
    table = np.concatenate([table, np.full((200, 1), -1)], axis=1)
    x = np.eye(3)[y]
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    for model in LABEL_MODELS:
        if model == "mace":
            pytest.importorskip("crowdkit")
        found = label(Votes(table, 4), model, features=x)
        assert (found.labels[:5] == -1).all(), model
        assert (found.labels[5:] >= 0).all()
        assert (found.labels != 3).all()  # a class that nobody votes for
        np.testing.assert_allclose(found.posterior.sum(axis=1), 1)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    with pytest.raises(DataError, match="no labeler votes on any example"):
        label(Votes(np.full((3, 2), -1), 2))
    with pytest.raises(ConfigError, match="did you mean 'majority'"):
        label(votes, "majorty")
    with pytest.raises(ConfigError, match="needs the examples' features"):
        label(votes, "soft_features")


def test_dependence_is_found_where_it_is_and_rarely_elsewhere():
    false_alarms = 0
    for seed in range(20):
        y, votes = simulated(600, seed=seed)
        false_alarms += any(pair.dependent for pair in dependence(votes, np.eye(3)[y]))
    assert false_alarms <= 3
    y, votes = simulated(600)
    table = votes.table.copy()
    copied = np.random.default_rng(1).random(600) < 0.5
    table[copied, 1] = table[copied, 0]
    found = {(p.first, p.second): p for p in dependence(Votes(table, 3), np.eye(3)[y])}
    assert found["labeler0", "labeler1"].dependent
    assert not found["labeler2", "labeler3"].dependent
    assert found["labeler0", "labeler1"].agreement > found["labeler0", "labeler1"].expected + 0.1


def test_probes_vote_and_know_only_their_own_classes():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    x = 3 * np.eye(3)[y] + rng.normal(size=(300, 3))
    whole, part = fit_probe(x, y, 4), fit_probe(x[y < 2], y[y < 2], 4)
    votes = Votes.of_probabilities(np.stack([p.probabilities(x) for p in (whole, part)], axis=1))
    assert (votes.table[:, 0] == y).mean() > 0.85
    assert set(votes.table[:, 1].tolist()) == {0, 1}
    np.testing.assert_allclose(votes.soft.sum(axis=2), 1)
    assert (votes.soft[:, 1, 2:] == 0).all()
    shy = Votes.of_probabilities(whole.probabilities(x)[:, None], threshold=0.9)
    assert 0 < len(shy.silent) < 300
    assert (shy.soft[shy.silent] == 0).all()
    # One class is all that a probe of its examples alone knows.
    assert (fit_probe(x, np.full(300, 2), 4).probabilities(x) == [0, 0, 1, 0]).all()
