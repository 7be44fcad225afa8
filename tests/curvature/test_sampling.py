"""Means from a random sample in two phases: against all examples, and whether the errors are as stated."""

from __future__ import annotations

import pytest
import torch
from networks import build, dense_values

from hesstune.curvature.measure import measure
from hesstune.curvature.sampling import base_of, costs_of, sampled_means
from hesstune.errors import ConfigError

N, LAYERS = 120, 18


def population(shared: float, seed: int = 0):
    """Return values of N examples with a factor that layers share, and Gauss–Newton values like it."""
    generator = torch.Generator().manual_seed(seed)

    def normals(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    factor = normals(N, 1)
    scale = torch.logspace(-3, 1, LAYERS, dtype=torch.float64)
    values = scale * (0.9 * (shared * factor + (1 - shared**2) ** 0.5 * normals(N, LAYERS))).exp()
    known = 0.1 * scale * (0.9 * (0.6 * factor + 0.8 * normals(N, 1))).exp().expand(N, LAYERS)
    return values, known


def sample(values, drawn, whole):
    some = values[drawn].clone()
    some[whole:, ~base_of(LAYERS)] = torch.nan
    return some


@pytest.mark.parametrize("shared", [0.0, 0.6, 0.95])
@pytest.mark.parametrize(("whole", "base"), [(10, 10), (10, 50), (20, 120)])
def test_estimates_are_centred_and_their_errors_are_as_stated(shared, whole, base):
    values, known = population(shared)
    truth, sums, stated, means = values.mean(0).sqrt().sum(), [], [], []
    for trial in range(400):
        drawn = torch.randperm(N, generator=torch.Generator().manual_seed(trial))[:base]
        found = sampled_means(sample(values, drawn, whole), drawn, known)
        sums.append(found.mean.clamp_min(0).sqrt().sum() / truth)
        stated.append(found.error)
        means.append(found.mean / values.mean(0))
    sums, stated = torch.stack(sums), torch.tensor(stated)
    assert abs(float(sums.mean()) - 1) < 0.05
    assert 0.6 < float(stated.square().mean().sqrt() / (sums - 1).square().mean().sqrt()) < 1.6
    assert float((torch.stack(means).mean(0) - 1).abs().max()) < 0.2


def test_with_all_examples_the_means_are_theirs():
    values, known = population(0.6)
    found = sampled_means(values, torch.arange(N), known)
    torch.testing.assert_close(found.mean, values.mean(0), rtol=1e-9, atol=0)
    assert found.error == 0.0
    expected = values.std(0) / N**0.5
    torch.testing.assert_close(found.stderr, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("shared", [0.0, 0.95])
def test_a_plan_reaches_the_error_and_is_cheaper_if_layers_agree(shared):
    values, known = population(shared)
    drawn = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    first = sampled_means(values[drawn[:16]], drawn[:16], known)
    whole, base = first.plan((16, 16), N, 0.05)
    assert 16 <= whole <= base <= N
    then = sampled_means(sample(values, drawn[:base], whole), drawn[:base], known)
    assert then.error < 0.075
    costs, of = costs_of(LAYERS), base_of(LAYERS)
    cost = base * costs[of].sum() + whole * costs[~of].sum()
    if shared > 0.9:
        assert float(cost) < 0.5 * N * float(costs.sum())
    assert first.plan((16, 16), N, 1.0) == (16, 16)


def test_layers_without_curvature_have_mean_zero():
    values, known = population(0.6)
    values[:, 3], known[:, 3] = 0.0, 0.0
    found = sampled_means(values[:12], torch.arange(12), known)
    assert float(found.mean[3]) == float(found.stderr[3]) == 0.0
    assert bool(found.mean.isfinite().all())


def test_layers_that_have_not_moved_have_mean_and_error_zero():
    values, known = torch.zeros(6, 3, dtype=torch.float64), torch.zeros(9, 3, dtype=torch.float64)
    values[4:, :2] = torch.nan
    found = sampled_means(values, torch.arange(6), known)
    assert found.mean.tolist() == found.stderr.tolist() == [0.0, 0.0, 0.0]
    assert found.error == 0.0


def test_measure_draws_until_the_error_is_small_enough():
    case = build("mlp_gelu")
    x = torch.randn(
        48, *case.inputs.shape[1:], generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    y = torch.arange(48) % 4
    case.inputs, case.targets = x, y
    options = {"examples": "max", "mean_sample": 6, "tol": 1e-4, "steps": 40}
    full = dense_values(case)[0].mean(0)
    counts = []
    for mean_tol in (None, 0.1, 1e-9):
        m = measure(case.model, case.ref, [(x, y)], mean_tol=mean_tol, **options)
        counts.append(int(m.refined[:, 0].sum()))
        assert bool(((m.mean - full).abs() <= 5 * m.mean_stderr + 1e-9).all())
        relative = float(m.mean.sqrt().sum() / full.sqrt().sum()) - 1
        assert abs(relative) < 4 * max(mean_tol or 0.5, 1e-4)
    assert counts[0] == 6 < counts[1] <= counts[2] == 48
    torch.testing.assert_close(m.mean, full, rtol=1e-3, atol=0)
    assert any("relative standard error" in note for note in m.notes)
    with pytest.raises(ConfigError, match="mean_tol must be above 0"):
        measure(case.model, case.ref, [(x, y)], mean_tol=0.0, **options)
