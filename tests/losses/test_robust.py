"""Each loss against its paper's formula written out by hand, and the properties it is known for."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hesstune import NoiseMatrix
from hesstune.errors import ConfigError, DataError
from hesstune.losses.robust import (
    ActivePassiveLoss,
    ForwardLoss,
    GeneralizedCrossEntropy,
    JensenShannonLoss,
    SymmetricCrossEntropy,
    early_learning_penalty,
)

K = 4
LOGITS = torch.randn(30, K, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3
TARGETS = torch.arange(30) % K
P = torch.softmax(LOGITS, dim=1).numpy()
P_Y = P[np.arange(30), TARGETS.numpy()]
CE = -np.log(P_Y)


def per_example(loss):
    loss.reduction = "none"
    return loss(LOGITS, TARGETS).numpy()


def test_formulas_of_the_papers():
    one_hot = np.eye(K)[TARGETS]
    rce = -(P * np.where(one_hot == 1, 0.0, -4.0)).sum(axis=1)
    nce = CE / -np.log(P).sum(axis=1)
    F = NoiseMatrix([[0.7, 0.1, 0.1, 0.1], [0.0, 0.8, 0.2, 0.0], [0.1, 0.1, 0.6, 0.2], [0.3, 0, 0, 0.7]])
    expected = {
        GeneralizedCrossEntropy(0.7): (1 - P_Y**0.7) / 0.7,
        SymmetricCrossEntropy(0.1, 1.0): 0.1 * CE + rce,
        ActivePassiveLoss(2.0, 0.5): 2 * nce + 0.5 * rce,
        ForwardLoss(F): -np.log((P @ F.array)[np.arange(30), TARGETS]),
    }
    for loss, values in expected.items():
        np.testing.assert_allclose(per_example(loss), values, rtol=1e-9, err_msg=type(loss).__name__)
        loss.reduction = "mean"
        assert float(loss(LOGITS, TARGETS)) == pytest.approx(values.mean())
        loss.reduction = "sum"
        assert float(loss(LOGITS, TARGETS)) == pytest.approx(values.sum())


def entropy(p):
    return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(axis=1)


def test_generalised_jensen_shannon_of_two_views():
    other = torch.softmax(LOGITS.flip(0), dim=1).numpy()
    one_hot = np.eye(K)[TARGETS]
    pi, rest = 0.3, 0.35
    divergence = entropy(pi * one_hot + rest * P + rest * other) - rest * entropy(P) - rest * entropy(other)
    loss = JensenShannonLoss(0.3, reduction="none")
    found = loss([LOGITS, LOGITS.flip(0)], TARGETS).numpy()
    np.testing.assert_allclose(found, divergence / -(0.7 * np.log(0.7)), rtol=1e-9)
    torch.testing.assert_close(loss([LOGITS, LOGITS], TARGETS), loss([LOGITS], TARGETS))


def test_limits_and_constant_sums_over_the_labels():
    np.testing.assert_allclose(per_example(GeneralizedCrossEntropy(1e-9)), CE, rtol=1e-6)
    np.testing.assert_allclose(per_example(GeneralizedCrossEntropy(1.0)), 1 - P_Y, rtol=1e-9)
    torch.testing.assert_close(
        ForwardLoss(NoiseMatrix.identity(K))(LOGITS, TARGETS), nn.functional.cross_entropy(LOGITS, TARGETS)
    )
    near, far = (JensenShannonLoss(pi, "none")([LOGITS], TARGETS).numpy() for pi in (1e-7, 1 - 1e-6))
    np.testing.assert_allclose(near, CE, rtol=1e-2)
    np.testing.assert_allclose(far, 1 - P_Y, rtol=0.1, atol=0.1)  # logarithmically slow
    symmetric = {
        ActivePassiveLoss(1, 0): 1.0,
        ActivePassiveLoss(0, 1): 4.0 * (K - 1),
        GeneralizedCrossEntropy(1.0): K - 1,
    }
    for loss, total in symmetric.items():
        loss.reduction = "none"
        found = torch.stack([loss(LOGITS, torch.full((30,), y)) for y in range(K)]).sum(dim=0)
        np.testing.assert_allclose(found.numpy(), total, rtol=1e-9)


@given(st.lists(st.floats(-1e4, 1e4), min_size=3, max_size=3), st.integers(0, 2))
def test_bounded_and_finite_with_finite_gradients(logits, target):
    x = torch.tensor([logits], requires_grad=True)
    y = torch.tensor([target])
    bounds = {
        GeneralizedCrossEntropy(0.5): 2.0,
        ActivePassiveLoss(1, 1): 5.0,
        SymmetricCrossEntropy(0, 1): 4.0,
        ForwardLoss(NoiseMatrix.symmetric(3, 0.3)): -np.log(0.15),
    }
    for loss, bound in bounds.items():
        value = loss(x, y)
        assert -1e-6 <= float(value.detach()) <= bound * (1 + 1e-5)
        (slope,) = torch.autograd.grad(value, x)
        assert torch.isfinite(slope).all()
    value = JensenShannonLoss(0.4)([x, x], y)
    assert -1e-6 <= float(value.detach()) <= np.log(2) / -(0.6 * np.log(0.6))
    assert torch.isfinite(torch.autograd.grad(value, x)[0]).all()


def test_forward_correction_is_minimised_by_the_clean_probabilities():
    F = NoiseMatrix.pair(3, 0.3)
    clean = np.array([0.6, 0.3, 0.1])
    noisy = clean @ F.array
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    loss = ForwardLoss(F, reduction="none")
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = (torch.from_numpy(noisy) * loss(logits.expand(3, 3), torch.arange(3))).sum()
        value.backward()
        return value

    optimizer.step(closure)
    np.testing.assert_allclose(torch.softmax(logits.detach(), 0).numpy(), clean, atol=1e-4)


def test_early_learning_penalty_and_its_gradient():
    memory = torch.softmax(LOGITS.roll(1, 0), dim=1)
    x = LOGITS.clone().requires_grad_()
    p = torch.softmax(x, dim=1)
    value = early_learning_penalty(p, memory)
    inner = (p.detach() * memory).sum(dim=1)
    np.testing.assert_allclose(value.detach().numpy(), np.log(1 - inner.numpy()), rtol=1e-2, atol=1e-3)
    # Lemma 2 of Liu et al. 2020: ∂/∂x_k = p_k / (1 − ⟨p, t⟩) · Σ_j p_j (t_j − t_k), where p is not clamped
    (slope,) = torch.autograd.grad(value.sum(), x)
    p = p.detach()
    lemma = p / (1 - inner)[:, None] * ((p * memory).sum(1, keepdim=True) - memory)
    rows = ((p > 1e-3) & (p < 0.999)).all(dim=1)
    assert rows.sum() > 5
    torch.testing.assert_close(slope[rows], lemma[rows], rtol=1e-6, atol=1e-9)


def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigError, match="q must be above 0"):
        GeneralizedCrossEntropy(0.0)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        JensenShannonLoss(1.0)
    with pytest.raises(ConfigError, match="3 classes, but the logits have 4"):
        ForwardLoss(NoiseMatrix.symmetric(3, 0.1))(LOGITS, TARGETS)
    with pytest.raises(DataError, match=r"got 9 at index 0"):
        GeneralizedCrossEntropy()(LOGITS[:1], torch.tensor([9]))
