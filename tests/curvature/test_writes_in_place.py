"""Networks that write into a layer's output in place: every path measures what the dense twin says."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from networks import check, moved
from torch import nn

from dense_hessians import block_hessian, positive_trace
from hesstune.curvature.engine import CurvatureEngine
from hesstune.curvature.measure import measure
from hesstune.curvature.stability import noise_stability
from hesstune.reference import Reference

WRITES = {
    "add_": lambda z, other: z.add_(other),
    "relu": lambda z, other: F.relu(z, inplace=True),
    "mul_": lambda z, other: z.mul_(1 + other),
    "tanh_": lambda z, other: z.tanh_(),
    "one token": lambda z, other: z.select(1, 0).copy_(other.select(1, 0)),
    "other tokens": lambda z, other: z.narrow(1, 1, 2).add_(other.narrow(1, 1, 2)),
    "a view": lambda z, other: z.view(-1, z.shape[-1]).mul_(2.0),
    "twice": lambda z, other: z.add_(other).relu_(),
}


class Writer(nn.Module):
    """A token network that writes into the outputs of two of its layers; `second` reads the first one's."""

    def __init__(self, write: str, act=torch.relu, classes: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(4, 4)
        self.side = nn.Linear(3, 4)
        self.head = nn.Linear(4, classes)
        self.register_buffer("positions", torch.randn(1, 4, 4))
        self.write, self.act = write, act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.first(x)
        WRITES[self.write](z, self.positions.expand_as(z))
        y = self.second(self.act(z))
        WRITES[self.write](y, self.side(x))
        return self.head(self.act(y).mean(1))


class Convolutional(nn.Module):
    """In-place activations after convolutions of every kind, and after a norm."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 2, (1, 3), padding="same"),
            nn.ReLU(inplace),
            nn.ConvTranspose2d(2, 2, (1, 2), stride=2),
            nn.Hardtanh(-1.0, 1.0, inplace),
            nn.Conv2d(2, 2, 2, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2),
            nn.SiLU(inplace),
        )
        self.one = nn.Conv1d(2, 2, 3, padding="same")
        self.head = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu_(self.one(self.body(x).flatten(2))).mean(2))


def made(model: nn.Module, *shape: int, classes: int = 3):
    model = model.double().eval()
    ref = moved(model, 0.3)
    x = torch.randn(*shape, dtype=torch.float64)
    return model, ref, x, torch.randint(0, classes, shape[:1])


def checked(model: nn.Module, ref: Reference, x: torch.Tensor, y: torch.Tensor) -> None:
    found = check(model, ref, [(x[:2], y[:2]), (x[2:], y[2:])], trace="exact")
    for i, name in enumerate(found.names):
        if found.methods[i] == "exact":
            truth = positive_trace(block_hessian(model, x, y, name))
            torch.testing.assert_close(found.trace[:, i], truth, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("act", [torch.relu, F.gelu])
@pytest.mark.parametrize("write", WRITES)
def test_outputs_that_are_changed_in_place_are_measured_as_the_dense_twin_says(write, act):
    torch.manual_seed(0)
    model, ref, x, y = made(Writer(write, act), 3, 4, 3)
    checked(model, ref, x, y)
    if act is torch.relu:
        model, ref, x, y = made(Writer(write, classes=20), 4, 4, 3, classes=20)
        engine = CurvatureEngine.of(model, ref, ["first.weight"])
        if engine.plan_on(x).by("exact"):
            truth = engine.exact((x, y), spectrum=True).quadratic
            forms = engine.exact((x, y))
            assert forms.passes == 1  # one product in forward mode
            torch.testing.assert_close(forms.quadratic, truth, rtol=1e-9, atol=0.0)
            torch.testing.assert_close(engine.gauss_newton((x, y)), truth, rtol=1e-9, atol=0.0)


def test_traces_and_noise_stability_see_outputs_that_are_changed_in_place():
    torch.manual_seed(0)
    model, ref, x, y = made(Writer("add_", F.gelu), 3, 4, 3)
    found = measure(model, ref, [(x, y)], trace=True, layers=["first.weight"])
    hessian = block_hessian(model, x, y, "first.weight")
    assert bool(((found.trace[:, 0] - positive_trace(hessian)).abs() < 6 * found.trace_stderr[:, 0]).all())
    predicted = noise_stability(model, [(x, y)], 0.1, samples=2, layers="first.weight", probes=16)
    mean = 0.005 * float(hessian.diagonal(dim1=1, dim2=2).sum(1).mean())
    assert abs(predicted.taylor - mean) < 5 * predicted.taylor_stderr


def test_convolutions_with_activations_in_place_equal_those_without():
    torch.manual_seed(0)
    model, ref, x, y = made(Convolutional(), 3, 1, 3, 3)
    checked(model, ref, x, y)
    twin = Convolutional(inplace=False).double().eval()
    twin.load_state_dict(model.state_dict())
    found, wanted = (measure(m, ref, [(x, y)]) for m in (model, twin))
    torch.testing.assert_close(found.quadratic, wanted.quadratic, rtol=1e-9, atol=0.0)
    assert found.methods == wanted.methods


class GlobalQuery(nn.Module):
    """Attention whose first query comes from another layer, as a global token's, written into a slice."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.globally = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 4)
        self.head = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query = self.query(x)
        query[:, 0] = self.globally(x)[:, 0]
        query /= 2.0
        return self.head((torch.softmax(query @ self.key(x).mT, -1) @ x).sum(1))


class UsedTwice(GlobalQuery):
    """The query layer in weight space, where the other layers take no gradients."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query = self.key(x)
        query[:, 0] = (self.globally(x) + self.globally(x * x))[:, 0]
        query /= 2.0
        return self.head((torch.softmax(query @ self.key(x).mT, -1) @ x).sum(1))


@pytest.mark.parametrize("network", [GlobalQuery, UsedTwice])
def test_a_query_that_is_written_into_a_slice(network):
    torch.manual_seed(0)
    model, ref, x, y = made(network(), 3, 4, 3)
    check(model, ref, [(x, y)], layers="globally.weight")


def test_a_batch_that_is_written_only_later():

    class Sometimes(Writer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = self.first(x)
            if len(x) == 2:  # not on the examples looked at first
                z.add_(self.positions)
            else:
                z = z + self.positions
            return self.head(torch.relu(self.second(torch.relu(z))).mean(1))

    checked(*made(Sometimes("add_"), 3, 4, 3))
