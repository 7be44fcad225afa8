"""A stated noise matrix that the counts all but exclude is refused, and a true one is not."""

import numpy as np
import pytest
import torch
from scipy import stats

from hesstune.bounds.certificate import certify
from hesstune.bounds.conditions import TEST_SHARE, check_floor, check_noisy_risk, noise_floors
from hesstune.bounds.networks import certify_compression, certify_holdout
from hesstune.bounds.noisy import NoiseConfidenceSet
from hesstune.bounds.record import Certificate
from hesstune.bounds.sample import SampleOptions
from hesstune.errors import NoiseMatrixError, RefutedNoiseError
from hesstune.noise.matrix import NoiseMatrix
from hesstune.reference import Reference

SYMMETRIC = [[0.8, 0.2], [0.2, 0.8]]
MARKED = SampleOptions(diagnostic=True)


def rule():
    """A linear network that says 1 where the inputs' sum is positive."""
    model = torch.nn.Linear(5, 2)
    with torch.no_grad():
        model.weight.copy_(torch.stack([-torch.ones(5), torch.ones(5)]))
        model.bias.zero_()
    return model


def agreeing(n, errors):
    """Examples of which the rule contradicts so many labels."""
    x = torch.randn(n, 5, generator=torch.Generator().manual_seed(0))
    y = (x.sum(dim=1) > 0).long()
    y[:errors] = 1 - y[:errors]
    return torch.utils.data.TensorDataset(x, y)


def test_the_floor_is_the_least_error_of_any_classifier_under_any_class_frequencies():
    rng = np.random.default_rng(0)
    for k in (2, 3, 5):
        matrix = rng.dirichlet(np.ones(k), k)
        floors = noise_floors(matrix)
        for _ in range(50):
            prior = rng.dirichlet(np.full(k, 0.1))
            assert np.all(1 - prior @ matrix >= floors - 1e-12)
        # Attained where every example is of the class that agrees most.
        assert np.allclose(floors, [1 - matrix[matrix[:, h].argmax(), h] for h in range(k)])
    counts = NoiseConfidenceSet([[80, 20], [20, 80]], 0.01)
    assert np.all(noise_floors(counts) <= noise_floors([[0.8, 0.2], [0.2, 0.8]]))


@pytest.mark.parametrize("matrix", [SYMMETRIC, NoiseMatrix.symmetric(4, 0.3).array, [[1.0, 0.0], [0.8, 0.2]]])
def test_a_true_matrix_is_refused_no_more_often_than_the_level(matrix):
    """The best classifier on its easiest distribution; a large delta, so that refusals occur."""
    matrix, delta, trials = np.asarray(matrix), 20.0, 500
    k, rng, n, refused = len(matrix), np.random.default_rng(1), 120, 0
    for _ in range(trials):
        true = rng.integers(0, k, n)
        noisy = (rng.random(n)[:, None] > np.cumsum(matrix, axis=1)[true]).sum(axis=1).clip(max=k - 1)
        confusion = np.zeros((k, k), int)
        np.add.at(confusion, (noisy, true), 1)
        try:
            check_floor(confusion, matrix, delta)
        except RefutedNoiseError:
            refused += 1
    level = TEST_SHARE * delta
    assert refused <= stats.binom.ppf(0.999, trials, level)


def test_too_few_errors_on_unseen_examples_refute_the_matrix():
    with pytest.raises(NoiseMatrixError) as refused:
        certify_holdout(rule(), agreeing(300, 9), noise_matrix=SYMMETRIC)
    told = str(refused.value)
    assert f"{stats.binom.cdf(9, 300, 0.2):.2g}" in told
    for part in ("9", "300", "0.2", "--checked-labels", "hesstune check"):
        assert part in told
    marked = certify_holdout(rule(), agreeing(300, 9), noise_matrix=SYMMETRIC, options=MARKED)
    assert marked.diagnostic
    assert marked.risk < 0
    assert not certify_holdout(rule(), agreeing(300, 60), noise_matrix=SYMMETRIC).diagnostic


def test_one_predicted_class_alone_refutes_the_matrix():
    """The floor over all classes is 0; a label 1 is right for one in five examples at most."""
    matrix = [[1.0, 0.0], [0.8, 0.2]]
    with pytest.raises(RefutedNoiseError, match="of class 1"):
        check_floor([[100, 60], [0, 40]], matrix, 0.05)
    check_floor([[100, 80], [0, 20]], matrix, 0.05)


def test_a_randomised_predictor_below_the_floor_refutes_the_matrix():
    data = agreeing(400, 0)
    model = rule()
    start = torch.nn.Linear(5, 2)
    for parameter in start.parameters():
        torch.nn.init.zeros_(parameter)
    ref = Reference.of(start)
    with torch.no_grad():
        model.weight.mul_(3)
    with pytest.raises(RefutedNoiseError):
        certify(model, ref, data, noise_matrix=SYMMETRIC, draws=4000)
    marked = certify(model, ref, data, noise_matrix=SYMMETRIC, draws=4000, diagnostic=True)
    assert len(marked.failures) == 2  # the error on noisy labels, and the bound below 0
    with pytest.raises(RefutedNoiseError):
        check_noisy_risk(0.19, SYMMETRIC, 0.01)
    check_noisy_risk(0.21, SYMMETRIC, 0.01)


def test_a_held_out_part_with_noisy_labels_refutes_the_matrix_too():
    model, ref = rule(), Reference.of(rule())
    x = torch.randn(200, 5, generator=torch.Generator().manual_seed(5))
    y = (x.sum(dim=1) > 0).long().numpy()
    noisy = torch.from_numpy(NoiseMatrix(SYMMETRIC).corrupt(y, seed=0))
    data = torch.utils.data.TensorDataset(x, noisy)
    for labels, fails in (("true", False), ("unknown", False), ("noisy", True)):
        how = {"held_out": agreeing(300, 5), "held_out_labels": labels}
        if fails:
            with pytest.raises(RefutedNoiseError):
                certify(model, ref, data, noise_matrix=SYMMETRIC, **how)
        else:
            assert not certify(model, ref, data, noise_matrix=SYMMETRIC, **how).diagnostic


def test_compression_below_the_floor_refutes_the_matrix():
    data = agreeing(400, 0)
    with pytest.raises(RefutedNoiseError, match="below 0"):
        certify_compression(rule(), data, [0, 1], noise_matrix=SYMMETRIC)
    assert certify_compression(rule(), data, [0, 1], noise_matrix=SYMMETRIC, options=MARKED).risk < 0
    assert certify_compression(rule(), data, list(range(120)), noise_matrix=SYMMETRIC).risk >= 0


def test_a_recorded_certificate_is_not_cut_to_0_at_a_larger_delta():
    numbers = {"kept": 24.0, "floor": 0.2, "gamma": 0.6}
    for kept in range(24, 120):
        found = Certificate.of_network("compression", {**numbers, "kept": kept}, n=400, delta=1e-6, classes=2)
        if found.risk >= 0:
            break
    assert found.risk >= 0
    assert found.at(1e-7) >= found.risk
    with pytest.raises(RefutedNoiseError):
        found.at(0.5)
