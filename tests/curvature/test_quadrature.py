from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dense_hessians import positive_form
from hesstune.curvature.quadrature import Bracket, Krylov, Tridiagonal, positive_bracket

EXACT = {"rtol": 1e-8, "atol": 1e-9}
KINDS = ("indefinite", "positive", "negative", "low_rank", "clustered", "zero")


def symmetric(kind: str, size: int, generator: torch.Generator, batch: int = 3) -> torch.Tensor:
    a = torch.randn(batch, size, size, generator=generator, dtype=torch.float64)
    if kind == "indefinite":
        return a + a.mT
    if kind in ("positive", "negative"):
        return a @ a.mT * (1 if kind == "positive" else -1)
    if kind == "low_rank":
        signs = torch.tensor([1.0, -1.0], dtype=torch.float64)
        return (a[..., :2] * signs[: a.shape[-1]]) @ a[..., :2].mT
    if kind == "clustered":
        q = torch.linalg.qr(a).Q
        levels = torch.tensor([-2.0, 0.0, 1e-3, 5.0], dtype=torch.float64)
        return q @ torch.diag(levels.repeat(size)[:size]) @ q.mT
    return torch.zeros_like(a)


def krylov_of(h: torch.Tensor, v: torch.Tensor) -> Krylov:
    return Krylov(lambda x: (h @ x.unsqueeze(2)).squeeze(2), v)


