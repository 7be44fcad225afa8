"""SAM's sharpness against a closed form and dense gradients in float64."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from networks import build, mlp
from torch import nn

from hesstune.curvature.sharpness import sam_sharpness
from hesstune.errors import ConfigError, DataError


def by_hand(model, x, y, rho):
    """ℓ(W + ρg/‖g‖) − ℓ(W) on all parameters as one vector."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    fixed = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    point = torch.cat([fixed[name].detach().flatten() for name in names])

    def mean_loss(flat):
        parts = flat.split([fixed[name].numel() for name in names])
        held = {name: part.view_as(fixed[name]) for name, part in zip(names, parts, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, {**fixed, **held}, (x,)), y)

    g = torch.func.grad(mean_loss)(point)
    return float(mean_loss(point + rho * g / g.norm()) - mean_loss(point)), float(g.norm())


@pytest.mark.parametrize("name", ["mlp", "mlp_gelu", "cnn"])
def test_the_rise_is_that_of_a_step_along_the_dense_gradient(name):
    case = build(name)
    case.model.eval()
    rise, norm = by_hand(case.model, case.inputs, case.targets, 0.05)
    halves = [(case.inputs[:2], case.targets[:2]), (case.inputs[2:], case.targets[2:])]
    found = sam_sharpness(case.model, halves)
    assert found.value == pytest.approx(rise, rel=1e-9)
    assert found.gradient_norm == pytest.approx(norm, rel=1e-9)
    assert (found.rho, found.examples) == (0.05, len(case.targets))
    small = sam_sharpness(case.model, halves, rho=1e-6)
    assert small.value == pytest.approx(1e-6 * norm, rel=1e-3)


def test_a_linear_network_has_a_closed_form():
    # Logits ±w with w = 0: g = (−½, ½), and the step makes the loss log(1 + e^(ρ√2)).
    model = nn.Linear(1, 2, bias=False).double()
    nn.init.zeros_(model.weight)
    found = sam_sharpness(model, [(torch.ones(3, 1).double(), torch.zeros(3, dtype=torch.long))], rho=0.5)
    assert found.value == pytest.approx(math.log1p(math.exp(0.5 * math.sqrt(2))) - math.log(2), rel=1e-12)


def test_frozen_parameters_stay_and_all_is_left_as_found_even_after_an_error():
    torch.manual_seed(0)
    model = nn.Sequential(mlp().double(), nn.Dropout(0.5)).train()
    model[0][0].weight.requires_grad_(False)
    x, y = torch.randn(6, 5).double(), torch.randint(4, (6,))
    model[0][2].weight.grad = torch.ones_like(model[0][2].weight)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with torch.no_grad():  # also where gradients are off
        found = sam_sharpness(model, [(x, y)])
    calls = []

    def broken(logits, targets):
        calls.append(torch.equal(model[0][0].weight, before["0.0.weight"]))
        if not torch.equal(model[0][2].weight, before["0.2.weight"]):
            raise ZeroDivisionError
        return F.cross_entropy(logits, targets, reduction="none")

    with pytest.raises(ZeroDivisionError):
        sam_sharpness(model, [(x, y)], loss=broken)
    assert calls == [True, True]  # the frozen weight did not move with the step
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert torch.equal(model[0][2].weight.grad, torch.ones_like(model[0][2].weight))
    assert model[0][4].weight.grad is None
    assert found.value == pytest.approx(by_hand(model.eval(), x, y, 0.05)[0], rel=1e-9)


def test_where_there_is_no_direction_nothing_rises():
    model = nn.Linear(2, 2).double()
    flat = sam_sharpness(
        model, [(torch.ones(2, 2).double(), torch.zeros(2, dtype=torch.long))],
        loss=lambda logits, _: 0 * logits.sum(1),
    )  # fmt: skip
    assert (flat.value, flat.gradient_norm) == (0.0, 0.0)


def test_wrong_arguments_are_refused():
    model, batch = mlp(), (torch.randn(4, 5), torch.randint(4, (4,)))
    for rho in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="rho"):
            sam_sharpness(model, [batch], rho)
    with pytest.raises(ConfigError, match="read twice"):
        sam_sharpness(model, iter([batch]))
    with pytest.raises(DataError, match="no examples"):
        sam_sharpness(model, [])
    with pytest.raises(ConfigError, match="requires a gradient"):
        sam_sharpness(model.requires_grad_(False), [batch])
