"""The measure while a network trains: its values, its cost in passes, and what it leaves as it was."""

from __future__ import annotations

import pytest
import torch
from networks import build
from torch import nn

from hesstune.curvature.callback import MeasureCallback
from hesstune.curvature.measure import measure
from hesstune.errors import ConfigError
from hesstune.reference import Reference


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Dropout(0.5), nn.Linear(8, 4))


def held_out(count: int = 64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 6, generator=generator), torch.arange(count) % 4


def trained(model, epochs, callback):
    for epoch in range(1, epochs + 1):
        model.train()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
        yield callback(model, epoch)


def test_points_are_the_gauss_newton_measure_of_the_same_examples():
    model = network()
    ref = Reference.of(model)
    callback = MeasureCallback(ref, held_out(), n=4000, every=2)
    state = torch.get_rng_state()
    points = list(trained(model, 4, callback))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [point is None for point in points] == [True, False, True, False]
    assert callback.curve == [points[1], points[3]]
    assert points[3].value > points[1].value
    m = measure(model, ref, [held_out()], method="gauss_newton")
    assert points[3].value == pytest.approx(m.mean_hessian_distance(4000))
    assert points[3].examples == 64
    assert 0 < points[3].stderr < points[3].value


@pytest.mark.parametrize(("n", "share"), [(300, 0.05), (1000, 0.05), (1000, 0.2), (20_000, 0.05)])
def test_it_takes_at_most_its_share_of_the_passes(n, share):
    model = network()
    callback = MeasureCallback(Reference.of(model), held_out(), n=n, share=share)
    forward = 0

    def count(module, inputs, output):
        nonlocal forward
        forward += len(output)

    model[0].register_forward_hook(count)
    epochs = 40
    for _ in trained(model, epochs, callback):
        pass
    assert callback.curve
    # Beside forward passes, an example takes K - 1 backward passes and one evaluation of the layers.
    others = sum(point.examples for point in callback.curve) * 4
    assert forward + others <= share * 3 * n * epochs


def test_few_examples_and_other_names_are_taken_or_refused():
    case = build("mlp_gelu")
    callback = MeasureCallback(case.ref, (case.inputs, case.targets), n=4000)
    assert callback(case.model, 1).examples == len(case.targets)
    for options, text in (
        ({"n": 0}, "n must be"),
        ({"n": 5, "every": 0}, "every"),
        ({"n": 5, "share": 0.0}, "share"),
    ):
        with pytest.raises(ConfigError, match=text):
            MeasureCallback(case.ref, (case.inputs, case.targets), **options)
