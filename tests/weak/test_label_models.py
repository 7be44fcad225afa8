"""Label models against closed forms, crowd-kit itself, brute force and simulation."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hesstune.errors import ConfigError, DataError
from hesstune.noise.linear_probe import fit_probe
from hesstune.weak.amcl import adversarial_risk, amcl, brier, outputs, risk_bounds
from hesstune.weak.dawid_skene import dawid_skene
from hesstune.weak.dependence import dependence
from hesstune.weak.features import feature_dawid_skene, latent_classes
from hesstune.weak.label_models import LABEL_MODELS, label
from hesstune.weak.patterns import patterns
from hesstune.weak.votes import Votes

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


def test_expectation_maximisation_is_crowd_kits_where_both_apply():
    aggregation = pytest.importorskip("crowdkit.aggregation")
    import pandas as pd

    _, votes = simulated(2000, accuracies=(0.85, 0.8, 0.75, 0.7, 0.8), cover=1.1)
    frame = pd.DataFrame(
        [(n, j, c) for n, row in enumerate(votes.table) for j, c in enumerate(row)],
        columns=["task", "worker", "label"],
    )
    theirs = aggregation.DawidSkene(n_iter=500, tol=1e-12).fit_predict_proba(frame).sort_index()
    views = [votes.onehot[:, d] for d in range(5)]
    own = latent_classes(views, votes.counts / 5, steps=500, tolerance=1e-9).posterior
    # Ours has a tenth of a pseudo-count in each cell.
    assert np.abs(own - theirs[sorted(theirs.columns)].to_numpy()).mean() < 1e-3


def test_features_mend_what_few_dependent_votes_leave_open():
    rng = np.random.default_rng(0)
    n = 900
    y = rng.integers(0, 3, n)
    x = 5 * np.eye(8)[y] + rng.normal(size=(n, 8))
    wrong = (y[:, None] + rng.integers(1, 3, (n, 3))) % 3
    table = np.where(rng.random((n, 3)) < [0.7, 0.6, 0.55], y[:, None], wrong)
    copied = rng.random(n) < 0.3
    table[copied, 1] = table[copied, 0]
    votes = Votes(table, 3)
    right = {
        "majority": (label(votes).labels == y).mean(),
        "features": (label(votes, "features", features=x).labels == y).mean(),
    }
    assert right["features"] > right["majority"] + 0.1
    tempered = label(votes, "soft_features", features=x)
    assert (tempered.labels == y).mean() > right["majority"] + 0.1
    kept = label(votes, "soft_features", features=x, clean=(np.arange(30), y[:30])).posterior
    assert (kept[:30].argmax(axis=1) == y[:30]).all()
    rows = np.arange(30)
    helped = feature_dawid_skene(votes, x, clean=(rows, y[rows]))
    assert (helped.posterior[rows].argmax(axis=1) == y[rows]).all()
    np.testing.assert_allclose(helped.confusion.sum(axis=2), 1)
    # The copied votes make every estimate too sure of the labelers; the features mend most of it.
    given = np.stack([np.bincount(table[y == i, 0], minlength=3) / (y == i).sum() for i in range(3)])
    plain = latent_classes([votes.onehot[:, d] for d in range(3)], votes.counts / 3)
    errors = [np.abs(found.confusion[0] - given).max() for found in (helped, plain)]
    assert errors[0] < 0.6 * errors[1]


def test_adversarial_risk_against_all_corners():
    # Three examples, two classes, one constraint: a vertex of the feasible set has at most one
    # fractional row, so a fine grid over rows finds the optimum.
    given = np.array([[[0.9, 0.1]], [[0.6, 0.4]], [[0.2, 0.8]]])
    lower, upper = np.array([0.05]), np.array([0.2])
    risk, worst = adversarial_risk(np.ones(1), given, lower, upper)
    losses = brier(given[:, 0])
    grid = np.linspace(0, 1, 41)
    best = 0.0
    for z in itertools.product(grid, repeat=3):
        labels = np.stack([np.array(z), 1 - np.array(z)], axis=1)
        value = (labels * losses).sum() / 3
        if lower[0] - 1e-9 <= value <= upper[0] + 1e-9:
            best = max(best, value)
    assert risk == pytest.approx(upper[0], abs=1e-6)  # the one labeler's own upper bound
    assert best == pytest.approx(risk, abs=0.02)
    np.testing.assert_allclose(worst.sum(axis=1), 1)
    with pytest.raises(DataError, match="no labeling"):
        adversarial_risk(np.ones(1), given, np.array([0.0]), np.array([1e-4]))


def test_amcl_where_the_optimum_is_known():
    # One labeler is known to be right everywhere, the other to be wrong: all weight goes to the first,
    # the feasible labeling is the truth, and the risk is the first's own.
    y = np.arange(12) % 3
    votes = Votes(np.stack([y, (y + 1) % 3], axis=1), 3)
    found = amcl(votes, np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    np.testing.assert_allclose(found.weights, [1, 0], atol=1e-3)
    assert found.risk == pytest.approx(0, abs=1e-4)
    # Nothing known: the worst labeling is against every combination; two labelers that disagree on
    # every one of two classes are best mixed evenly, with risk ½‖(½, ½) − e_y‖² = ¼.
    votes = Votes(np.stack([y % 2, 1 - y % 2], axis=1), 2)
    found = amcl(votes, np.zeros(2), np.ones(2))
    np.testing.assert_allclose(found.weights, [0.5, 0.5], atol=1e-3)
    assert found.risk == pytest.approx(0.25, abs=1e-4)


def test_amcl_finds_what_a_grid_over_the_simplex_finds():
    y, votes = simulated(40, accuracies=(0.9, 0.6, 0.5), cover=1.1, seed=4)
    given = outputs(votes)
    true_risk = brier(given)[np.arange(40), :, y].mean(axis=0)
    lower, upper = np.clip(true_risk - 0.05, 0, 1), true_risk + 0.05
    found = amcl(votes, lower, upper)
    steps = np.linspace(0, 1, 11)
    grid = min(
        adversarial_risk(np.array([a, b, 1 - a - b]), given, lower, upper)[0]
        for a in steps
        for b in steps
        if a + b <= 1 + 1e-9
    )
    assert found.risk <= grid + 1e-3
    assert found.risk >= grid - 0.02
    # The truth is feasible, so the guarantee holds for it.
    assert brier(found.posterior)[np.arange(40), y].mean() <= found.risk + 1e-9


def test_amcl_bounds_hold_at_their_level_and_the_model_runs_on_clean_labels():
    outside = 0
    for seed in range(100):
        y, votes = simulated(400, cover=1.1, seed=seed)
        given = outputs(votes)
        lower, upper = risk_bounds(given[:60], y[:60], 340, 0.2)
        rest = brier(given[60:])[np.arange(340), :, y[60:]].mean(axis=0)
        outside += not ((rest >= lower) & (rest <= upper)).all()
    assert outside <= 20
    y, votes = simulated(200, accuracies=(0.9, 0.5, 0.4))
    found = label(votes, "amcl", clean=(np.arange(80), y[:80]))
    weights = found.details["weights"]
    assert weights["labeler0"] == max(weights.values())
    with pytest.raises(ConfigError, match="clean labels"):
        label(votes, "amcl")


def test_all_abstain_rows_and_silent_labelers_are_left_out():
    y, votes = simulated(200)
    table = votes.table.copy()
    table[:5] = -1
    table = np.concatenate([table, np.full((200, 1), -1)], axis=1)
    x = np.eye(3)[y]
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    for model in LABEL_MODELS:
        if model in ("snorkel", "amcl"):
            continue
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
        label(votes, "features")


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
