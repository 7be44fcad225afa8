"""Sample compression: its bound in exact arithmetic, Pick-to-Learn's conditions, and small cases in full."""

from collections import Counter
from itertools import combinations_with_replacement
from math import comb, factorial, prod

import mpmath
import numpy as np
import pytest
import torch
from test_certificate import evaluated

from hesstune.bounds.kinds.compression import Compression, compression_bound
from hesstune.bounds.kinds.holdout import Holdout
from hesstune.bounds.pick_to_learn import Picker
from hesstune.errors import ConfigError, DataError, RunError
from hesstune.noise.confidence import NoiseConfidenceSet, confidence_upper


def excess(kept, n, delta, epsilon):
    """(δ/N) Σ C(m, k)/C(N, k)(1 − ε)^{−(N−m)} − 1 in 60 digits."""
    with mpmath.workdps(60):
        e = mpmath.mpf(epsilon)
        terms = [mpmath.mpf(comb(m, kept)) / comb(n, kept) * (1 - e) ** (m - n) for m in range(kept, n)]
        return mpmath.mpf(delta) / n * mpmath.fsum(terms) - 1


@pytest.mark.parametrize(
    ("kept", "n", "delta"),
    [(0, 1, 0.05), (3, 30, 1e-6), (29, 30, 0.9), (86, 1336, 0.05), (0, 2000, 0.9), (1990, 2000, 1e-6)],
)
def test_the_bound_is_the_root_rounded_up(kept, n, delta):
    found = compression_bound(kept, n, delta)
    if found == 1.0:
        assert excess(kept, n, delta, 1 - mpmath.mpf(10) ** -14) <= 0
    else:
        assert excess(kept, n, delta, found) >= 0
        assert excess(kept, n, delta, found - 1e-9) < 0


def test_the_bound_grows_with_what_is_kept_and_with_confidence():
    by_kept = [compression_bound(k, 50, 0.05) for k in range(51)]
    assert by_kept == sorted(by_kept)
    assert by_kept[-1] == 1.0
    assert compression_bound(5, 50, 0.01) > compression_bound(5, 50, 0.05)
    # For an empty compression it is a hold-out bound whose confidence pays for N sizes.
    assert compression_bound(0, 50, 0.05) > confidence_upper(0, 50, 0.05)
    for wrong in ((-1, 5, 0.05), (6, 5, 0.05), (0, 0, 0.05), (1, 5, 0.0), (1, 5, 1.0)):
        with pytest.raises(ConfigError):
            compression_bound(*wrong)


def sample(n, d=4, noise=0.2, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0.5)
    flip = rng.random(n) < noise
    return torch.from_numpy(x), np.where(flip, rng.integers(0, 3, n), y)


def picked(x, y, **how):
    return Picker(x, y, torch.zeros(len(y), 3), **how)


# Every way of picking: the number added at a time, the average, centring.
WAYS = [{"grow": 0.0, "average": 0.0}, {"grow": 0.3, "average": 0.95, "center": True}]


