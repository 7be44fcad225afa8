"""Latent-truth EM: against other solvers, closed forms, and data with known true classes."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression

import hesstune.noise.probes
from hesstune import NoiseMatrix
from hesstune.errors import ConfigError, DataError
from hesstune.noise.estimate import estimate_by_em, estimate_noise
from hesstune.noise.latent.channel import LabelChannel, Observed, shrink_to_symmetric
from hesstune.noise.latent.em import (
    TEMPERATURES,
    _fit_em,
    fit_from_several_starts,
    fold_rows,
    latent_truth,
    log_scores,
    mean_scores,
)
from hesstune.noise.latent.head import (
    CANDIDATES,
    FAST_CANDIDATES,
    GIVEN_MATRIX,
    PRIOR_SHARES,
    Candidate,
    Choice,
    HeldOut,
    _for_label_errors,
    choose,
    robust_head,
)
from hesstune.noise.matrix import rate_matrix
from hesstune.noise.probes import Reduction, SoftProbes, cross_fit


def blobs(n, k, *, spread=0.6, seed=0):
    """K clouds in the plane of their one-hot codes: features and true classes."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    return np.eye(k)[y] + spread * rng.normal(size=(n, k)), y


def by_hand(x, q, strength, weight):
    """The penalised fit on soft targets by another optimiser, in float64."""
    d, k = x.shape[1], q.shape[1]

    def objective(values):
        w, b = values[: d * k].reshape(d, k), values[d * k :]
        logs = log_softmax(x @ w + b, axis=1)
        return -(weight[:, None] * q * logs).sum() + (w**2).sum() / (2 * strength)

    return minimize(objective, np.zeros(d * k + k), method="BFGS", options={"gtol": 1e-6})


def reduced(x):
    return Reduction.of(x).apply(x)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_soft_probe_has_the_least_penalised_loss_for_soft_and_hard_targets(weighted):
    rng = np.random.default_rng(0)
    x, q = rng.normal(size=(40, 3)), rng.dirichlet(np.ones(3), size=40)
    weight = rng.uniform(0.2, 3, 40) if weighted else np.ones(40)
    (found,) = SoftProbes(x, 0.7, weight if weighted else None).fit(q, steps=3000)
    other = by_hand(x, q, 0.7, weight)
    w = other.x[:9].reshape(3, 3)
    assert np.abs(found.weight - w).max() < 2e-3
    wanted = softmax(x @ w + other.x[9:], axis=1)
    assert np.abs(found.probabilities(x) - wanted).max() < 2e-3
    x, y = blobs(200, 3)
    (found,) = SoftProbes(x, 0.3).fit(np.eye(3)[y], steps=3000)
    other = LogisticRegression(C=0.3, tol=1e-8, max_iter=1000).fit(x, y)
    assert np.abs(found.probabilities(x) - other.predict_proba(x)).max() < 2e-3


@pytest.mark.parametrize("weighted", [False, True])
def test_probes_of_all_folds_are_those_of_each_fold_alone(weighted, monkeypatch):
    x, y = blobs(120, 3)
    q = np.random.default_rng(1).dirichlet(np.ones(3), size=120) + np.eye(3)[y]
    q /= q.sum(axis=1, keepdims=True)
    weight = np.random.default_rng(2).uniform(0.2, 3, 120) if weighted else None
    folds = fold_rows(120, 4, 0)
    probes = SoftProbes(x, 0.5, weight, folds)
    found, logits = probes.fit(q, steps=2000), probes.held_out_logits()
    for linear, rows in zip(found, folds, strict=True):
        rest = np.setdiff1d(np.arange(120), rows)
        own = None if weight is None else weight[rest]
        (alone,) = SoftProbes(x[rest], 0.5, own).fit(q[rest], steps=2000)
        np.testing.assert_allclose(linear.logits(x), alone.logits(x), atol=2e-3)
        np.testing.assert_allclose(logits[rows], linear.logits(x[rows]), atol=1e-6)
    # One after the other, where all would take too much memory; and from a start, in one step.
    monkeypatch.setattr(hesstune.noise.probes, "AT_ONCE", 1)
    for other, linear in zip(SoftProbes(x, 0.5, weight, folds).fit(q, steps=2000), found, strict=True):
        np.testing.assert_allclose(other.logits(x), linear.logits(x), atol=2e-3)
    near = SoftProbes(x, 0.5, weight, folds).fit(q, steps=1, start=found[2])[2]
    np.testing.assert_allclose(near.logits(x), found[2].logits(x), atol=2e-3)
    # To go on is not to start again, and leaves the earlier result as it was.
    (short,) = (alone := SoftProbes(x, 0.5, weight)).fit(q, steps=2)
    before = short.logits(x)
    (longer,) = alone.fit(q, steps=2000, go_on=True)
    (again,) = alone.fit(q, steps=2)
    np.testing.assert_array_equal(short.logits(x), before)
    np.testing.assert_array_equal(again.logits(x), before)
    assert np.abs(longer.logits(x) - before).max() > 0.01


