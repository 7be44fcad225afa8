"""Corners of the measure and what rests on it: bounds hold as often as they say, for every kind of input."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import gammaincinv
from torch import nn

import hesstune as ht
from hesstune.curvature.exact import FAILURE_PROBABILITY, probe_factor, trace_factor
from hesstune.errors import MeasureError

X, Y = torch.randn(9, 4, generator=torch.Generator().manual_seed(1)), torch.arange(9) % 3


def moved(*middle):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), *middle, nn.Linear(6, 3)).double()
    reference = ht.Reference.of(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model, reference


class Functional(nn.Module):
    def forward(self, x):
        return F.hardsigmoid(x)


@pytest.mark.parametrize("more", [(), (nn.Linear(6, 6), nn.GELU())], ids=["piecewise", "smooth"])
def test_hardsigmoid_is_measured_as_the_same_function(more):
    model, reference = moved(nn.Hardsigmoid(), *more)
    other = nn.Sequential(*[Relu6() if isinstance(m, nn.Hardsigmoid) else m for m in model])
    found = ht.measure(model, reference, [(X.double(), Y)])
    wanted = ht.measure(other, reference, [(X.double(), Y)])
    torch.testing.assert_close(found.quadratic, wanted.quadratic, rtol=1e-9, atol=1e-15)
    assert found.exact == wanted.exact
    assert all("forward" not in vars(m) for m in model)  # left as it was


class Relu6(nn.Module):
    def forward(self, x):
        return F.relu6(x + 3) / 6


def test_an_operation_without_a_second_derivative_is_named():
    model, reference = moved(Functional())
    with pytest.raises(MeasureError, match="calls hardsigmoid, which torch cannot differentiate twice"):
        ht.measure(model, reference, [(X.double(), Y)])


# -- skipped classes -----------------------------------------------------------------------------


def test_the_bound_on_skipped_classes_holds_over_repeated_looks():
    """All looks see the same probes: the chance that any of them fails is at most 1 %."""
    assert probe_factor(0) == pytest.approx(4 / (2 * gammaincinv(2, 0.005)))
    rng = np.random.default_rng(0)
    trials, looks, classes = 20_000, 8, 60
    weights = 0.8 ** np.arange(classes)
    rest = np.array([weights[4 * look :] for look in range(looks)], dtype=object)
    normals = rng.standard_normal((trials, 4, classes))
    failed = np.zeros(trials, dtype=bool)
    for look in range(looks):
        left = np.asarray(rest[look], dtype=float)
        vector = np.sqrt(left)  # u of the classes that are left: the truth is its square
        squares = (normals[:, :, 4 * look :] @ vector) ** 2
        failed |= probe_factor(look) * squares.mean(1) < left.sum()
    assert failed.mean() <= FAILURE_PROBABILITY


@pytest.mark.parametrize("directions", [1, 2, 12])
def test_the_bound_on_a_skipped_trace_holds_whatever_its_directions(directions):
    """A trace's probes are sums of χ²: fewest directions are the worst, and hold, too."""
    rng = np.random.default_rng(directions)
    weights = 0.5 ** np.arange(directions)
    norms = rng.chisquare(1, (50_000, 4, directions)) @ weights
    failed = trace_factor(0) * norms.mean(1) < weights.sum()
    assert failed.mean() <= FAILURE_PROBABILITY / 2
    assert trace_factor(0) > probe_factor(0)  # Chernoff, where the other is exact
