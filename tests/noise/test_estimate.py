"""Estimators of the noise matrix against closed forms, other libraries and simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hesstune import NoiseMatrix
from hesstune.errors import ConfigError, DataError, NoiseMatrixError
from hesstune.noise.confidence import NoiseConfidenceSet
from hesstune.noise.estimate import (
    RIDGES,
    calibrate,
    confident,
    estimate_noise,
    from_posterior,
    holdout,
    log_likelihoods,
    pair_counts,
    simplex_projection,
    well_conditioned,
)
from hesstune.noise.matrix import draw_classes, rate_matrix

K = 4


def random_noise(k, seed, clean=0.6):
    rng = np.random.default_rng(seed)
    return NoiseMatrix(clean * np.eye(k) + (1 - clean) * rng.dirichlet(np.ones(k), size=k))


def calibrated(noise, n, seed=0, prior=None):
    """Clean labels that the input determines, exact noisy posteriors, and noisy labels."""
    rng = np.random.default_rng(seed)
    y = rng.choice(noise.k, size=n, p=prior)
    return y, noise.array[y], noise.corrupt(y, seed=seed + 1)


def test_the_matrix_class_gives_the_one_estimate_there_is():
    F = random_noise(K, 3, 0.7)
    _, g, noisy = calibrated(F, 2_000)
    found = estimate_noise(g, noisy, "confident")
    assert NoiseMatrix.estimate(g, noisy, "confident") == NoiseMatrix.estimate(g, noisy) == found.matrix
    assert estimate_noise(g, noisy).method == "confident"


def test_confident_is_cleanlabs_transposed():
    count = pytest.importorskip("cleanlab.count")
    F = random_noise(K, 1, 0.7)
    _, g, noisy = calibrated(F, 3000, prior=[0.4, 0.3, 0.2, 0.1])
    rng = np.random.default_rng(0)
    g = 0.8 * g + 0.2 * rng.dirichlet(np.ones(K), size=len(g))
    found = confident(g, noisy).array
    _, columns, _ = count.estimate_latent(count.compute_confident_joint(noisy, g), noisy)
    # cleanlab rounds its counts to whole numbers.
    np.testing.assert_allclose(found, columns.T, atol=2e-3)
    with pytest.raises(NoiseMatrixError, match="no example is labelled 3"):
        confident(g, np.minimum(noisy, 2))


def test_labelmodel_is_the_joint_of_posterior_and_label():
    rng = np.random.default_rng(0)
    q, labels = rng.dirichlet(np.ones(4), size=50), rng.integers(0, 4, 50)
    want = [[q[labels == j, i].sum() / q[:, i].sum() for j in range(4)] for i in range(4)]
    np.testing.assert_allclose(from_posterior(q, labels).matrix.array, want)
    np.testing.assert_allclose(from_posterior(q, np.eye(4)[labels]).matrix.array, want)  # soft labels
    true = np.minimum(rng.integers(0, 4, 50), 2)
    found, counts = from_posterior(np.eye(4)[true], labels), pair_counts(true, labels, 4)
    np.testing.assert_allclose(found.matrix.array[:3], counts[:3] / counts[:3].sum(axis=1, keepdims=True))
    assert found.matrix.array[3].tolist() == [0, 0, 0, 1]
    assert len(found.notes) == 1


def test_the_confidence_set_covers_at_its_level_and_shrinks():
    F = random_noise(K, 7, 0.6)

    def missed(noise):
        return not ((noise.lower <= F.array) & (F.array <= noise.upper)).all()

    tables = [pair_counts(y, n, K) for y, _, n in (calibrated(F, 100, seed=10 * s) for s in range(100))]
    sets = [NoiseConfidenceSet(table, 0.1) for table in tables]
    # Binomial with mean at most 10: five standard deviations above it.
    assert sum(map(missed, sets)) <= 10 + 5 * 3
    # Each interval alone does miss: ten times the level makes the set fail far more often.
    assert sum(missed(NoiseConfidenceSet(table, 0.999)) for table in tables) > 10
    y, _, noisy = calibrated(F, 10_000)
    large = NoiseConfidenceSet(pair_counts(y, noisy, K), 0.1)
    width = np.mean([(one.upper - one.lower).mean() for one in sets])
    assert (large.upper - large.lower).mean() < 0.25 * width


def test_holdout_posterior_mean_and_a_prior_worth_its_evidence():
    counts = np.array([[8, 2], [1, 9]])
    true, noisy = np.repeat([0, 0, 1, 1], counts.ravel()), np.repeat([0, 1, 0, 1], counts.ravel())
    prior = NoiseMatrix([[0.7, 0.3], [0.3, 0.7]])
    found = holdout(true, noisy, 2, prior=prior)
    s = found.details["prior_strength"]
    mean = (s * prior.array + counts) / (s + 10)
    np.testing.assert_allclose(found.matrix.array, mean)
    np.testing.assert_allclose(found.stderr, np.sqrt(mean * (1 - mean) / (s + 11)))
    F = random_noise(K, 2)
    y, _, noisy = calibrated(F, 300)
    right = holdout(y, noisy, K, prior=F)
    wrong = holdout(y, noisy, K, prior=NoiseMatrix(F.array[:, ::-1]))
    assert right.details["prior_strength"] > 10 * wrong.details["prior_strength"]
    some = holdout([0, 0, 1], [0, 1, 1], 3)
    assert any("no clean label of class 2" in note for note in some.notes)


@given(st.integers(2, 6), st.integers(0, 10**6))
def test_projection_is_the_nearest_point_of_the_simplex(k, seed):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(5, k))
    near = simplex_projection(points)
    np.testing.assert_allclose(near.sum(axis=1), 1, atol=1e-12)
    assert (near >= 0).all()
    others = rng.dirichlet(np.ones(k), size=50)
    for point, found in zip(points, near, strict=True):
        assert ((point - found) ** 2).sum() <= ((point - others) ** 2).sum(axis=1).min() + 1e-12
    np.testing.assert_allclose(simplex_projection(others), others, atol=1e-12)


def test_calibration_finds_the_temperature_of_the_noisy_labels():
    rng = np.random.default_rng(0)
    g = rng.dirichlet(0.5 * np.ones(3), size=20_000)
    labels = draw_classes(g, rng)
    _, temperature = calibrate(g, labels)
    assert temperature == pytest.approx(1, abs=0.05)
    sharp = g**3 / (g**3).sum(axis=1, keepdims=True)
    back, temperature = calibrate(sharp, labels)
    assert temperature == pytest.approx(3, abs=0.15)
    np.testing.assert_allclose(back, g, atol=0.02)


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
    found = estimate_noise(np.full((300, 3), 1 / 3), np.arange(300) % 3, "confident")
    assert np.isfinite(found.condition)


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
    assert estimate_noise(g, noisy, "auto", features=x, posterior=lost, errors=False).method == "em"
    sure = np.eye(2)[y] * 0.98 + 0.01
    assert estimate_noise(sure, y, "auto", features=x, errors=False).matrix.rate < 0.01


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"method": "confidant"}, ConfigError, "did you mean 'confident'"),
        ({"method": "em"}, ConfigError, "em needs features"),
        ({"method": "holdout"}, ConfigError, "holdout needs human-checked labels"),
        ({"method": "labelmodel"}, ConfigError, "labelmodel needs votes"),
        ({"probs": [[0.5, 0.6]] * 4}, DataError, "row 0 sums to 1.1"),
        ({"probs": [[0.5, 0.5]] * 3}, DataError, "3 rows of probabilities do not match 4 labels"),
        ({"probs": [[np.nan, 1]] * 4}, DataError, "finite"),
        ({"labels": [0, 1, 2, 0]}, DataError, r"\[0, 2\); got 2 at index 2"),
        ({"labels": [0, 0, 0, 0]}, NoiseMatrixError, "labelled 1"),
    ],
)
def test_wrong_input_is_refused(change, error, message):
    arguments = {"probs": [[0.7, 0.3]] * 4, "labels": [0, 1, 0, 1], "method": "confident"} | change
    with pytest.raises(error, match=message):
        estimate_noise(**arguments)


def test_likelihood_of_noisy_labels_is_lower_with_too_much_noise():
    F = random_noise(K, 4, 0.7)
    rng = np.random.default_rng(1)
    g = np.concatenate([np.repeat(np.eye(K), 2000, axis=0), rng.dirichlet(np.ones(K), size=2000)]) @ F.array
    labels = draw_classes(g, rng)
    right = log_likelihoods(F, g, labels)
    np.testing.assert_allclose(right, np.log(0.999 * g[np.arange(len(g)), labels] + 0.001 / K))
    assert log_likelihoods(NoiseMatrix(F.array @ F.array), g, labels).mean() < right.mean() - 0.01
    assert log_likelihoods(NoiseMatrix.identity(K), g, labels).mean() == pytest.approx(right.mean())
