"""The pool of heads, the discriminants among them, and fits to more examples than EM takes."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from hesstune.noise import probes
from hesstune.noise.latent import discriminant, head
from hesstune.noise.latent.channel import Observed
from hesstune.noise.latent.discriminant import SHRINKAGE, TEMPERATURES, fit_discriminant, fit_discriminants
from hesstune.noise.latent.em import FLOOR, fold_rows
from hesstune.noise.latent.head import (
    POOL_CANDIDATES,
    PRIOR_SHARES,
    Candidate,
    HeldOut,
    fit_truth,
    pooled,
    robust_head,
)
from hesstune.noise.latent.stacking import PRIOR_NATS, stacked_weights
from hesstune.noise.probes import Reduction, SoftProbes


def scene(n=300, k=3, rate=0.3, spread=0.5, seed=0, dims=None):
    """K clouds of noisy labels: features, true and given classes."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    x = np.eye(k)[y] + spread * rng.normal(size=(n, k))
    if dims is not None:
        x = np.concatenate([x, 0.3 * rng.normal(size=(n, dims - k))], axis=1)
    given = np.where(rng.random(n) < rate, (y + 1 + rng.integers(0, k - 1, n)) % k, y)
    return x, y, given


def score(logs, likelihood):
    p = softmax(logs, axis=1)
    return np.log((1 - FLOOR) * (p * likelihood).sum(axis=1) + FLOOR / logs.shape[1]).mean()


def tried_at_random(n, seed=0, informative=None):
    """Random predictions of four candidates; those of `informative` know the given class."""
    rng, k = np.random.default_rng(seed), 3
    given = rng.integers(0, k, n)
    candidates = [Candidate("none", c) for c in (0.01, 0.1)] + [
        Candidate(s, 0.1) for s in ("symmetric", "full")
    ]
    candidates.append(Candidate("full", 0.3))
    likelihood = (np.full((k, k), 0.1) + 0.7 * np.eye(k))[:, given].T
    tried = {
        one: HeldOut(
            {
                kind: log_softmax(
                    rng.normal(size=(n, k)) + 3.0 * ((one, kind) == informative) * np.eye(k)[given], axis=1
                )
                for kind in PRIOR_SHARES
            },
            likelihood,
            np.ones(n),
        )
        for one in candidates
    }
    return tried, likelihood


def test_stacked_weights_maximise_the_likelihood_less_the_divergence_from_the_prior():
    tried, likelihood = tried_at_random(80)
    logs = [own for one in list(tried.values())[:2] for own in one.logs.values()]
    prior = np.array([1, 1, 4, 1, 1, 4]) / 12

    def objective(weights):
        mean = np.tensordot(weights, np.stack(logs), 1)
        return 80 * score(mean, likelihood) - PRIOR_NATS * weights @ np.log(weights / prior)

    found = stacked_weights(logs, likelihood, np.ones(80), prior)
    best = minimize(lambda z: -objective(softmax(z)), np.zeros(6), tol=1e-10)
    assert found.sum() == pytest.approx(1)
    assert (found > 0).all()
    assert objective(found) == pytest.approx(-best.fun, abs=0.02)


def test_few_labels_leave_the_weights_near_the_prior_and_many_find_the_head_that_predicts():
    known = Candidate("symmetric", 0.1), "softmax"
    for n, low, high in ((4, 0.0, 0.4), (400, 0.8, 1.0)):
        found = pooled(tried_at_random(n, informative=known)[0])
        share = {(one.candidate, one.kind): one.share for one in found}
        assert sum(share.values()) == pytest.approx(1)
        assert len({one for one, _ in share}) == POOL_CANDIDATES
        assert low <= share[known] <= high


def test_the_head_is_the_mean_of_its_pool_and_posteriors_follow_out_of_sample():
    x, y, given = scene()
    labels = Observed.of(given, 3)
    found = robust_head(x, labels)
    assert sum(one.share for one in found.choice.pool) == pytest.approx(1)
    logits, logs, reduced = 0.0, 0.0, found.reduced
    for member in found.choice.pool:
        truth = fit_truth(reduced, labels, member.candidate)
        if member.kind == "softmax":
            probes = SoftProbes(reduced, member.candidate.strength)
            (fitted,) = probes.fit(truth.targets, start=truth.probe)
            own, out = truth.temperature * fitted.logits(reduced), np.log(truth.probabilities)
        else:
            (fitted,) = fit_discriminants(reduced, truth.posterior, (head.SHRINKAGES[member.kind],))
            fitted = fitted.scaled(labels, truth.channel.likelihood(labels.given))
            own, out = fitted.linear.logits(reduced), log_softmax(fitted.logits, axis=1)
        logits = logits + member.share * own
        logs = logs + member.share * out
    np.testing.assert_allclose(
        log_softmax(found.linear.logits(x), axis=1), log_softmax(logits, axis=1), atol=1e-3
    )
    np.testing.assert_allclose(found.truth.probabilities, softmax(logs, axis=1), atol=1e-5)
    joint = found.truth.probabilities * found.truth.channel.matrix[:, given].T
    np.testing.assert_allclose(found.truth.posterior, joint / joint.sum(axis=1, keepdims=True), atol=1e-9)
    assert (found.linear.logits(x).argmax(axis=1) == y).mean() > (given == y).mean()


