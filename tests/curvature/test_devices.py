"""No operation of a measurement mixes tensors of the network's device with tensors of the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.curvature.networks import build, moved
from tests.curvature.test_routing import Experts, Marked, batches_of
from tests.two_devices import TwoDevices

from hesstune.curvature.engine import CurvatureEngine
from hesstune.curvature.measure import measure
from hesstune.curvature.stability import noise_stability


def linear(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return logits.gather(1, targets[:, None])[:, 0]


def squared(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (logits - torch.nn.functional.one_hot(targets, logits.shape[1])).square().sum(1)


OPTIONS = {
    "plain": {},
    "sample": {"examples": "max", "mean_sample": 2},
    "traces and spectra": {"trace": "exact", "spectrum": True},
    "lanczos": {"method": "lanczos"},
    "skipped classes": {"skip_classes": 0.5},
    "linear loss": {"loss": linear},  # no token matters to its Hessian
    "other loss": {"loss": squared},
    "known noise": {"loss": "consistent", "noise_matrix": 0.9 * np.eye(3) + 0.1 / 3},
}


def watched(model, batches, run) -> list[tuple[str, str]]:
    devices = TwoDevices()
    with devices.watching():
        devices.put(*model.parameters(), *model.buffers())
        for inputs, targets in batches:
            values = [inputs] if isinstance(inputs, torch.Tensor) else list(inputs.values())
            devices.put(targets, *values, there=False)
        run()
    return devices.mixed


RUNS = [("attention", options) for options in OPTIONS]
RUNS += [("cnn", "traces and spectra"), ("conv1d_silu", "sample"), ("mlp_fifty_classes", "plain")]


@pytest.mark.parametrize(("name", "options"), RUNS)
def test_a_measurement_stays_on_the_networks_device(name, options):
    case = build(name)
    batches = [(case.inputs, case.targets)]

    def run() -> None:
        measure(case.model, case.ref, batches, steps=2, **OPTIONS[options])

    assert watched(case.model, batches, run) == []


@pytest.mark.parametrize("network", [Experts, Marked])
def test_networks_whose_calls_depend_on_values_stay_there_too(network):
    model = network().double().eval()
    ref = moved(model, 0.5)
    batches = batches_of([[2, 2, 2], [3, 1, 2]])
    assert watched(model, batches, lambda: measure(model, ref, batches, steps=2)) == []


def test_the_engine_and_noise_stability_stay_there():
    case = build("mlp_gelu")
    batch = case.inputs, case.targets

    def run() -> None:
        engine = CurvatureEngine.of(case.model, case.ref)
        engine.gauss_newton(batch)
        engine.trace(batch, probes=2)
        noise_stability(case.model, [batch], 0.1, samples=2, probes=2)

    assert watched(case.model, [batch], run) == []


def test_the_simulation_sees_what_an_accelerator_refuses():
    devices = TwoDevices()
    with devices.watching():
        x, y = torch.ones(3), torch.ones(3)
        devices.put(x)
        _ = x + torch.tensor(1.0)  # without dimensions
        _ = x[torch.arange(2)] + y.to(x)[:2]
        assert devices.mixed == []
        _ = x + y
        assert [name for name, _ in devices.mixed] == ["add"]
        _ = (2 * x).relu().cpu() * x
    assert [name for name, _ in devices.mixed] == ["add", "mul"]
