"""Label models chosen without a true label: none may lose to the majority vote, or let a class take all."""

from pathlib import Path

import numpy as np
import pytest

from conftest import SHARED
from hesstune.storage.tables import read_table
from hesstune.weak.functions import apply_functions, load_functions
from hesstune.weak.label_models import label
from hesstune.weak.vote_files import vote_columns, votes_in
from hesstune.weak.vote_models import (
    CANDIDATES,
    Evidence,
    choose,
    collapse,
    equal_votes,
    of_several_classes,
    weighted_votes,
)
from hesstune.weak.votes import ABSTAIN, Ballots, Votes


def uniform(k):
    return np.full(k, -np.log(k))


def right(posterior, y, votes):
    """Accuracy on the examples somebody votes on, ties drawn."""
    heard = votes.given.any(axis=1)
    drawn = posterior + 1e-9 * np.random.default_rng(0).random(posterior.shape)
    return (drawn.argmax(axis=1) == y)[heard].mean()


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


def crowd(seed=0, n=1500, k=3, accuracies=(0.9, 0.85, 0.5, 0.45, 0.4), cover=0.9):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    table = np.full((n, len(accuracies)), ABSTAIN)
    for j, accuracy in enumerate(accuracies):
        votes = np.where(rng.random(n) < accuracy, y, (y + rng.integers(1, k, n)) % k)
        given = rng.random(n) < cover
        table[given, j] = votes[given]
    return y, Votes(table, k)


@pytest.mark.parametrize("fit", CANDIDATES.values(), ids=CANDIDATES)
def test_logits_are_the_sum_of_log_likelihoods_vote_by_vote(fit):
    _, votes = crowd(n=60)
    made = fit(votes.ballots, uniform(3))
    found, without = made.logits(votes.ballots), made.without_each(votes.ballots)
    example, labeler = np.nonzero(votes.given)
    for n in range(5):
        by_hand = made.log_prior.copy()
        for j in np.flatnonzero(votes.given[n]):
            v = votes.table[n, j]
            by_hand += made.weight[j] * np.eye(3)[v] if made.table is None else made.table[j, v]
        np.testing.assert_allclose(found[n], by_hand)
        for row in np.flatnonzero(example == n):
            others = votes.table[[n]].copy()
            others[0, labeler[row]] = ABSTAIN
            np.testing.assert_allclose(without[row], made.logits(Votes(others, 3).ballots)[0], atol=1e-9)


def test_accuracies_are_recovered_where_labelers_err_alone():
    accuracies = np.array([0.9, 0.8, 0.7, 0.6])
    y, votes = crowd(n=20_000, accuracies=accuracies)
    made = weighted_votes(votes.ballots, uniform(3), strength=1.0)
    np.testing.assert_allclose(made.accuracy, accuracies, atol=0.02)
    assert right(made.posterior(votes.ballots), y, votes) > right(votes.counts, y, votes)


def test_a_labeler_that_votes_rarely_counts_like_the_others():
    _, votes = crowd(n=500)
    table = np.column_stack([votes.table, np.full(500, ABSTAIN)])
    table[0, -1] = (votes.table[0].max() + 1) % 3  # one vote, against the rest
    made = weighted_votes(Votes(table, 3).ballots, uniform(3), strength=50.0)
    assert made.accuracy[-1] == pytest.approx(np.average(made.accuracy[:-1]), abs=0.05)


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
        shares = np.bincount(found.labels[found.labels != ABSTAIN], minlength=votes.k)
        assert (shares > 0).all() or (np.bincount(votes.table[votes.given], minlength=votes.k) == 0).any()
    assert np.mean(gains) > -0.005


def test_good_labelers_are_found_among_poor_ones():
    y, votes = crowd()
    found = label(votes, "auto")
    assert found.details["chosen"] != "majority"
    assert right(found.posterior, y, votes) > right(votes.counts, y, votes) + 0.02
    accuracy = [found.details["accuracy"][name] for name in votes.names]
    assert min(accuracy[:2]) > max(accuracy[2:])


