"""Label models against closed forms, crowd-kit, brute force and simulation; none needs a true label."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from conftest import SHARED
from hesstune.errors import ConfigError, DataError
from hesstune.labeling.label_data import label_data
from hesstune.storage.tables import read_table
from hesstune.weak.dependence import ErrorGroups, dependence_note, error_groups, of_several_classes
from hesstune.weak.label_models import LABEL_MODELS, at_balance, label, label_model_class, read_balance
from hesstune.weak.label_models.calibrated import calibrated_votes, weighed_counts
from hesstune.weak.label_models.dawid_skene import dawid_skene
from hesstune.weak.vote_files import vote_columns, votes_in
from hesstune.weak.vote_models import (
    CANDIDATES,
    FittedVotes,
    choose,
    collapse,
    confusions,
    equal_votes,
    spamming,
    tabled_votes,
    vote_counts,
    weighted_votes,
)
from hesstune.weak.votes import ABSTAIN, Votes, patterns

tables = hnp.arrays(np.int64, st.tuples(st.integers(1, 30), st.integers(1, 4)), elements=st.integers(-1, 3))


def crowd(n=1500, k=3, accuracies=(0.9, 0.85, 0.5, 0.45, 0.4), cover=0.9, copies=(), seed=0):
    """Independent annotators that err uniformly, with abstentions, and some that repeat another in 80 %."""
    rng = np.random.default_rng(seed)
    y, m = rng.integers(0, k, n), len(accuracies)
    wrong = (y[:, None] + rng.integers(1, k, (n, m))) % k
    table = np.where(rng.random((n, m)) < accuracies, y[:, None], wrong)
    for j, of in copies:
        table[:, j] = np.where(rng.random(n) < 0.8, table[:, of], table[:, j])
    table[rng.random((n, m)) > cover] = ABSTAIN
    return y, Votes(table, k)


def functions_of_one_class(seed=0, n=2000, k=2, prior=None, accuracies=(0.95, 0.9, 0.9, 0.6, 0.6, 0.55)):
    """Labeling functions that vote for one class each, good ones and poor ones."""
    rng = np.random.default_rng(seed)
    y = rng.choice(k, n, p=prior)
    table = np.full((n, len(accuracies)), ABSTAIN)
    for j, accuracy in enumerate(accuracies):
        c = j % k
        share = (y == c).mean()
        fires = np.where(y == c, 0.3, 0.3 * (1 - accuracy) / accuracy * share / (1 - share))
        table[rng.random(n) < fires, j] = c
    return y, Votes(table, k)


def overconfident(n=1500, k=3, accuracies=(0.8, 0.7, 0.6), sure=0.98, seed=0):
    """Annotators with probabilities that are larger than their accuracy."""
    y, votes = crowd(n, k, accuracies, cover=1.0, seed=seed)
    soft = np.full((n, len(accuracies), k), (1 - sure) / (k - 1))
    soft[votes.example, votes.annotator, votes.vote] = sure
    return y, soft


def uniform(k):
    return np.full(k, -np.log(k))


def right(posterior, y, votes):
    """Return the accuracy on the examples with votes, ties drawn."""
    drawn = posterior + 1e-9 * np.random.default_rng(0).random(posterior.shape)
    return (drawn.argmax(axis=1) == y)[votes.per_example > 0].mean()


def log_loss(q, y):
    return float(-np.log(np.maximum(q[np.arange(len(y)), y], 1e-12)).mean())


DOCS = (Path(__file__).parents[2] / "docs" / "howto" / "weak-labels.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", LABEL_MODELS)
def test_every_label_model_is_documented_and_keeps_the_common_rules(name):
    """A model needs a line in the docs; it leaves out silent annotators and keeps checked labels."""
    kind = label_model_class(name)
    assert f"| `{name}` | {kind.summary} |" in DOCS
    if name == "mace":  # slow, and fitted below
        return
    y, votes = crowd(120, accuracies=(0.8, 0.7, 0.6))
    table = np.column_stack([votes.table, np.full(120, ABSTAIN)])
    table[:5] = ABSTAIN
    hard = Votes(table, 4)
    checked = (np.arange(40), y[:40])
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    for votes in (hard, Votes(table, 4, soft=hard.onehot)):
        for features in (None, np.eye(3)[y]) if not kind.needs_features else (np.eye(3)[y],):
            found = label(votes, name, features=features, clean=checked)
            assert set(found.details) <= set(kind.record)
            assert (found.labels[:5] == ABSTAIN).all()
            assert (found.labels[5:40] == y[5:40]).all()
            assert (found.labels != 3).all()  # a class without votes
            np.testing.assert_allclose(found.posterior.sum(axis=1), 1)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


def test_what_cannot_be_labelled_is_refused():
    _, votes = crowd(20)
    for arguments, error, message in (
        ((Votes(np.full((3, 2), -1), 2),), DataError, "no vote"),
        ((votes, "majorty"), ConfigError, "did you mean 'majority'"),
        ((votes, "soft_features"), ConfigError, "features"),
        ((Votes([[0, 1]], 2), "soft_features", np.ones((1, 2))), DataError, "two examples"),
        ((votes, "auto", np.ones((3, 2))), DataError, r"\(20, D\)"),
        ((votes, "majority", None, ([0, 0], [1, 1])), DataError, "as many different rows"),
    ):
        with pytest.raises(error, match=message):
            label(
                arguments[0], *arguments[1:2], **dict(zip(("features", "clean"), arguments[2:], strict=False))
            )


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

    y, votes = crowd(50, accuracies=(0.9, 0.8, 0.8, 0.7))
    frame = pd.DataFrame({"task": votes.example, "worker": votes.annotator, "label": votes.vote})
    theirs = {
        "dawid_skene": lambda: aggregation.DawidSkene(n_iter=200).fit_predict_proba(frame),
        "mace": lambda: aggregation.MACE(random_state=0).fit_predict_proba(frame),
    }[model]()
    found = label(votes, model)
    rows = theirs.index.to_numpy()
    np.testing.assert_allclose(found.posterior[rows][:, theirs.columns], theirs.to_numpy(), atol=1e-9)
    assert (found.labels[rows] == y[rows]).mean() > 0.75


@given(tables)
def test_dawid_skene_on_distinct_rows_is_dawid_skene_on_all(table):
    votes = Votes(table[(table != -1).any(axis=1)], k=4)
    if not len(votes):
        return
    first, of = patterns(votes)
    on_all = dawid_skene(votes, np.ones(len(votes)), steps=30)
    on_distinct = dawid_skene(votes.take(first), np.bincount(of).astype(float), steps=30)
    np.testing.assert_allclose(on_distinct[0][of], on_all[0], atol=1e-6)
    np.testing.assert_allclose(on_distinct[1], on_all[1], atol=1e-6)


def test_features_help_if_few_annotators_err_together():
    y, votes = crowd(500, accuracies=(0.7, 0.6, 0.55), cover=1.0, copies=[(1, 0)])
    x = 5 * np.eye(8)[y] + np.random.default_rng(1).normal(size=(500, 8))
    assert (label(votes, "soft_features", features=x).labels == y).mean() > (
        label(votes).labels == y
    ).mean() + 0.1


@pytest.mark.parametrize("fit", CANDIDATES.values(), ids=CANDIDATES)
def test_logits_are_the_sum_of_log_likelihoods_vote_by_vote(fit):
    _, votes = crowd(n=60)
    alone = ErrorGroups.none(votes.m)
    made = fit(votes, uniform(3), alone)
    found, without = made.logits(votes), made.without_each(votes, alone.group)
    for n in range(5):
        by_hand = made.log_prior.copy()
        for j in np.flatnonzero(votes.given[n]):
            v = votes.table[n, j]
            by_hand += made.weight[j] * np.eye(3)[v] if made.table is None else made.table[j, v]
        np.testing.assert_allclose(found[n], by_hand)
        for row in np.flatnonzero(votes.example == n):
            others = votes.table[[n]].copy()
            others[0, votes.annotator[row]] = ABSTAIN
            np.testing.assert_allclose(without[row], made.logits(Votes(others, 3))[0], atol=1e-9)


def test_accuracies_are_recovered_and_few_votes_are_drawn_to_the_mean():
    accuracies = np.array([0.9, 0.8, 0.7, 0.6])
    y, votes = crowd(n=20_000, accuracies=accuracies)
    made = weighted_votes(votes, uniform(3), ErrorGroups.none(4), strength=1.0)
    np.testing.assert_allclose(made.accuracy, accuracies, atol=0.02)
    assert right(made.posterior(votes), y, votes) > right(votes.counts, y, votes)
    _, votes = crowd(n=500)
    table = np.column_stack([votes.table, np.full(500, ABSTAIN)])
    table[0, -1] = (votes.table[0].max() + 1) % 3  # one vote, against the rest
    made = weighted_votes(Votes(table, 3), uniform(3), ErrorGroups.none(6), strength=50.0)
    assert made.accuracy[-1] == pytest.approx(np.average(made.accuracy[:-1]), abs=0.05)


@pytest.mark.parametrize("fit_table", [confusions, spamming])
def test_tables_are_recovered_if_annotators_err_alone(fit_table):
    """The first annotator votes for 2 in half of the cases."""
    y, votes = crowd(6000, accuracies=[0.8] * 6, cover=1.0, seed=1)
    table = votes.table.copy()
    table[:, 0] = np.where(np.random.default_rng(1).random(6000) < 0.5, 2, y)
    votes = Votes(table, 3)
    made = tabled_votes(votes, uniform(3), ErrorGroups.none(6), strength=5.0, fit_table=fit_table)
    truth = np.array([[0.5, 0.0, 0.5], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]])  # [class, vote]
    np.testing.assert_allclose(np.exp(made.table[0]).T, truth, atol=0.04)
    assert (made.posterior(votes).argmax(axis=1) == y).mean() > 0.97


def test_tables_are_chosen_if_no_single_accuracy_describes_the_annotators():
    rng = np.random.default_rng(2)
    y = rng.integers(0, 3, 3000)
    columns = []
    for j in range(6):
        errs = (y == j % 3) & (rng.random(3000) < 0.9)  # on one class only
        other = np.where(rng.random(3000) < 0.9, y, rng.integers(0, 3, 3000))
        columns.append(np.where(errs, (y + 1 + j % 2) % 3, other))
    votes = Votes(np.stack(columns, axis=1), 3)
    assert choose(votes, uniform(3))[1]["chosen"] == "confusion"
    assert (label(votes, "auto").labels == y).mean() > (label(votes, "majority").labels == y).mean() + 0.01


@pytest.mark.parametrize(
    "options",
    [{}, {"k": 3}, {"prior": [0.97, 0.03]}, {"prior": [0.1, 0.9]}, {"n": 300}, {"accuracies": (0.9, 0.55)}],
    ids=["two classes", "three", "a class at 3 %", "uneven", "few", "two functions"],
)
def test_functions_of_one_class_never_lose_to_the_majority_vote(options):
    gains = []
    for seed in range(5):
        y, votes = functions_of_one_class(seed, **options)
        found = label(votes, "auto")
        gains.append(right(found.posterior, y, votes) - right(votes.counts, y, votes))
        assert set(votes.vote.tolist()) <= set(found.labels.tolist())
    assert np.mean(gains) > -0.005


def test_good_annotators_are_found_among_poor_ones():
    y, votes = crowd()
    found = label(votes, "auto")
    assert found.details["chosen"] != "majority"
    assert right(found.posterior, y, votes) > right(votes.counts, y, votes) + 0.02
    accuracy = [found.details["accuracy"][name] for name in votes.names]
    assert min(accuracy[:2]) > max(accuracy[2:])


def test_what_votes_cannot_decide_is_left_to_the_majority():
    _, votes = crowd(accuracies=(0.8, 0.8, 0.8))
    table = np.full((40, 2), ABSTAIN)
    table[:20, 0], table[20:, 1] = 0, 1
    for own, reason in ((votes, "beyond the majority vote"), (Votes(table, 2), "two votes")):
        found = label(own, "auto")
        assert found.details["chosen"] == "majority"
        assert any(reason in line for line in found.details["reasons"])
    _, votes = functions_of_one_class()
    assert not of_several_classes(votes).any()
    found = label(votes, "weighted")
    np.testing.assert_array_equal(found.posterior, label(votes, "majority").posterior)
    more = np.column_stack([votes.table, np.random.default_rng(0).integers(0, 2, len(votes))])
    made = weighted_votes(Votes(more, 2), uniform(2), ErrorGroups.none(7), strength=50.0)
    assert of_several_classes(Votes(more, 2)).tolist() == [False] * 6 + [True]
    assert len(set(made.weight[:6].round(9))) == 1


def test_a_posterior_in_which_one_class_takes_all_is_refused(monkeypatch):
    def swallowing(votes, log_prior, groups):
        return FittedVotes(np.log([0.999998, 1e-6, 1e-6]), np.full(votes.m, np.nan), np.ones(votes.m))

    _, votes = crowd()
    assert collapse(equal_votes(votes, uniform(3)).posterior(votes), votes) is None
    assert "would have" in collapse(swallowing(votes, None, None).posterior(votes), votes)
    turned = np.roll(votes.counts, 1, axis=1) + 1e-9
    assert "unanimous" in collapse(turned / turned.sum(axis=1, keepdims=True), votes)
    monkeypatch.setitem(CANDIDATES, "weighted", swallowing)
    details = choose(votes, uniform(3))[1]
    assert details["chosen"] != "weighted"
    assert "would have" in details["refused"]["weighted"]


@pytest.mark.slow
def test_a_crowd_takes_memory_by_its_votes():
    rng = np.random.default_rng(0)
    pairs = np.unique(rng.integers(0, 200_000 * 5_000, 600_000))
    names = [str(j) for j in range(5_000)]
    vote = rng.integers(0, 4, len(pairs))
    votes = Votes.of_rows(pairs // 5_000, pairs % 5_000, vote, n=200_000, k=4, names=names)
    assert choose(votes, uniform(4))[1]["chosen"] in CANDIDATES  # (N, m) tables would take 8 GB


@pytest.mark.parametrize("name", ["youtube", "trec"])
def test_real_labeling_functions_do_not_lose_to_the_majority_vote(name):
    path = SHARED / "wrench" / f"{name}.csv"
    if not path.is_file():
        pytest.skip(f"no labeling functions at {path}")
    table = read_table(path)
    classes = sorted(set(table.cells("label")))
    train = np.array([part == "train" for part in table.cells("split")])
    votes = votes_in(table, vote_columns(table), classes).take(np.flatnonzero(train))
    y = np.array([classes.index(cell) for cell in table.cells("label")])[train]
    assert right(label(votes, "auto").posterior, y, votes) >= right(votes.counts, y, votes) - 0.005


def test_copies_are_found_and_count_less():
    for seed in range(4):
        _, votes = crowd(2000, accuracies=[0.65] * 6, cover=1.0, copies=[(1, 0), (4, 3)], seed=seed)
        assert set(error_groups(votes).pairs) == {(0, 1), (3, 4)}
        found = error_groups(crowd(2000, accuracies=[0.65] * 6, cover=1.0, seed=seed)[1])
        assert found.pairs == ()
        assert (found.share == 1).all()
    three = crowd(2000, accuracies=[0.65] * 3, cover=1.0, copies=[(1, 0)])[1]
    assert error_groups(three).pairs == ()  # too few others to compare with
    table = crowd(2000, accuracies=[0.65] * 7, cover=1.0)[1].table.copy()
    table[:, 1] = table[:, 2] = table[:, 0]
    found, counts = error_groups(Votes(table, 3)), vote_counts(Votes(table, 3)).sum(axis=1)
    assert found.group.tolist() == [0, 0, 0, 3, 4, 5, 6]
    assert found.share[:3] == pytest.approx(np.full(3, 1 / 3), abs=0.02)
    assert counts == pytest.approx(np.full(2000, 5.0), abs=0.1)
    many = crowd(300, accuracies=[0.65] * 60)[1]
    assert vote_counts(many).sum(axis=1).max() == pytest.approx(20.0)
    y, votes = crowd(2000, accuracies=[0.6] * 9, cover=1.0, copies=[(1, 0), (3, 2), (5, 4)])
    found = label(votes, "auto")
    assert (found.labels == y).mean() >= (votes.counts.argmax(axis=1) == y).mean() - 0.005
    assert any(said.startswith("3 pairs of annotators") for said in found.details["reasons"])


def test_dependence_is_found_if_it_is_there_and_rarely_otherwise():
    accuracies, false_alarms = (0.8, 0.7, 0.6, 0.6), 0
    for seed in range(10):
        y, votes = crowd(600, accuracies=accuracies, seed=seed)
        false_alarms += bool(dependence_note(votes, np.eye(3)[y]))
    assert false_alarms <= 2
    y, votes = crowd(600, accuracies=accuracies, copies=[(1, 0)])
    (note,) = dependence_note(votes, np.eye(3)[y])
    assert "annotator0 and annotator1" in note
    assert "annotator2" not in note


@pytest.mark.parametrize("seed", range(3))
def test_calibrated_posteriors_are_as_certain_as_they_are_right(seed):
    y, soft = overconfident(seed=seed)
    posterior, power = calibrated_votes(Votes.of_probabilities(soft))
    raw = soft.prod(axis=1)
    raw /= raw.sum(axis=1, keepdims=True)
    accuracy, certain = (posterior.argmax(axis=1) == y).mean(), posterior.max(axis=1).mean()
    assert certain == pytest.approx(accuracy, abs=0.04)
    assert raw.max(axis=1).mean() > accuracy + 0.08
    assert log_loss(posterior, y) < min(0.7 * log_loss(raw, y), log_loss(soft.mean(axis=1), y))
    # The power of an annotator of accuracy a is ln(a(K − 1)/(1 − a)) / ln(p(K − 1)/(1 − p)) at probability p.
    ideal = [np.log(2 * a / (1 - a)) / np.log(2 * 0.98 / 0.02) for a in (0.8, 0.7, 0.6)]
    assert power == pytest.approx(ideal, abs=0.12)
    assert power[0] > power[2]
    soft[:, 2] = [0.98, 0.01, 0.01]  # the same for all examples
    posterior, power = calibrated_votes(Votes.of_probabilities(soft))
    assert power[2] == pytest.approx(0, abs=0.1)
    assert (posterior.argmax(axis=1) == y).mean() > 0.7


def test_one_annotator_is_calibrated_by_checked_examples_alone():
    y, soft = overconfident(accuracies=(0.7,))
    votes = Votes.of_probabilities(soft)
    alone = label(votes, "auto")
    assert alone.posterior == pytest.approx(soft[:, 0])
    assert any("--checked-labels" in said for said in alone.details["reasons"])
    found = label(votes, "auto", clean=(np.arange(200), y[:200]))
    assert found.posterior[200:].max(axis=1).mean() == pytest.approx(0.7, abs=0.06)


def test_beside_features_several_answers_count_as_several():
    """A posterior of all annotators would count as one answer, however many agree."""
    y, soft = overconfident(n=400, accuracies=(0.75, 0.7, 0.65))
    x = np.eye(3)[y] + 0.9 * np.random.default_rng(9).normal(size=(400, 3))
    votes = Votes.of_probabilities(soft)
    counts = weighed_counts(votes)
    assert counts.sum() == pytest.approx(3 * len(y), rel=0.01)
    assert counts[votes.counts.max(axis=1) == 3].max(axis=1).mean() > 2.5
    found = label(votes, "auto", features=x)
    assert found.details["chosen"] == "latent"
    assert (found.labels == y).mean() > (label(votes, "auto").labels == y).mean() + 0.01


def test_classes_keep_their_given_shares(tmp_path):
    y, soft = overconfident(n=2000, k=2, accuracies=(0.75, 0.7, 0.65))
    rare = np.flatnonzero((y == 0) | (np.random.default_rng(3).random(2000) < 0.1))
    votes, y = Votes.of_probabilities(soft[rare]), y[rare]
    shares = np.bincount(y) / len(y)
    plain, given = label(votes, "auto"), label(votes, "auto", balance=shares)
    assert given.posterior.mean(axis=0) == pytest.approx(shares, abs=1e-4)
    assert (given.labels == y).mean() > (plain.labels == y).mean() + 0.05
    assert log_loss(given.posterior, y) < log_loss(plain.posterior, y)
    certain = label(Votes(np.tile(y[:, None], 3), 2), "majority", balance=[0.5, 0.5])
    assert any("too many examples are certain" in said for said in certain.details["reasons"])
    path = tmp_path / "v.csv"
    rows = "".join(f"e{n},{'ab'[n % 2]},{'ab'[n % 3 == 0]}\n" for n in range(60))
    path.write_text("id,vote_x,vote_y\n" + rows)
    found = label_data(votes=str(path), class_balance=["a=0.8", "b=0.2"])
    assert found.posterior.mean(axis=0)[0] > label_data(votes=str(path)).posterior.mean(axis=0)[0]


def test_the_balance_is_the_nearest_in_kullback_leibler():
    """Against a general solver on a small case."""
    from scipy.optimize import minimize

    p, balance = np.random.default_rng(0).dirichlet(np.ones(3), 6), np.array([0.5, 0.3, 0.2])
    q, off = at_balance(p, balance)

    def kl(flat):
        found = np.abs(flat.reshape(p.shape)) + 1e-12
        return float((found * np.log(found / p)).sum())

    rules = [
        {"type": "eq", "fun": lambda f: f.reshape(p.shape).sum(axis=1) - 1},
        {"type": "eq", "fun": lambda f: (f.reshape(p.shape).mean(axis=0) - balance)[:2]},
    ]
    best = minimize(kl, p.ravel(), constraints=rules, bounds=[(1e-9, 1)] * p.size, options={"maxiter": 500})
    assert off < 1e-5
    assert q == pytest.approx(best.x.reshape(p.shape), abs=2e-3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["a=0.5"], "share of b"), (["a=0.5", "b=0.9"], "1.4"), (["a=0.5", "c=0.5"], "'c'"),
        (["a=0.5", "a=0.5"], "'a' twice"), (["half"], "'half'"), (["a=much", "b=0.5"], "'a=much'"),
        (["majority"], "'b'"),
    ],
)  # fmt: skip
def test_a_balance_that_is_none_is_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        read_balance(given, ["a", "b"], np.array([1.0, 0.0]))
