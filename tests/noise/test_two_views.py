"""The mean of two classifiers' posteriors, and the interval of the share of wrong labels."""

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import beta, pearsonr

from hesstune.labeling.clean import clean
from hesstune.noise.latent.channel import Observed
from hesstune.noise.latent.discriminant import TEMPERATURES, fit_discriminant
from hesstune.noise.latent.em import latent_truth
from hesstune.noise.latent.head import FAST_CANDIDATES, robust_head
from hesstune.noise.latent.two_views import (
    AMBIGUITY,
    looks_alike,
    mean_posterior,
    rate_interval,
)


def scene(n=120, k=3, rate=0.1, spread=0.4, seed=0):
    """Return features, true and given labels."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    x = np.eye(k)[y] + spread * rng.normal(size=(n, k))
    given = np.where(rng.random(n) < rate, (y + 1 + rng.integers(0, k - 1, n)) % k, y)
    return x, y, given


def test_the_posterior_is_the_shifted_mean_of_both_views_and_checked_labels_are_exact():
    x, y, _ = scene(spread=0.6)
    x = (8 * x).astype(np.float32)
    # Class 0 is given as 1 only: the noise has a structure, and the shift depends on the example.
    given = np.where((y == 0) & (np.arange(120) % 3 == 0), 1, y)
    rows = np.arange(0, 120, 7)
    given[rows] = y[rows]
    labels = Observed.of(given, 3, checked=(rows, y[rows]))
    truth = latent_truth(x, labels, strength=0.1, seed=2)
    found = mean_posterior(x, labels, truth, seed=2)
    likelihood = truth.channel.matrix[:, given].T
    logits = fit_discriminant(x, truth.posterior, seed=2).logits
    seconds = []
    for temperature in TEMPERATURES:
        p = softmax(temperature * logits, axis=1)
        score = np.log(0.999 * (p * likelihood).sum(axis=1) + 0.001 / 3).mean()
        seconds.append((score, p))
    both = (truth.probabilities, max(seconds, key=lambda one: one[0])[1])
    views = []
    for p in both:
        joint = p * likelihood
        views.append(joint / joint.sum(axis=1, keepdims=True))
    mean = np.mean(views, axis=0)
    certain = np.mean(both, axis=0).max(axis=1)
    rank = np.array(
        [((certain > own).sum() + 0.5 * ((certain == own).sum() - 1) + 0.5) / 120 for own in certain]
    )
    structure = looks_alike(truth.channel.matrix, np.mean(both, axis=0))
    assert structure > 0.1
    at = np.arange(120)
    odds = (1 - mean[at, given]) / mean[at, given] * np.exp(AMBIGUITY * structure * rank)
    wrong = odds / (1 + odds)
    mean[at, given] = 0
    by_hand = mean / mean.sum(axis=1, keepdims=True) * wrong[:, None]
    by_hand[at, given] = 1 - wrong
    by_hand[rows] = np.eye(3)[y[rows]]
    np.testing.assert_allclose(found, by_hand, atol=1e-7)


def test_similarity_and_noise_are_correlated_over_pairs_of_classes():
    rng = np.random.default_rng(0)
    classes = rng.dirichlet([2, 1, 0.5, 0.2], size=300)
    looks = classes.T @ classes / classes.sum(axis=0)[:, None]
    off = ~np.eye(4, dtype=bool)
    assert looks_alike(np.full((4, 4), 0.1) + 0.6 * np.eye(4), classes) == 0  # symmetric
    assert looks_alike(np.eye(4), classes) == 0
    assert looks_alike(np.array([[0.9, 0.1], [0.3, 0.7]]), rng.dirichlet([1, 1], 50)) == 0
    noise = looks * rng.uniform(0.8, 1.2, (4, 4))
    expected = pearsonr(noise[off], looks[off])[0] * min(noise[off].std() / noise[off].mean(), 1)
    assert looks_alike(noise, classes) == pytest.approx(expected)
    assert looks_alike(1 - noise, classes) == 0  # of classes that look unlike


def test_the_interval_is_a_beta_quantile_around_both_ends():
    low, high = rate_interval(0.2, 0.3, 400)  # as much as 400 / 8 + 20 = 70 checked labels
    least = 0.15 - 0.8 * 20 / 70 * 0.2
    assert low == pytest.approx(beta.ppf(0.05, 70 * least, 70 * (1 - least)))
    assert high == pytest.approx(beta.ppf(0.95, 70 * 0.25 + 0.5, 70 * 0.75))
    assert rate_interval(0.2, 0.1, 400) == pytest.approx((low, high))
    assert rate_interval(0.0, 0.0, 50)[0] == 0
    assert rate_interval(0.0, 0.0, 50)[1] > 0.01
    assert rate_interval(1.0, 1.0, 50)[1] == 1


def test_the_interval_covers_the_share_of_wrong_labels(monkeypatch):
    def quick(*arguments, **options):
        options |= {"patient": False, "candidates": FAST_CANDIDATES, "held_out": 1}
        return robust_head(*arguments, **options)

    monkeypatch.setattr("hesstune.labeling.clean.robust_head", quick)
    inside = 0
    for seed in range(20):
        x, y, given = scene(n=80, k=2 + seed % 3, rate=(0.0, 0.06, 0.11, 0.2)[seed % 4], seed=seed)
        found = clean(features=x, labels=given, seed=seed)
        low, high = found.rate_interval
        assert 0 <= low <= high <= 1
        assert high > found.rate > 0
        assert found.suspected.sum() < 40
        inside += low <= (given != y).mean() <= high
    assert inside >= 17


@pytest.mark.parametrize(("n", "d", "k"), [(6, 3, 2), (60, 80, 10), (200, 5, 100)])
def test_few_examples_many_features_and_many_classes(n, d, k):
    rng = np.random.default_rng(0)
    found = clean(features=rng.normal(size=(n, d)), labels=np.arange(n) % k)
    assert np.isfinite(found.posterior).all()
    np.testing.assert_allclose(found.posterior.sum(axis=1), 1)
    assert 0 <= found.rate_interval[0] <= found.rate_interval[1] <= 1


def test_labels_without_noise_have_an_interval_from_zero_and_a_ranking():
    x, _, given = scene(rate=0.0, spread=0.3)
    found = clean(features=x, labels=given)
    n = len(x)  # as much as n / 8 checked labels, beside 20 of which 2 are wrong
    assert found.rate == pytest.approx((n / 8 * 0.5 / (n + 1) + 2) / (n / 8 + 20), abs=0.003)
    low, high = found.wrong_labels[1:]
    assert low == 0
    assert high >= 1
    assert len(np.unique(found.p_wrong)) > 100
    again = clean(features=x, labels=given)
    np.testing.assert_array_equal(again.posterior, found.posterior)
    assert again.to_dict()["rate_interval"] == list(found.rate_interval)