def test_what_cannot_be_told_is_said():
    _, votes = crowd(accuracies=(0.8, 0.8, 0.8))
    found = label(votes, "auto")
    assert found.details["chosen"] == "majority"
    assert any("beyond the majority vote" in line for line in found.details["reasons"])
    table = np.full((40, 2), ABSTAIN)
    table[:20, 0], table[20:, 1] = 0, 1
    lone = label(Votes(table, 2), "auto")
    assert "too few examples have two votes" in lone.details["reasons"][0]


def test_a_posterior_in_which_one_class_takes_all_is_refused():
    _, votes = crowd()
    ballots = votes.ballots
    assert collapse(equal_votes(ballots, uniform(3)).posterior(ballots), ballots) is None
    swallowed = Evidence(np.log([0.999998, 1e-6, 1e-6]), np.full(votes.m, np.nan), np.ones(votes.m))
    assert "would have" in collapse(swallowed.posterior(ballots), ballots)
    turned = np.roll(votes.counts, 1, axis=1) + 1e-9
    assert "votes all agree" in collapse(turned / turned.sum(axis=1, keepdims=True), ballots)


def test_a_collapsed_candidate_gives_way_to_a_simpler_one(monkeypatch):
    def swallowing(ballots, log_prior, share):
        return Evidence(np.log([0.999998, 1e-6, 1e-6]), np.full(ballots.m, np.nan), np.ones(ballots.m))

    _, votes = crowd()
    monkeypatch.setitem(CANDIDATES, "weighted", swallowing)
    choice = choose(votes.ballots, uniform(3))
    assert choice.name != "weighted"
    assert "would have" in choice.refused["weighted"]
    assert any("weighted refused" in line for line in choice.reasons)


def test_abstentions_are_missing_votes():
    _, votes = functions_of_one_class()
    silent = np.column_stack([votes.table, np.full(len(votes), ABSTAIN)])
    with_silent = label(Votes(silent, 2), "weighted")
    np.testing.assert_allclose(with_silent.posterior, label(votes, "weighted").posterior)


@pytest.mark.slow
def test_ballots_take_memory_by_the_votes():
    n, m = 200_000, 5_000
    rng = np.random.default_rng(0)
    rows = 600_000
    ballots = Ballots(rng.integers(0, n, rows), rng.integers(0, m, rows), rng.integers(0, 4, rows), n, m, 4)
    assert choose(ballots, uniform(4)).name in CANDIDATES  # (N, m) tables would take 8 GB


def test_labelers_of_one_class_are_not_told_apart():
    """Whether those of one class or of the other are right, votes cannot tell: fitted, one took all."""
    _, votes = functions_of_one_class()
    assert not of_several_classes(votes.ballots).any()
    found = label(votes, "weighted")
    np.testing.assert_array_equal(found.posterior, label(votes, "majority").posterior)
    table = np.column_stack([votes.table, np.random.default_rng(0).integers(0, 2, len(votes))])
    mixed = Votes(table, 2).ballots
    made = weighted_votes(mixed, uniform(2), strength=50.0)
    assert of_several_classes(mixed).tolist() == [False] * 6 + [True]
    assert len(set(made.weight[:6].round(9))) == 1


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
    found = label(votes, "auto")
    assert right(found.posterior, y, votes) >= right(votes.counts, y, votes) - 0.005


def test_rules_beside_a_lexicon_do_not_lose_to_the_majority_vote(monkeypatch):
    pytest.importorskip("vaderSentiment")
    path = SHARED / "sst2" / "train.tsv"
    if not path.is_file():
        pytest.skip(f"no sentences at {path}")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    rules = load_functions("py:sentiment_rules:RULES")
    rows = [line.split("\t") for line in path.read_text("utf-8").splitlines()[:3000]]
    votes = apply_functions(rules, [{"text": text} for text, _ in rows], ["negative", "positive"])
    y = np.array([int(given) for _, given in rows])
    assert right(label(votes, "auto").posterior, y, votes) >= right(votes.counts, y, votes) - 0.005