def test_features_of_low_rank_are_fitted_with_almost_no_penalty():
    """Rounding makes eigenvalues of their scatter negative: the fit failed or ended anywhere."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(3000, 3)) * [1, 0.1, 0.01]
    x, y = reduced(z @ rng.normal(size=(3, 250))), (z[:, 0] > 0).astype(int)
    for fitted in SoftProbes(x, 100.0, None, fold_rows(3000, 5, 0)).fit(np.eye(2)[y], steps=60):
        assert (fitted.logits(x).argmax(axis=1) == y).mean() > 0.98


def test_a_head_of_reduced_features_is_one_of_the_features():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 400)) * rng.uniform(0.1, 2, 400) + 3
    reduction = Reduction.of(x, components=20)
    weight, bias = rng.normal(size=(20, 4)), rng.normal(size=4)
    whole, moved = reduction.unfold(weight, bias)
    assert np.allclose(x @ whole + moved, ((x - x.mean(0)) @ reduction.axes) @ weight + bias)
    assert (reduction.apply(x).astype(float) ** 2).sum(axis=1).mean() == pytest.approx(128, rel=1e-4)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: Reduction.of([[1.0, np.nan], [0.0, 1.0]]), DataError, "finite"),
        (lambda: robust_head(np.ones((3, 2)), Observed.of([0, 1], 2)), DataError, "3 rows"),
        (lambda: robust_head(np.ones((1, 2)), Observed.of([0], 2)), DataError, "1 example"),
        (lambda: fold_rows(3, 5, 0), ConfigError, "5 folds"),
        (lambda: cross_fit(np.ones((3, 2)), [0, 1, 1], 2), ConfigError, "5 folds"),
        (lambda: cross_fit(np.ones((2, 2)), [0, 1, 1], 2), DataError, "finite"),
    ],
)
def test_wrong_features_are_refused(call, error, said):
    with pytest.raises(error, match=said):
        call()


@given(st.integers(2, 6), st.integers(0, 99))
@settings(max_examples=40)
def test_a_shrunk_matrix_is_stochastic_and_lies_between(k, seed):
    rng = np.random.default_rng(seed)
    counts = rng.dirichlet(np.ones(k), size=k) * rng.uniform(0, 50, (k, 1))
    found = shrink_to_symmetric(counts)
    assert np.allclose(found.sum(axis=1), 1)
    assert (found > 0).all()
    raw = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-12)
    pooled = rate_matrix("symmetric", k, (counts.sum() - np.trace(counts) + 1) / (counts.sum() + k))
    low, high = np.minimum(raw, pooled), np.maximum(raw, pooled)
    assert (found >= low - 1e-9).all()
    assert (found <= high + 1e-9).all()


def test_the_likelihood_of_a_soft_label_is_expected():
    channel = LabelChannel(np.array([[0.8, 0.2], [0.4, 0.6]]), "full")
    given_labels = np.array([[1.0, 0.0], [0.25, 0.75]])
    wanted = [[0.8, 0.4], [0.8**0.25 * 0.2**0.75, 0.4**0.25 * 0.6**0.75]]
    assert np.allclose(channel.likelihood(given_labels), wanted)


def test_scores_are_log_probabilities_at_one_and_at_all_temperatures():
    logits, likelihood = np.log([[0.9, 0.1]]), np.array([[0.7, 0.2]])
    assert log_scores(logits, 1.0, likelihood)[0] == pytest.approx(np.log(0.999 * 0.65 + 0.001 / 2))
    rng = np.random.default_rng(0)
    logits, likelihood = 40 * rng.normal(size=(50, 4)), rng.random((50, 4))
    several = [likelihood, rng.random((50, 4))]
    for units, rtol in ((rng.integers(1, 4, 50).astype(float), 1e-12), (np.ones(50), 1e-5)):
        each = [[log_scores(logits, t, one, units).mean() for t in TEMPERATURES] for one in several]
        np.testing.assert_allclose(mean_scores(logits, several, units), each, rtol=rtol)
    votes = np.full((1, 4), 1e-60)  # of many labels: less than single precision holds
    scores = mean_scores(logits[:1], [votes], np.array([120.0]))
    np.testing.assert_allclose(scores, np.log(0.999 * 1e-60 + 0.001 * 4.0**-120), rtol=1e-9)


@pytest.mark.parametrize(("noise", "least"), [("pair:0.4", 0.9), ("symmetric:0.4", 0.9), ("none", 0.99)])
def test_classes_and_matrix_behind_noise_are_estimated(noise, least):
    x, y = blobs(900, 3, spread=0.25)
    matrix = NoiseMatrix.identity(3) if noise == "none" else NoiseMatrix.parse(noise, 3)
    noisy = matrix.corrupt(y, seed=0)
    found = robust_head(x, Observed.of(noisy, 3), candidates=FAST_CANDIDATES, held_out=2)
    assert (found.truth.posterior.argmax(axis=1) == y).mean() > least
    assert (found.linear.logits(x).argmax(axis=1) == y).mean() > 0.97
    assert np.abs(found.truth.channel.matrix - matrix.array).max() < 0.08
    assert noise != "pair:0.4" or found.choice.candidate.shape == "full"


@pytest.mark.parametrize(
    ("ahead", "rate", "shape"), [(0.0, 0.4, "symmetric"), (0.0, 0.0, "none"), (0.1, 0.4, "none")]
)
def test_the_estimated_rate_decides_if_likelihood_does_not(monkeypatch, ahead, rate, shape):
    """Two candidates predict alike, or the plain one better; a plain probe estimates noise, or none."""
    draws = np.random.default_rng(0).normal(size=(2, 600))
    draws -= draws.mean(axis=1, keepdims=True)

    def scores(x, labels, rows, one, seed):
        own = draws[0, rows] + ahead if one.shape == "none" else draws[0, rows] + 0.01 * draws[1, rows]
        logs = np.full((len(rows), 3), -np.log(3))
        likelihood = np.exp(own)[:, None] * np.ones(3)
        return HeldOut(dict.fromkeys(PRIOR_SHARES, logs), likelihood, np.ones(len(rows)))

    monkeypatch.setattr("hesstune.noise.latent.head._held_out", scores)
    x, y = blobs(600, 3, spread=0.3)
    noisy = NoiseMatrix.symmetric(3, rate).corrupt(y, seed=1)
    tried = (Candidate("none", 0.1), Candidate("symmetric", 0.1))
    choice = choose(reduced(x), Observed.of(noisy, 3), candidates=tried, held_out=5)
    assert choice.candidate.shape == shape
    assert choice.details().get("plain_noise_rate", 0.0) == pytest.approx(
        rate if shape == "symmetric" else 0.0, abs=0.1
    )


def test_candidates_that_fall_behind_are_dropped_and_the_choice_stays(monkeypatch):
    rng = np.random.default_rng(0)
    y = np.arange(400) % 3
    x = np.concatenate([4 * np.eye(3)[y], np.zeros((400, 57))], axis=1) + rng.normal(size=(400, 60))
    x, noisy = reduced(x), NoiseMatrix.symmetric(3, 0.3).corrupt(y, seed=1)
    short = choose(x, Observed.of(noisy, 3), held_out=2)
    assert short.scores.keys() | short.dropped.keys() == {one.name for one in CANDIDATES}
    assert short.tried == len(CANDIDATES)
    assert short.dropped
    assert max(short.dropped.values()) < 0
    assert short.plain.name in short.scores
    assert not choose(x[:100], Observed.of(noisy[:100], 3), held_out=1).dropped  # too few
    monkeypatch.setattr("hesstune.noise.latent.head.PRUNE_AFTER_STDERRS", np.inf)
    whole = choose(x, Observed.of(noisy, 3), held_out=2)
    assert not whole.dropped
    assert whole.candidate == short.candidate
    assert {name: whole.scores[name] for name in short.scores} == short.scores


def test_a_posterior_does_not_know_its_own_label():
    """Labels at random: a probe that was fitted to them would confirm them."""
    rng = np.random.default_rng(0)
    x, noisy = rng.normal(size=(300, 20)).astype(np.float32), rng.integers(0, 2, 300)
    found = latent_truth(x, Observed.of(noisy, 2), strength=1.0, shape="none")
    agreement = (found.probabilities.argmax(axis=1) == noisy).mean()
    assert 0.4 < agreement < 0.6


def test_checked_labels_are_one_hot_and_a_given_matrix_stays():
    x, y = blobs(300, 3, spread=0.3)
    matrix = NoiseMatrix.symmetric(3, 0.4)
    rows = np.arange(60)
    observed = Observed.of(matrix.corrupt(y, seed=0), 3, matrix.array, (rows, y[rows]))
    for shape in ("none", "given", "full"):
        found = latent_truth(reduced(x), observed, strength=0.1, shape=shape)
        assert (found.posterior[rows].argmax(axis=1) == y[rows]).all()
        assert np.allclose(found.targets[rows], np.eye(3)[y[rows]])
        assert shape != "given" or np.array_equal(found.channel.matrix, matrix.array)
    assert choose(reduced(x), observed, candidates=GIVEN_MATRIX, held_out=1).candidate in GIVEN_MATRIX


def test_few_examples_take_the_first_candidate_and_results_repeat():
    x, y = blobs(20, 2)
    found = robust_head(x, Observed.of(y, 2))
    assert found.choice.candidate == CANDIDATES[0]
    assert not found.choice.scores
    x, y = blobs(120, 2)
    one, two = (robust_head(x, Observed.of(y, 2), candidates=FAST_CANDIDATES, seed=3) for _ in range(2))
    assert np.array_equal(one.linear.weight, two.linear.weight)
    x, y = blobs(200, 3, spread=0.2)  # a class without an example is never predicted
    x, y = x[y < 2], y[y < 2]
    found = robust_head(x, Observed.of(y, 3), candidates=(Candidate("full", 0.1),))
    assert (found.linear.logits(x).argmax(axis=1) == y).mean() > 0.97


@pytest.mark.parametrize(
    ("k", "gain", "rate", "shape"),
    [
        (3, -0.01, 0.07, "full"),
        (3, -0.02, 0.07, "full"),
        (3, -0.02, 0.0, "none"),
        (2, -0.01, 0.07, "full"),
        (2, -0.02, 0.07, "none"),
        (2, -0.02, 0.3, "full"),
    ],
)
def test_labels_are_assumed_correct_without_noise_or_if_two_classes_fit_better(k, gain, rate, shape):
    x, y = blobs(300, k, spread=0.3)
    noisy = NoiseMatrix.symmetric(k, rate).corrupt(y, seed=0)
    plain = Candidate("none", 0.1)
    choice = Choice(plain, plain, noisy_rival=(Candidate("full", 0.1), gain, 0.01))
    assert _for_label_errors(reduced(x), Observed.of(noisy, k), choice, 0).candidate.shape == shape


def test_pairs_are_the_most_probable_and_none_without_noise_in_pairs():
    rng = np.random.default_rng(3)
    for _ in range(8):
        k = int(rng.integers(3, 6))
        others = [p for p in permutations(range(k)) if all(at != to for at, to in enumerate(p))]
        truth = others[rng.integers(len(others))]
        matrix = 0.6 * np.eye(k) + 0.02 * rng.random((k, k))
        matrix[np.arange(k), truth] += 0.2 + 0.2 * rng.random(k)
        matrix /= matrix.sum(axis=1, keepdims=True)
        best = max(others, key=lambda p: sum(np.log(matrix[at, to]) for at, to in enumerate(p)))
        channel = LabelChannel(matrix, "full")
        assert channel.in_pairs
        found = channel.paired().matrix
        np.testing.assert_allclose(found.sum(axis=1), 1)
        assert (found - np.eye(k)).argmax(axis=1).tolist() == list(best)
    for k, rate in ((2, 0.3), (3, 0.3), (5, 0.3), (5, 0.0)):
        assert not LabelChannel.symmetric(k, rate, "full").in_pairs


def test_a_start_from_pairs_separates_classes_confused_in_pairs():
    rng = np.random.default_rng(1)
    k, n = 6, 600
    y = np.arange(n) % k
    x = (np.eye(k)[y] + 0.55 * rng.normal(size=(n, k))).astype(np.float32) * 4
    given = NoiseMatrix.pair(k, 0.42).corrupt(y, seed=1)
    observed = Observed.of(given, k)
    probes = SoftProbes(x, 0.1, None, fold_rows(n, 5, 0))
    found = [
        _fit_em(probes, observed, LabelChannel.start(k, "full"), 30),
        latent_truth(x, observed, strength=0.1),
        fit_from_several_starts(x, observed, strength=0.1),
    ]
    one, usual, patient = ((each.posterior.argmax(axis=1) == y).mean() for each in found)
    assert one < 0.8 < usual <= patient + 0.01
    scores = [
        np.log((each.probabilities * each.channel.likelihood(observed.given)).sum(axis=1)).mean()
        for each in found
    ]
    assert scores[0] < scores[1] <= scores[2]


@pytest.mark.parametrize("seed", [0, 3, 4])
def test_pairs_are_found_where_chance_makes_them_hard_to_see(seed):
    """By chance a class has half of its labels wrong, and EM from a symmetric start ends with wrong pairs."""
    rng = np.random.default_rng([seed, 7])
    k, n, d = 10, 1000, 128
    y = rng.integers(0, k, n)
    means = rng.normal(size=(k, d)) / np.sqrt(d)
    x = reduced(means[y] + 1.3 * rng.normal(size=(n, d)) * np.exp(-np.arange(d) / 40))
    given = NoiseMatrix.pair(k, 0.45).corrupt(y, seed=seed)
    found = latent_truth(x, Observed.of(given, k), strength=0.1, seed=seed)
    assert (found.posterior.argmax(axis=1) == y).mean() > 0.95


def test_classes_are_in_order_unless_a_permutation_makes_more_labels_right():
    shifted = np.roll(np.eye(4), 1, axis=1)
    few_right = 0.6 * np.eye(4) + 0.4 * shifted
    few_right[0, :2] = 0.35, 0.65
    assert LabelChannel(few_right, "full").in_order
    assert not LabelChannel(0.4 * np.eye(4) + 0.6 * shifted, "full").in_order
    assert not LabelChannel(few_right[[1, 0, 2, 3]], "full").in_order


MATRIX = np.array([[0.8, 0.15, 0.05], [0.1, 0.7, 0.2], [0.25, 0.05, 0.7]])


def drawn(seed, n=600, spread=0.45):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    x = np.eye(3)[y] + spread * rng.normal(size=(n, 3))
    x = np.concatenate([x, 0.3 * rng.normal(size=(n, 3))], axis=1)
    return x, y, rng


def by_class(seed):
    x, y, rng = drawn(seed)
    return x, (MATRIX[y].cumsum(axis=1) < rng.random((len(y), 1))).sum(axis=1)


def by_place(seed):
    """Half of the labels on one side are wrong, none on the other; side and class have nothing in common."""
    x, y, rng = drawn(seed)
    wrong = (x[:, 3] > 0) & (rng.random(len(y)) < 0.6)
    return x, np.where(wrong, (y + 1 + (x[:, 4] > 0)) % 3, y)


@pytest.mark.slow
def test_errors_are_those_that_fresh_data_show():
    matrices = np.stack([estimate_by_em(*by_class(seed), 3, errors=False).matrix.array for seed in range(5)])
    found = estimate_by_em(*by_class(0), 3)
    assert found.matrix.array == pytest.approx(matrices[0])
    spread = matrices.std(axis=0, ddof=1).mean()
    assert spread / 2 < found.stderr.mean() < 2 * spread
    assert found.details["bootstrap"]["row_tv"]["median"] < 0.15


def test_noise_by_place_is_rejected_and_noise_by_class_is_not():
    x, labels = by_class(1)
    g = np.full((len(labels), 3), 0.1) + 0.7 * np.eye(3)[labels]
    record = estimate_noise(g, labels, "em", features=x).to_dict()
    assert set(record["details"]) >= {"bootstrap", "by_class_alone", "chosen"}
    assert np.isfinite(record["stderr"]).all()
    assert record["details"]["by_class_alone"]["p_value"] > 0.001
    found = estimate_by_em(*by_place(1), 3)
    assert found.details["by_class_alone"]["p_value"] < 0.001
    assert any("not depend on the class alone" in note for note in found.notes)


def test_rows_that_differ_are_shrunk_less():
    alike = 30 * NoiseMatrix.symmetric(4, 0.3).array
    paired = 30 * (0.6 * np.eye(4) + 0.4 * np.roll(np.eye(4), 1, axis=1))
    assert np.abs(shrink_to_symmetric(alike) - alike / 30).max() < 0.02
    assert np.abs(shrink_to_symmetric(paired) - paired / 30).max() < 0.05


def test_rows_are_taken_with_what_is_known_of_them():
    observed = Observed.of([0, 1, 1, 0], 2, None, (np.array([1, 3]), np.array([0, 0])), np.arange(4.0))
    some = observed.take(np.array([0, 3]))
    assert some.given.tolist() == [[1, 0], [1, 0]]
    assert some.checked[0].tolist() == [1]
    assert some.weight.tolist() == [0, 3]
    assert observed.known(observed.given)[1].tolist() == [1, 0]
    assert observed.given[1].tolist() == [0, 1]


def test_em_estimates_pair_noise_better_than_confident_learning():
    x, y = blobs(900, 4, spread=0.3)
    matrix = NoiseMatrix.pair(4, 0.3)
    noisy = matrix.corrupt(y, seed=0)
    probs = cross_fit(x, noisy, 4)
    how = {"features": x, "errors": False}
    found = [estimate_noise(probs, noisy, name, **how).matrix.array for name in ("em", "confident")]
    em, confident = (np.abs(one - matrix.array).sum(1).mean() for one in found)
    assert em < min(0.12, confident + 0.02)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_no_start_permutes_the_classes(k):
    """A matrix and its classes in another order predict given labels equally well."""
    for seed in range(2):
        rng = np.random.default_rng(seed)
        y = np.arange(240) % k
        x = (np.eye(k)[y] + 0.15 * rng.normal(size=(240, k))).astype(np.float32) * 4
        given = NoiseMatrix.symmetric(k, 0.1).corrupt(y, seed=seed)
        found = fit_from_several_starts(x, Observed.of(given, k), strength=0.1)
        assert (found.posterior.argmax(axis=1) == y).mean() > 0.95