def changed_by_the_rest(pick, x, y):
    """Whether picks or head change when some or all of the examples that were not picked are left out."""
    found = pick(x, y)
    rest = np.setdiff1d(np.arange(len(y)), found.kept)
    assert 0 < len(rest) < len(y)
    for share in (0, len(rest) // 2, len(rest) - 1):
        rows = np.sort(np.concatenate([found.kept, rest[:share]])).astype(int)
        again = pick(x[rows], y[rows])
        if [int(rows[at]) for at in again.kept] != found.kept:
            return True
        if not torch.allclose(again.weight, found.weight, rtol=0, atol=1e-9):
            return True
    return False


@pytest.mark.parametrize("how", WAYS)
def test_the_three_properties_of_the_bound(how):
    """Order does not matter; the picked examples alone determine the head; an error would be picked."""
    x, y = sample(70)
    first = picked(x, y, **how).run()
    order = np.random.default_rng(1).permutation(70)
    second = picked(x[order], y[order], **how).run()
    assert sorted(int(order[at]) for at in second.kept) == sorted(first.kept)
    torch.testing.assert_close(second.weight, first.weight, rtol=0, atol=1e-9)
    rest = np.setdiff1d(np.arange(70), first.kept)
    assert first.done
    assert (picked(x, y, **how).lead(first.weight)[rest] > 0).all()
    assert not changed_by_the_rest(lambda x, y: picked(x, y, **how).run(), x, y)
    more, labels = sample(200, seed=4)
    wrong = np.flatnonzero(picked(more, labels, **how).lead(first.weight) <= 0)
    assert len(wrong) > 3
    for at in wrong[:3]:
        again = picked(torch.cat([x, more[at : at + 1]]), np.append(y, labels[at]), **how).run()
        assert 70 in again.kept


def centred_on_all(x, y):
    return picked(x - x.mean(dim=0), y).run()


def of_all_orders(x, y):
    """Return the picks that are fewest when each example comes first in turn."""
    found = []
    for first in range(len(y)):
        picker = picked(x, y, average=0.0, steps=5)
        picker.order[first] = -1
        found.append(picker.run())
    return min(found, key=lambda picks: len(picks.kept))


@pytest.mark.parametrize("twin", [centred_on_all, of_all_orders])
def test_a_scheme_that_depends_on_examples_that_it_does_not_pick_is_found_out(twin):
    """The mean of all features, and a choice of the order, need every example."""
    assert any(changed_by_the_rest(twin, *sample(16, seed=seed)) for seed in range(4))


def test_centring_and_averaging_equal_their_definitions():
    """Centred features give what centred inputs give; V is the running average of the fits."""
    x, y = sample(80, seed=6)
    shift = torch.from_numpy(np.random.default_rng(0).normal(size=(80, 1))).float()
    moved = picked(x + shift, y, center=True)
    expected = torch.nn.functional.normalize(x.double() - x.double().mean(dim=1, keepdim=True))
    torch.testing.assert_close(moved.unit, expected, rtol=0, atol=1e-5)
    total = moved.run().weight.sum(dim=1)
    torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-9)
    mean = torch.zeros(3, 4, dtype=torch.float64)
    picker = picked(x, y, average=0.75)
    for picks in picker.going_on(picker.begin()):
        if not picks.done:
            mean = 0.75 * mean + 0.25 * picks.fitted
        torch.testing.assert_close(picks.weight, mean)
    for features, center in ((torch.full((5, 3), 0.1), True), (torch.zeros(5, 2), False)):
        with pytest.raises(DataError):
            Picker(features, np.zeros(5, np.int64), torch.zeros(5, 2), center=center)
    start = torch.nn.functional.one_hot(torch.from_numpy(y), 3).float()
    assert Picker(x, y, start).run().kept == []  # a start that is right


def test_two_of_the_same_example_are_two():
    """Random labels on repeated inputs: each copy that contradicts the head is kept, and counted."""
    x = torch.eye(3).repeat(10, 1)
    y = np.random.default_rng(0).integers(0, 2, 30)
    found = Picker(x, y, torch.zeros(30, 2)).run()
    pairs = Counter((at % 3, int(y[at])) for at in range(30))
    least = sum(min(pairs[i, 0], pairs[i, 1]) for i in range(3))
    assert least <= len(found.kept) < 30
    assert len(set(found.kept)) == len(found.kept)


