"""Estimators of the noise matrix against closed forms, other libraries and simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hesstune import NoiseMatrix
from hesstune.errors import ConfigError, DataError, NoiseMatrixError
from hesstune.noise.estimate import (
    anchor,
    confidence_set,
    confident,
    dual_t,
    estimate_noise,
    from_posterior,
    holdout,
    volmin,
    well_conditioned,
)
from hesstune.noise.estimate.fit import RIDGES, calibrate, log_likelihoods, simplex_projection
from hesstune.noise.estimate.holdout import pair_counts
from hesstune.noise.rates import rate_matrix

K = 4


def random_noise(k, seed, clean=0.6):
    rng = np.random.default_rng(seed)
    return NoiseMatrix(clean * np.eye(k) + (1 - clean) * rng.dirichlet(np.ones(k), size=k))


def calibrated(noise, n, seed=0, prior=None):
    """Clean labels that the input determines, exact noisy posteriors, and noisy labels."""
    rng = np.random.default_rng(seed)
    y = rng.choice(noise.k, size=n, p=prior)
    return y, noise.array[y], noise.corrupt(y, seed=seed + 1)


@given(st.integers(2, 8), st.integers(0, 10**6))
def test_anchor_is_exact_where_every_class_has_an_anchor_point(k, seed):
    F = random_noise(k, seed)
    rng = np.random.default_rng(seed)
    posteriors = np.concatenate([np.eye(k), rng.dirichlet(np.ones(k), size=30)])
    g = posteriors @ F.array
    rng.shuffle(g)
    np.testing.assert_allclose(anchor(g).array, F.array)


def test_the_matrix_class_gives_the_one_estimate_there_is():
    F = random_noise(K, 3, 0.7)
    _, g, noisy = calibrated(F, 2_000)
    for method in ("anchor", "dual_t"):
        found = NoiseMatrix.estimate(g, noisy, method).array
        np.testing.assert_array_equal(found, estimate_noise(g, noisy, method).matrix.array)


def test_anchor_percentile_ignores_an_outlier():
    F = NoiseMatrix.symmetric(3, 0.3)
    g = np.concatenate([np.repeat(F.array, 50, axis=0), [[0.98, 0.01, 0.01]]])
    assert anchor(g).array[0, 0] == pytest.approx(0.98)
    np.testing.assert_allclose(anchor(g, percentile=0.9).array, F.array)


def test_dual_t_composes_f_with_itself_on_calibrated_posteriors_and_tempering_undoes_it():
    F = random_noise(K, 3, 0.7)
    _, g, noisy = calibrated(F, 40_000)
    before = g.copy()
    squared = F.array @ F.array
    np.testing.assert_allclose(dual_t(g, noisy).array, squared, atol=0.03)
    assert np.abs(squared - F.array).max() > 0.1
    found = estimate_noise(g, noisy, "dual_t")
    np.testing.assert_allclose(found.matrix.array, F.array, atol=0.05)
    assert found.details["weight"] < 1
    assert NoiseMatrix.estimate(g, noisy, "dual_t") == found.matrix  # one estimate, by either name
    np.testing.assert_array_equal(g, before)  # the posteriors are read, not changed


def test_dual_t_is_right_where_the_network_is_overconfident():
    F = random_noise(K, 5, 0.7)
    y, _, noisy = calibrated(F, 40_000)
    sure = 0.999 * np.eye(K)[y] + 0.001 / K
    np.testing.assert_allclose(dual_t(sure, noisy).array, F.array, atol=0.03)
    assert anchor(sure).rate < 0.01  # which is why dual_t exists


def test_confident_is_cleanlabs_transposed():
    count = pytest.importorskip("cleanlab.count")
    F = random_noise(K, 1, 0.7)
    _, g, noisy = calibrated(F, 3000, prior=[0.4, 0.3, 0.2, 0.1])
    rng = np.random.default_rng(0)
    g = 0.8 * g + 0.2 * rng.dirichlet(np.ones(K), size=len(g))
    found = confident(g, noisy).array
    _, columns, _ = count.estimate_latent(count.compute_confident_joint(noisy, g), noisy)
    np.testing.assert_allclose(found, columns.T, atol=1e-9)
    with pytest.raises(NoiseMatrixError, match="no example is labelled 3"):
        confident(g, np.minimum(noisy, 2))


@given(st.integers(2, 6), st.integers(0, 10**6))
def test_labelmodel_is_the_joint_of_posterior_and_label(k, seed):
    rng = np.random.default_rng(seed)
    q = rng.dirichlet(np.ones(k), size=50)
    labels = rng.integers(0, k, 50)
    found = from_posterior(q, labels)
    for i in range(k):
        for j in range(k):
            want = sum(q[n, i] for n in range(50) if labels[n] == j) / q[:, i].sum()
            assert found.matrix.array[i, j] == pytest.approx(want)
    true = rng.integers(0, k, 50)
    counted = from_posterior(np.eye(k)[true], labels).matrix.array
    counts = pair_counts(true, labels, k)
    seen = counts.sum(axis=1) > 0
    np.testing.assert_allclose(counted[seen], counts[seen] / counts[seen].sum(axis=1, keepdims=True))


def test_holdout_set_covers_at_its_level_and_shrinks():
    F = random_noise(K, 7, 0.6)
    missed, widths = 0, []
    for seed in range(400):
        y, _, noisy = calibrated(F, 100, seed=10 * seed)
        box = confidence_set(pair_counts(y, noisy, K), 0.1)
        missed += not box.contains(F)
        widths.append((box.upper - box.lower).mean())
    # Binomial with mean at most 40: five standard deviations above it.
    assert missed <= 40 + 5 * 6
    # Each interval alone does miss: 16 times the level makes the box fail far more often.
    alone = sum(
        not confidence_set(pair_counts(y, noisy, K), 0.999).contains(F)
        for y, _, noisy in (calibrated(F, 100, seed=10 * s) for s in range(100))
    )
    assert alone > 10
    y, _, noisy = calibrated(F, 10_000)
    large = confidence_set(pair_counts(y, noisy, K), 0.1)
    assert (large.upper - large.lower).mean() < 0.25 * np.mean(widths)


def test_holdout_posterior_mean_and_a_prior_worth_its_evidence():
    counts = np.array([[8, 2], [1, 9]])
    true, noisy = np.repeat([0, 0, 1, 1], counts.ravel()), np.repeat([0, 1, 0, 1], counts.ravel())
    prior = NoiseMatrix([[0.7, 0.3], [0.3, 0.7]])
    found = holdout(true, noisy, 2, prior=prior, strength=10)
    np.testing.assert_allclose(found.matrix.array, (10 * prior.array + counts) / 20)
    np.testing.assert_allclose(found.stderr[0, 0], np.sqrt(0.75 * 0.25 / 21))
    F = random_noise(K, 2)
    y, _, noisy = calibrated(F, 300)
    right = holdout(y, noisy, K, prior=F)
    wrong = holdout(y, noisy, K, prior=NoiseMatrix(F.array[:, ::-1]))
    assert right.details["prior_strength"] > 10 * wrong.details["prior_strength"]
    some = holdout([0, 0, 1], [0, 1, 1], 3)
    assert any("no clean label of class 2" in note for note in some.notes)


def test_volmin_finds_the_noise_from_features():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 3000)
    x = 4 * np.eye(3)[y] + rng.normal(size=(3000, 3))
    F = NoiseMatrix([[0.7, 0.3, 0.0], [0.1, 0.8, 0.1], [0.0, 0.2, 0.8]])
    found = volmin(x, F.corrupt(y), 3)
    assert np.abs(found.array - F.array).max() < 0.06
    assert volmin(x, F.corrupt(y), 3) == found


@given(st.integers(2, 6), st.integers(0, 10**6))
def test_projection_is_the_nearest_point_of_the_simplex(k, seed):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(5, k))
    near = simplex_projection(points)
    np.testing.assert_allclose(near.sum(axis=1), 1, atol=1e-12)
    assert (near >= 0).all()
    others = rng.dirichlet(np.ones(k), size=200)
    for point, found in zip(points, near, strict=True):
        assert ((point - found) ** 2).sum() <= ((point - others) ** 2).sum(axis=1).min() + 1e-12
    np.testing.assert_allclose(simplex_projection(others), others, atol=1e-12)


def test_calibration_finds_the_temperature_of_the_noisy_labels():
    rng = np.random.default_rng(0)
    g = rng.dirichlet(0.5 * np.ones(3), size=20_000)
    labels = (rng.random(len(g))[:, None] > np.cumsum(g, axis=1)).sum(axis=1)
    _, temperature = calibrate(g, labels)
    assert temperature == pytest.approx(1, abs=0.05)
    sharp = g**3 / (g**3).sum(axis=1, keepdims=True)
    back, temperature = calibrate(sharp, labels)
    assert temperature == pytest.approx(3, abs=0.15)
    np.testing.assert_allclose(back, g, atol=0.02)


def test_likelihood_is_that_of_the_noisy_labels_and_punishes_too_much_noise():
    F = random_noise(K, 4, 0.7)
    rng = np.random.default_rng(1)
    posteriors = np.concatenate([np.repeat(np.eye(K), 2000, axis=0), rng.dirichlet(np.ones(K), size=2000)])
    g = posteriors @ F.array
    labels = (rng.random(len(g))[:, None] > np.cumsum(g, axis=1)).sum(axis=1)
    right = log_likelihoods(F, g, labels)
    np.testing.assert_allclose(right, np.log(0.999 * g[np.arange(len(g)), labels] + 0.001 / K))
    assert log_likelihoods(NoiseMatrix(F.array @ F.array), g, labels).mean() < right.mean() - 0.01
    assert log_likelihoods(NoiseMatrix.identity(K), g, labels).mean() == pytest.approx(right.mean())


def test_smoothing_is_the_least_that_the_likelihood_allows():
    F = random_noise(K, 4, 0.7)
    _, g, noisy = calibrated(F, 5000)
    assert well_conditioned(F, g, noisy) == (F, 0.0)
    singular = NoiseMatrix(rate_matrix("symmetric", K, (K - 1) / K))
    smooth, ridge = well_conditioned(singular, g, noisy)
    assert ridge in RIDGES
    assert ridge > 0
    assert smooth.condition <= 100
    assert well_conditioned(singular)[1] == 0.01
    found = estimate_noise(np.full((300, 3), 1 / 3), np.arange(300) % 3, "anchor")
    assert np.isfinite(found.condition)


def test_auto_takes_least_volume_among_the_likely_and_says_so():
    F = random_noise(K, 8, 0.7)
    y, g, noisy = calibrated(F, 8000)
    rng = np.random.default_rng(3)
    g = 0.9 * g + 0.1 * (rng.dirichlet(np.ones(K), size=len(g)) @ F.array)
    # An over-noisy candidate of still less volume is there to be refused by its likelihood.
    blurred = np.eye(K)[y] @ (0.3 * np.eye(K) + 0.7 / K)
    found = estimate_noise(g, noisy, "auto", posterior=blurred)
    assert found.method != "labelmodel"
    assert np.abs(found.matrix.array - F.array).max() < 0.12
    assert found.notes[0].startswith(f"auto: {found.method}, of least volume")
    record = found.to_dict()
    assert set(record["details"]["candidates"]) >= {"anchor", "dual_t", "labelmodel"}
    checked = estimate_noise(g, noisy, "auto", clean=(np.arange(200), y[:200]))
    assert checked.method == "holdout"


def test_auto_takes_em_by_features_and_votes_unless_they_have_collapsed():
    rng = np.random.default_rng(0)
    y = np.arange(600) % 2
    x = np.eye(2)[y] + 0.2 * rng.normal(size=(600, 2))
    F = np.array([[0.65, 0.35], [0.1, 0.9]])
    noisy = (rng.random(600) < F[y, 1]).astype(int)
    g = F[y]
    found = estimate_noise(g, noisy, "auto", features=x)
    assert (found.method, found.notes[0][:8]) == ("em", "auto: em")
    assert np.abs(found.matrix.array - F).max() < 0.08
    assert "bootstrap" in found.details
    assert "bootstrap" not in estimate_noise(g, noisy, "auto", features=x, errors=False).details
    votes = 0.9 * np.eye(2)[y] + 0.05
    assert estimate_noise(g, noisy, "auto", features=x, posterior=votes).method == "labelmodel"
    lost = np.full((600, 2), 0.5) + 0.01 * rng.normal(size=(600, 1)) * [1, -1]
    told = estimate_noise(g, noisy, "auto", features=x, posterior=lost)
    assert told.method == "em"
    assert "since votes say" in told.notes[0]
    sure = np.eye(2)[y] * 0.98 + 0.01
    assert estimate_noise(sure, y, "auto", features=x).matrix.rate < 0.01


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"method": "dual"}, ConfigError, "did you mean 'dual_t'"),
        ({"method": "volmin"}, ConfigError, "volmin needs features"),
        ({"method": "holdout"}, ConfigError, "holdout needs clean labels"),
        ({"method": "labelmodel"}, ConfigError, "labelmodel needs votes"),
        ({"probs": [[0.5, 0.6]] * 4}, DataError, "row 0 sums to 1.1"),
        ({"probs": [[0.5, 0.5]] * 3}, DataError, "3 rows of probabilities do not match 4 labels"),
        ({"probs": [[np.nan, 1]] * 4}, DataError, "finite"),
        ({"labels": [0, 1, 2, 0]}, DataError, r"\[0, 2\); got 2 at index 2"),
        ({"method": "dual_t"}, NoiseMatrixError, "most probable class is 1"),
    ],
)
def test_wrong_input_is_told(change, error, message):
    arguments = {"probs": [[0.7, 0.3]] * 4, "labels": [0, 1, 0, 1], "method": "anchor"} | change
    with pytest.raises(error, match=message):
        estimate_noise(**arguments)


def test_dual_t_raises_where_a_class_is_never_seen_and_never_returns_a_singular_matrix():
    rng = np.random.default_rng(0)
    g, noisy = rng.dirichlet(np.ones(3), 200), rng.integers(0, 3, 200)
    for absent in range(3):
        never = np.where(noisy == absent, (absent + 1) % 3, noisy)
        for estimate in (dual_t, lambda p, y: estimate_noise(p, y, "dual_t"), NoiseMatrix.estimate):
            with pytest.raises(
                NoiseMatrixError, match=f"no example is labelled {absent}; dual_t needs every"
            ):
                estimate(g, never)
        unpredicted = np.delete(g, absent, axis=1)
        unpredicted = np.insert(unpredicted / unpredicted.sum(axis=1, keepdims=True), absent, 0.0, axis=1)
        with pytest.raises(NoiseMatrixError, match=f"most probable class is {absent}"):
            dual_t(unpredicted, noisy)
    # Labels that tell nothing of the classes: of each predicted class the same share of each label.
    sure = np.repeat(np.eye(3), 3, axis=0)
    with pytest.raises(NoiseMatrixError, match="dual_t is singular"):
        dual_t(sure, np.tile([0, 1, 2], 3))
