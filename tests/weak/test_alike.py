"""Labelers that err together are found, and count less; others are let be."""

from __future__ import annotations

import numpy as np
import pytest

from hesstune.weak import Votes, label
from hesstune.weak.dependence import alike
from hesstune.weak.vote_models import (
    choose,
    confusions,
    of_several_classes,
    spamming,
    tabled_votes,
    vote_counts,
)


def drawn(n=2000, m=6, k=3, accuracy=0.65, copies=(), same=0.8, seed=0):
    """Independent labelers, and some that repeat another on most examples."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    table = np.where(rng.random((n, m)) < accuracy, y[:, None], (y[:, None] + rng.integers(1, k, (n, m))) % k)
    for j, of in copies:
        again = rng.random(n) < same
        table[again, j] = table[again, of]
    return y, Votes(table, k)


def found_in(votes):
    return alike(votes.ballots, of_several_classes(votes.ballots))


@pytest.mark.parametrize("seed", range(4))
def test_copies_are_found_and_nobody_else(seed):
    _, votes = drawn(copies=[(1, 0), (4, 3)], seed=seed)
    assert set(found_in(votes).pairs) == {(0, 1), (3, 4)}
    _, alone = drawn(seed=seed)
    assert found_in(alone).pairs == ()
    assert (found_in(alone).share == 1).all()


def test_three_labelers_cannot_be_told_apart_from_copies():
    _, votes = drawn(m=3, copies=[(1, 0)])
    assert found_in(votes).pairs == ()


def test_a_group_of_copies_counts_as_little_more_than_one():
    _, votes = drawn(m=7, copies=[(1, 0), (2, 0)], same=1.0)
    found = found_in(votes)
    assert found.group.tolist() == [0, 0, 0, 3, 4, 5, 6]
    assert found.share[:3] == pytest.approx(np.full(3, 1 / 3), abs=0.02)
    counts = vote_counts(votes.ballots).sum(axis=1)
    assert counts == pytest.approx(np.full(len(votes), 5.0), abs=0.1)


def test_copies_do_not_mislead_the_choice():
    y, votes = drawn(m=9, accuracy=0.6, copies=[(1, 0), (3, 2), (5, 4)], same=0.8)
    found = label(votes, "auto")
    assert (found.labels == y).mean() >= (votes.counts.argmax(axis=1) == y).mean() - 0.005
    assert any("3 pairs of labelers err together" in said for said in found.details["reasons"])


def test_votes_of_one_example_are_bounded():
    _, votes = drawn(n=300, m=60)
    assert vote_counts(votes.ballots).sum(axis=1).max() == pytest.approx(20.0)


@pytest.mark.parametrize("fitted", [confusions, spamming])
def test_tables_are_recovered_where_labelers_err_alone(fitted):
    """A labeler that says 0 for half of class 1, and one that guesses 2 every other time."""
    rng = np.random.default_rng(1)
    y, votes = drawn(n=6000, m=6, accuracy=0.8, seed=1)
    table = votes.table.copy()
    blind = rng.random(len(y)) < 0.5
    table[:, 0] = np.where(blind, 2, y)
    uniform = np.log(np.full(3, 1 / 3))
    made = tabled_votes(Votes(table, 3).ballots, uniform, strength=5.0, fitted=fitted)
    truth = np.array([[0.5, 0.0, 0.5], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]])  # [class, vote]
    np.testing.assert_allclose(np.exp(made.table[0]).T, truth, atol=0.04)
    assert (made.posterior(Votes(table, 3).ballots).argmax(axis=1) == y).mean() > 0.97


def test_tables_are_chosen_where_they_are_needed():
    """Labelers that confuse classes each in its own way: no single accuracy describes them."""
    rng = np.random.default_rng(2)
    y = rng.integers(0, 3, 3000)
    columns = []
    for j in range(6):
        to = (y + 1 + j % 2) % 3  # where it errs to, on one class only
        errs = (y == j % 3) & (rng.random(3000) < 0.9)
        columns.append(np.where(errs, to, np.where(rng.random(3000) < 0.9, y, rng.integers(0, 3, 3000))))
    votes = Votes(np.stack(columns, axis=1), 3)
    choice = choose(votes.ballots, np.log(np.full(3, 1 / 3)))
    assert choice.name == "confusion"
    found = label(votes, "auto")
    assert (found.labels == y).mean() > (label(votes, "majority").labels == y).mean() + 0.01