def test_a_stopped_search_goes_on_as_if_it_had_not_stopped():
    x, y = sample(100, seed=5)
    picker = picked(x, y)
    whole = picker.run()
    half = picker.run(most=len(whole.kept) // 2)
    assert not half.done
    *_, last = picker.going_on(half)
    assert last.kept == whole.kept
    assert torch.equal(last.weight, whole.weight)


def failure(points, weights, n, delta, uncounted=0, **how):
    """P(true error > bound), exactly: every multiset of n points, its multinomial weight, its own head.

    `uncounted` examples are left out of the count.
    """
    x = torch.tensor([p[0] for p in points], dtype=torch.float32)
    y = np.array([p[1] for p in points])
    bad = 0.0
    for rows in combinations_with_replacement(range(len(points)), n):
        counts = Counter(rows)
        chance = factorial(n) * prod(weights[i] ** c / factorial(c) for i, c in counts.items())
        at = list(rows)
        found = Picker(x[at], y[at], torch.zeros(n, int(max(y)) + 1), steps=10, **how).run()
        wrong = Picker(x, y, torch.zeros(len(y), int(max(y)) + 1)).lead(found.weight) < 1e-5
        error = float(np.asarray(weights)[wrong].sum())
        bound = compression_bound(max(0, len(found.kept) - uncounted), n, delta)
        bad += chance * (error > bound + 1e-12)
    return bad


# Labels at random on one input, or on two; and a rule with one label in four wrong.
WORLDS = {
    "random on one": ([((1.0, 0.0), 0), ((1.0, 0.0), 1)], [0.5, 0.5]),
    "random on two": ([((1.0, 0.0), 0), ((1.0, 0.0), 1), ((0.0, 1.0), 0), ((0.0, 1.0), 1)], [0.25] * 4),
    "a rule, noisy": ([((1.0, 0.0), 0), ((1.0, 0.0), 1), ((0.0, 1.0), 1), ((0.0, 1.0), 0)],
                      [0.375, 0.125, 0.375, 0.125]),
}  # fmt: skip


@pytest.mark.parametrize("how", [{}, {"average": 0.5, "center": True}])
@pytest.mark.parametrize("world", WORLDS)
def test_small_cases_in_full(world, how):
    points, weights = WORLDS[world]
    for delta in (0.1, 0.5):
        assert failure(points, weights, 5, delta, **how) <= delta


def test_a_bound_that_leaves_one_addition_uncounted_is_found_out():
    """Twenty labels at random on one input: every head errs on 95 %."""
    points, weights = [((1.0, 0.0), label) for label in range(20)], [0.05] * 20
    assert failure(points, weights, 2, 0.3) <= 0.3
    assert failure(points, weights, 2, 0.3, uncounted=1) > 0.3


def head_of(picker, found):
    model = torch.nn.Linear(picker.unit.shape[1], picker.offset.shape[1], bias=False)
    with torch.no_grad():
        model.weight.copy_(found.weight.float())
    return model


def test_a_network_is_certified_by_what_it_kept():
    x, y = sample(150, seed=7)
    picker = picked(x, y)
    found = picker.run()
    model, data = head_of(picker, found), torch.utils.data.TensorDataset(x, torch.from_numpy(y))
    c = evaluated(Compression, model, data, found.kept)
    assert c.risk == compression_bound(len(found.kept), 150, 0.05)
    assert (c.bound, c.kl, c.numbers) == ("compression", 0.0, {"kept": float(len(found.kept))})
    assert "no noise on its weights" in c.summary()
    other = head_of(picker, picked(x, y).run(most=1))
    for kept, error in ((found.kept[1:], RunError), ([*found.kept, 150], DataError), ([0, 0], DataError)):
        with pytest.raises(error):
            evaluated(Compression, other, data, kept)
    noisy = evaluated(Compression, model, data, found.kept, noise_matrix=np.eye(3) * 0.7 + 0.1)
    assert noisy.risk == pytest.approx((c.risk - 0.2) / 0.7)
    # A confidence set pays from delta, and its worst matrix counts.
    counts = NoiseConfidenceSet(np.eye(3, dtype=int) * 700 + 100, 0.01)
    surer = evaluated(Compression, model, data, found.kept, noise_matrix=counts)
    assert surer.risk > noisy.risk
    assert surer.shares == {"compression": pytest.approx(0.04), "noise": 0.01}
    # A hold-out bound is the exact tail, and refuses examples that were seen.
    with torch.no_grad():
        errors = int((other(x).argmax(1).numpy() != y).sum())
    tail = evaluated(Holdout, other, data)
    assert errors > 0
    assert tail.risk == confidence_upper(errors, 150, 0.05)
    assert (tail.bound, tail.n, tail.empirical) == ("holdout", 150, errors / 150)
    with pytest.raises(DataError, match="150 of the certificate's examples are also among"):
        evaluated(Holdout, other, data, seen=data)


def start_of(label, n, k):
    """A start that gives every example one label."""
    return torch.nn.functional.one_hot(torch.full((n,), label), k).float()


def failure_of_starts(labels, n, delta, chosen):
    """P(true error > bound), exactly, of one start or of that which keeps fewest on the same examples."""
    x = torch.tensor([[1.0, 0.0]] * n)
    bad = 0.0
    for rows in combinations_with_replacement(range(labels), n):
        chance = factorial(n) / prod(factorial(c) for c in Counter(rows).values()) / labels**n
        tried = range(labels) if chosen else [0]
        y = np.array(rows)
        kept = min(len(Picker(x, y, start_of(own, n, labels), steps=5).run().kept) for own in tried)
        bad += chance * (1 - 1 / labels > compression_bound(kept, n, delta) + 1e-12)
    return bad


def test_a_setting_chosen_on_the_examples_is_found_out():
    """Twelve labels at random: a fixed start is right on both once in 144, the best of twelve once in 12."""
    assert failure_of_starts(12, 2, 0.02, chosen=False) <= 0.02
    assert failure_of_starts(12, 2, 0.02, chosen=True) > 0.02


@pytest.mark.parametrize("repeated", [False, True])
def test_thirty_examples_with_labels_at_random(repeated):
    """The true error is one half whatever is learnt; inputs are new, or draws of three."""
    rng = np.random.default_rng(5)
    failed = 0
    for _ in range(12):
        rows = rng.integers(0, 3, 30)
        x = torch.eye(3)[rows] if repeated else torch.from_numpy(rng.normal(size=(30, 5)).astype(np.float32))
        y = rng.integers(0, 2, 30)
        kept = len(Picker(x, y, torch.zeros(30, 2)).run().kept)
        failed += compression_bound(kept, 30, 0.05) < 0.5
    assert failed == 0  # far from it: most of the labels have to be kept
