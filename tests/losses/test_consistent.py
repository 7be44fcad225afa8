import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hesstune import ConsistentLoss, NoiseMatrix
from hesstune.errors import ConfigError, DataError, HesstuneWarning, NoiseMatrixError
from hesstune.noise.matrix import rate_matrix

CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def noise(k, seed):
    rng = np.random.default_rng(seed)
    return NoiseMatrix(0.6 * np.eye(k) + 0.4 * rng.dirichlet(np.ones(k), size=k))


def expectation(loss, logits, true, F, rates=None):
    """The loss averaged over every noisy label, by its probability given the true one times its rate."""
    total = torch.zeros(len(logits), dtype=logits.dtype)
    for j in range(F.k):
        each = torch.from_numpy(F.array[true, j]) * loss(logits, torch.full((len(logits),), j))
        total += each if rates is None else rates[j] * each
    return total


@given(st.integers(2, 9), st.integers(0, 10**6))
def test_expectation_is_cross_entropy_with_class_weights_and_a_balanced_sampler(k, seed):
    F = noise(k, seed)
    rng = np.random.default_rng(seed)
    logits, true = torch.from_numpy(5 * rng.normal(size=(7, k))), rng.integers(0, k, 7)
    clean = torch.nn.functional.cross_entropy(logits, torch.from_numpy(true), reduction="none")
    torch.testing.assert_close(expectation(ConsistentLoss(F, "none"), logits, true, F), clean, **CLOSE)
    weight, rates = (torch.from_numpy(rng.uniform(0.2, 4, k)) for _ in range(2))
    found = expectation(ConsistentLoss(F, "none", weight=weight), logits, true, F)
    torch.testing.assert_close(found, weight[true] * clean, **CLOSE)
    found = expectation(ConsistentLoss(F, "none", sampling=rates), logits, true, F, rates)
    torch.testing.assert_close(found, clean, **CLOSE)  # label j is drawn rates[j] times as often


def test_hessian_in_the_logits_is_that_of_cross_entropy():
    F = noise(5, 3)
    logits = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p = torch.softmax(logits, 0)
    for j in range(5):
        loss = lambda f, j=j: ConsistentLoss(F)(f[None], torch.tensor([j]))  # noqa: E731
        found = torch.autograd.functional.hessian(loss, logits)
        torch.testing.assert_close(found, torch.diag(p) - torch.outer(p, p), **CLOSE)


@pytest.mark.parametrize("value", [0.0, 1e4, 3e38, float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_finite_for_any_logits(value, dtype):
    logits = torch.tensor([[value, -value, 0.0], [-value, value, value]]).nan_to_num(nan=0.0).to(dtype)
    logits.requires_grad_()
    loss = ConsistentLoss(NoiseMatrix.symmetric(3, 0.3), "none")(logits, torch.tensor([0, 1]))
    assert torch.isfinite(loss).all()
    assert torch.isfinite(loss.mean())
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert torch.isfinite(gradient).all()


def test_reductions_and_dtype():
    loss = ConsistentLoss(NoiseMatrix.pair(3, 0.2), "none")
    logits, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    each = loss(logits, targets)
    assert each.shape == (4,)
    assert each.dtype == torch.float32
    torch.testing.assert_close(ConsistentLoss(NoiseMatrix.pair(3, 0.2))(logits, targets), each.mean())
    torch.testing.assert_close(ConsistentLoss(NoiseMatrix.pair(3, 0.2), "sum")(logits, targets), each.sum())
    assert loss(logits.double(), targets).dtype == torch.float64
    assert not loss.state_dict()  # F is no weight


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), r"\[0, 3\); got 3 at index 1"),
        (torch.zeros(2, 3), torch.tensor([-1, 0]), "got -1 at index 0"),
        (torch.zeros(2, 3), torch.zeros(2), "[Rr]egression"),
        (torch.zeros(2, 3), torch.zeros(2, 3), "Multi-label"),
        (torch.zeros(2, 4), torch.tensor([0, 1]), "3 classes, but the logits have 4"),
    ],
)
def test_wrong_targets_are_refused_by_name(logits, targets, message):
    with pytest.raises(DataError, match=message):
        ConsistentLoss(NoiseMatrix.symmetric(3, 0.1))(logits, targets)


def test_wrong_arguments():
    F = NoiseMatrix.symmetric(3, 0.1)
    with pytest.raises(ConfigError, match="did you mean 'mean'"):
        ConsistentLoss(F, reduction="meen")
    with pytest.raises(ConfigError, match=r"got 0\.1"):
        ConsistentLoss(0.1)
    assert torch.equal(ConsistentLoss(F.array).inverse, ConsistentLoss(F).inverse)
    with pytest.raises(ConfigError, match="3 finite numbers above 0"):
        ConsistentLoss(F, weight=torch.tensor([1.0, 0.0, 1.0]))
    with pytest.raises(NoiseMatrixError, match="singular"):
        ConsistentLoss(NoiseMatrix(rate_matrix("pair", 4, 0.5)))
    with pytest.warns(HesstuneWarning, match=r"condition number \d+"):
        ConsistentLoss(NoiseMatrix(rate_matrix("symmetric", 4, 0.747)))