def test_without_shrinkage_the_discriminant_is_scikit_learns(monkeypatch):
    monkeypatch.setattr(discriminant, "CHUNK", 70)
    x, y, _ = scene(dims=6)
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(x, y).decision_function(x)
    ours = fit_discriminants(x, np.eye(3)[y], (0.0,))[0].linear.logits(x)
    np.testing.assert_allclose(ours - ours[:, :1], theirs - theirs[:, :1], atol=1e-8)


def test_the_discriminant_is_weighted_cross_fitted_and_scaled():
    x, _, given = scene(n=120, k=2)
    rng = np.random.default_rng(1)
    weight, q = rng.integers(0, 3, 120).astype(float), rng.dirichlet(np.ones(2), 120)
    found = fit_discriminant(x, q, folds=4, weight=weight, seed=4)
    for part in fold_rows(len(x), 4, 4):
        others = np.setdiff1d(np.arange(len(x)), part)
        w = q[others] * weight[others][:, None]
        mass, total = w.sum(axis=0), w.sum()
        means = (w.T @ x[others]) / mass[:, None]
        scatter = sum(
            w[at, c] * np.outer(row - means[c], row - means[c])
            for at, row in enumerate(x[others])
            for c in (0, 1)
        )
        inverse = np.linalg.inv(
            (1 - SHRINKAGE) * scatter / total + SHRINKAGE * np.trace(scatter / total) / 2 * np.eye(2)
        )
        by_hand = [
            x[part] @ inverse @ m - m @ inverse @ m / 2 + np.log(mass[c] / total) for c, m in enumerate(means)
        ]
        np.testing.assert_allclose(found.logits[part], np.stack(by_hand, axis=1), atol=1e-8)
    likelihood = np.array([[0.8, 0.2], [0.3, 0.7]])[:, given].T
    best = max(TEMPERATURES, key=lambda t: score(t * found.logits, likelihood))
    scaled = found.scaled(Observed.of(given, 2), likelihood)
    np.testing.assert_allclose(scaled.logits, best * found.logits)
    np.testing.assert_allclose(scaled.linear.logits(x), best * found.linear.logits(x))


@pytest.mark.parametrize("shape", ["none", "symmetric", "full"])
def test_more_examples_than_em_takes_get_the_posteriors_of_its_probe(monkeypatch, shape):
    x, y, given = scene(n=900, spread=0.3)
    x = Reduction.of(x).apply(x)
    weight = np.random.default_rng(0).random(900)
    labels, one = Observed.of(given, 3, checked=(np.arange(9), y[:9]), weight=weight), Candidate(shape, 0.1)
    whole = fit_truth(x, labels, one)
    monkeypatch.setattr(head, "EM_EXAMPLES", 400)
    found = fit_truth(x, labels, one)
    assert np.abs(found.channel.matrix - whole.channel.matrix).max() < 0.1
    assert np.abs(found.probabilities - whole.probabilities).mean() < 0.05
    assert (found.posterior[:9].argmax(axis=1) == y[:9]).all()
    joint = found.probabilities * found.channel.matrix[:, given].T
    np.testing.assert_allclose(found.posterior[9:], (joint / joint.sum(axis=1, keepdims=True))[9:])
    expected = found.posterior if shape != "none" else labels.known(labels.given)
    np.testing.assert_array_equal(found.targets, expected)


@pytest.mark.parametrize("components", [4, 12])
def test_principal_axes_of_many_rows_are_those_of_few(monkeypatch, tmp_path, components):
    x, *_ = scene(dims=12)
    few = Reduction.of(x, components).apply(x)
    np.save(tmp_path / "x.npy", x)
    monkeypatch.setattr(probes, "MANY", 100)
    monkeypatch.setattr(probes, "CHUNK", 70)
    many = Reduction.of(np.load(tmp_path / "x.npy", mmap_mode="r"), components).apply(x)
    np.testing.assert_allclose(few @ few.T, many @ many.T, atol=0.02)
    assert (few**2).sum(axis=1).mean() == pytest.approx(128, rel=1e-3)
