"""Noise stability against brute force, closed forms and the dense trace."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from networks import AlsoFunctional, Case, build, mlp
from torch import nn

from dense_hessians import block_hessian
from hesstune.curvature.stability import noise_stability, noise_stability_table
from hesstune.errors import ConfigError, DataError, LayerError
from hesstune.reference import Reference


def mean_trace(case) -> float:
    """Σ_i Tr H_i averaged over the examples, from dense Hessians."""
    traces = [
        block_hessian(case.model, case.inputs, case.targets, name).diagonal(dim1=1, dim2=2).sum(1).mean()
        for name in case.ref.layers()
    ]
    return float(torch.stack(traces).sum())


@pytest.mark.parametrize("name", ["mlp_gelu", "attention", "cnn", "also_functional"])
def test_the_taylor_prediction_is_half_sigma_squared_times_the_dense_trace(name: str):
    if name == "also_functional":  # a weight used in a plain call and otherwise counts with all its uses
        torch.manual_seed(0)
        model, y = AlsoFunctional().double(), torch.tensor([0, 1, 2, 0, 1, 2])
        case = Case(model, Reference.of(model), torch.randn(6, 4, dtype=torch.float64), y)
    else:
        case = build(name)
    s = noise_stability(case.model, [(case.inputs, case.targets)], 0.1, samples=2, probes=64)
    expected = 0.005 * mean_trace(case)
    assert abs(s.taylor - expected) <= 5 * s.taylor_stderr + 1e-9 * abs(expected)
    assert (s.taylor_stderr == 0.0) == (name == "cnn")  # piecewise linear: the trace is exact


@pytest.mark.parametrize(("name", "seed"), [("mlp_gelu", 2), ("attention", 1)])
def test_small_noise_on_smooth_networks_agrees_with_the_prediction(name: str, seed: int):
    case = build(name, seed=seed)  # cases whose trace stands out from the noise
    batches = [(case.inputs, case.targets)]
    s = noise_stability(case.model, batches, 1e-3, samples=250, probes=64)
    assert abs(s.value - s.taylor) <= 5 * (s.stderr**2 + s.taylor_stderr**2) ** 0.5
    assert s.value > 5 * s.stderr  # the comparison can fail


def test_the_value_is_the_mean_over_both_signs_of_each_draw():
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False).double().requires_grad_(False)
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randint(2, (6,))
    s = noise_stability(model, [(x, y)], 0.5, samples=8, seed=3)
    # A linear model's loss is convex: every antithetic pair rises, so the mean does.
    assert s.value > 0
    draws = torch.tensor(
        [noise_stability(model, [(x, y)], 0.5, 8, seed, probes=2).value for seed in range(30)]
    )
    generator = torch.Generator().manual_seed(99)
    start = F.cross_entropy(x @ model.weight.T, y)
    moved = model.weight + 0.5 * torch.randn(2000, 2, 3, generator=generator, dtype=torch.float64)
    brute = torch.stack([F.cross_entropy(x @ weight.T, y) - start for weight in moved])
    error = float((draws.var() / len(draws) + brute.var() / len(brute)).sqrt())
    assert abs(float(draws.mean() - brute.mean())) < 5 * error
    assert 0.5 < float(draws.std()) / s.stderr < 2.0  # the standard error is that of the draws


def test_batches_layers_and_seed():
    case = build("mlp_gelu")
    x, y = case.inputs, case.targets
    whole = noise_stability(case.model, [(x, y)], 0.05, samples=4)
    split = noise_stability(case.model, [(x[:2], y[:2]), (x[2:], y[2:])], 0.05, samples=4)
    assert split.examples == whole.examples == 5
    assert split.value == pytest.approx(whole.value, rel=1e-9)
    assert split.taylor == pytest.approx(whole.taylor, rel=1e-9)
    other = noise_stability(case.model, [(x, y)], 0.05, samples=4, seed=1)
    assert other.value != whole.value
    one = noise_stability(case.model, [(x, y)], 0.05, samples=4, layers="4.*")
    assert one.layers == ("4.weight",)
    assert one.taylor_stderr == 0.0  # nothing follows the head


def test_a_table_takes_the_same_draws_for_every_sigma():
    case = build("mlp")
    batches = [(case.inputs, case.targets)]
    rows = noise_stability_table(case.model, batches, [0.01, 0.1], samples=4)
    singles = [noise_stability(case.model, batches, sigma, samples=4) for sigma in (0.01, 0.1)]
    assert [r.value for r in rows] == [r.value for r in singles]
    assert rows[1].taylor == pytest.approx(100 * rows[0].taylor)
    assert set(rows[0].to_dict()) >= {"sigma", "value", "stderr", "taylor", "ratio"}
    bare = noise_stability_table(case.model, batches, [0.01], samples=4, probes=0)[0]
    assert bare.value == rows[0].value
    assert math.isnan(bare.taylor)


def test_the_model_and_the_random_state_are_left_as_found_even_after_an_error():
    torch.manual_seed(0)
    model = mlp().train()
    x, y = torch.randn(4, 5), torch.randint(4, (4,))
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    noise_stability(model, [(x, y)], 0.3, samples=2)

    def broken(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if not torch.equal(model[0].weight, before["0.weight"]):
            raise ZeroDivisionError
        return F.cross_entropy(logits, targets, reduction="none")

    with pytest.raises(ZeroDivisionError):
        noise_stability(model, [(x, y)], 0.3, samples=2, loss=broken)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


def test_wrong_arguments_are_refused():
    model, batch = mlp(), (torch.randn(4, 5), torch.randint(4, (4,)))
    with pytest.raises(ConfigError, match="sigma"):
        noise_stability(model, [batch], 0.0)
    with pytest.raises(ConfigError, match="at least 2"):
        noise_stability(model, [batch], 0.1, samples=1)
    with pytest.raises(LayerError, match=r"head\.\*"):
        noise_stability(model, [batch], 0.1, layers="head.*")
    with pytest.raises(DataError, match="no examples"):
        noise_stability(model, [], 0.1)