def truth_of(h: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.stack([positive_form(m.double(), x.double()) for m, x in zip(h, v, strict=True)])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(kind=st.sampled_from(KINDS), size=st.integers(1, 9), seed=st.integers(0, 10**6))
def test_the_bracket_contains_the_truth_after_every_product_and_closes(kind: str, size: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    h = symmetric(kind, size, generator)
    v = torch.randn(3, size, generator=generator, dtype=torch.float64)
    truth, scale = truth_of(h, v), (v.norm(dim=1) * (h @ v.unsqueeze(2)).squeeze(2).norm(dim=1)).max()
    krylov, last = krylov_of(h, v), None
    for _ in range(size + 1):  # one more than there are dimensions: breakdown must be harmless
        krylov.advance()
        bracket = positive_bracket(krylov.tridiagonal())
        assert (bracket.lower <= truth).all()
        assert (truth <= bracket.upper).all()
        assert (bracket.lower <= bracket.value).all()
        assert (bracket.value <= bracket.upper).all()
        if last is not None:
            assert (bracket.lower >= last.lower - 1e-7 * scale).all()
            assert (bracket.upper <= last.upper + 1e-5 * scale).all()
        last = bracket
    torch.testing.assert_close(last.value, truth, rtol=1e-6, atol=float(1e-7 * scale) + 1e-12)


def test_one_product_gives_the_two_bounds_in_closed_form():
    generator = torch.Generator().manual_seed(0)
    h = symmetric("indefinite", 6, generator, batch=20)
    v = torch.randn(20, 6, generator=generator, dtype=torch.float64)
    krylov = krylov_of(h, v)
    krylov.advance()
    bracket = positive_bracket(krylov.tridiagonal())
    image = (h @ v.unsqueeze(2)).squeeze(2)
    form = (v * image).sum(1)
    assert (form < 0).any()  # both cases of max(0, ·) are met
    cap = 2e-6 * v.norm(dim=1).max() * image.norm(dim=1).max()
    torch.testing.assert_close(bracket.lower, form.clamp_min(0), rtol=0, atol=float(cap))
    expected = (form + v.norm(dim=1) * image.norm(dim=1)) / 2
    torch.testing.assert_close(bracket.upper, expected, rtol=0, atol=float(cap))


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_both_ends_are_attained_by_matrices_with_the_same_coefficients(k: int):
    """T with one more row is a matrix with those very coefficients: nothing narrower holds."""
    generator = torch.Generator().manual_seed(k)
    alpha = torch.randn(1, k, generator=generator, dtype=torch.float64)
    beta = torch.rand(1, k, generator=generator, dtype=torch.float64) + 0.2
    bracket = positive_bracket(Tridiagonal(alpha, beta, torch.ones(1, dtype=torch.float64)))
    angle = torch.linspace(-1.5707, 1.5707, 20001, dtype=torch.float64)
    matrix = torch.zeros(len(angle), k + 1, k + 1, dtype=torch.float64)
    matrix[:, range(k), range(k)] = alpha
    matrix[:, k, k] = torch.tan(angle)
    matrix[:, range(k), range(1, k + 1)] = matrix[:, range(1, k + 1), range(k)] = beta
    attained = positive_form(matrix, torch.eye(k + 1, dtype=torch.float64)[0])
    assert (attained >= bracket.lower[0]).all()
    assert (attained <= bracket.upper[0]).all()
    torch.testing.assert_close(attained.min(), bracket.lower[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attained.max(), bracket.upper[0], rtol=1e-4, atol=1e-5)


def test_eigenvectors_and_zero_vectors_break_down_at_once_without_disturbing_the_batch():
    generator = torch.Generator().manual_seed(3)
    h = symmetric("indefinite", 7, generator, batch=4)
    values, vectors = torch.linalg.eigh(h)
    v = torch.stack(
        [vectors[0, :, -1], vectors[1, :, 0], torch.zeros(7).double(), torch.randn(7, generator=generator)]
    )
    krylov = krylov_of(h, v)
    krylov.advance()
    assert krylov.exhausted().tolist() == [True, True, True, False]
    for _ in range(6):
        krylov.advance()
    bracket = positive_bracket(krylov.tridiagonal())
    expected = torch.stack([values[0, -1], values[1, 0].clamp_min(0), torch.tensor(0.0), truth_of(h, v)[3]])
    torch.testing.assert_close(bracket.value, expected.double(), **EXACT)
    assert bracket.upper[2] == 0


@pytest.mark.parametrize("kind", ["indefinite", "low_rank", "positive"])
def test_float32_products_still_bracket_the_truth(kind: str):
    generator = torch.Generator().manual_seed(1)
    h = symmetric(kind, 25, generator, batch=4).float()
    v = torch.randn(4, 25, generator=generator)
    truth = truth_of(h, v)
    krylov = krylov_of(h, v)
    for _ in range(27):
        krylov.advance()
        bracket = positive_bracket(krylov.tridiagonal())
        assert ((bracket.lower <= truth) & (truth <= bracket.upper)).all()
    torch.testing.assert_close(bracket.value, truth, rtol=1e-4, atol=1e-4)


def test_the_value_has_the_smallest_worst_relative_error():
    lower, upper = torch.tensor([1.0, 0.0, 0.0]).double(), torch.tensor([3.0, 2.0, 0.0]).double()
    bracket = Bracket.between(lower, upper)
    torch.testing.assert_close(bracket.value, torch.tensor([1.5, 0.0, 0.0]).double())
    torch.testing.assert_close(bracket.error, torch.tensor([0.5, 1.0, 0.0]).double())


def test_stochastic_lanczos_quadrature_estimates_the_trace_with_its_error():
    generator = torch.Generator().manual_seed(7)
    h = symmetric("indefinite", 12, generator, batch=2)
    expected = torch.linalg.eigvalsh(h).clamp_min(0).sum(1)
    values = []
    for _ in range(100):
        krylov = krylov_of(h, torch.randn(2, 12, generator=generator, dtype=torch.float64))
        for _ in range(12):
            krylov.advance()
        values.append(positive_bracket(krylov.tridiagonal()).value)
    mean, stderr = torch.stack(values).mean(0), torch.stack(values).std(0) / 10
    assert ((mean - expected).abs() < 5 * stderr).all()
    assert (stderr < 0.2 * expected).all()
