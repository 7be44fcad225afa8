"""Corners of the measure and what rests on it: bounds hold as often as they say, for every kind of input."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import gammaincinv
from scipy.stats import binomtest
from torch import nn

import hesstune as ht
from hesstune.curvature.exact.skipping import FAILS, probe_factor, trace_factor
from hesstune.curvature.smooth.quadrature import Bracket
from hesstune.curvature.smooth.ranking import Ranking
from hesstune.curvature.smooth.screening import (
    Status,
    _Board,
    _random_check,
    _share_bound,
    screening_sentence,
)
from hesstune.curvature.smooth.stopping import Stopping
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


# -- the screening's sentence --------------------------------------------------------------------


def check_once(truth, ranked, seed, check=3):
    """Run the random check on pairs of which `ranked` are left, and return its sentence's number."""
    n, layers = truth.shape
    zero = torch.zeros(n, dtype=torch.float64)
    ranking = Ranking(torch.zeros(n, layers, dtype=torch.float64), zero, zero)
    board = _Board(ranking, {str(i): torch.ones(1) for i in range(layers)}, Stopping(), 32.0)
    board.status[~ranked] = Status.REFINED
    board.products[~ranked] = 1
    before = torch.ones(layers, dtype=torch.float64)
    board.best = Bracket(before.clone(), before.clone(), before.clone())

    def visit(pairs):
        for e, i in pairs:
            board.status[e, i], board.products[e, i] = Status.REFINED, 1
            board.value[e, i] = truth[e, i]

    share = float((truth > 1.02)[ranked].double().mean())
    return share, _share_bound(*_random_check(board, visit, check, seed))


def test_the_share_above_the_maximum_is_bounded_as_often_as_said_on_uneven_layers():
    """One layer has nearly all the ranked pairs, and the exceeding ones; many have few and none."""
    n, layers = 400, 12
    ranked = torch.zeros(n, layers, dtype=torch.bool)
    ranked[:, 0] = True
    ranked[:5, 1:] = True
    truth = torch.zeros(n, layers, dtype=torch.float64)
    failed = 0
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        truth[:, 0] = 2.0 * (torch.rand(n, generator=generator) < 0.10)
        share, bound = check_once(truth, ranked, seed)
        failed += share > bound
    assert failed / 300 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


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
    assert failed.mean() <= FAILS


@pytest.mark.parametrize("directions", [1, 2, 12])
def test_the_bound_on_a_skipped_trace_holds_whatever_its_directions(directions):
    """A trace's probes are sums of χ²: fewest directions are the worst, and hold, too."""
    rng = np.random.default_rng(directions)
    weights = 0.5 ** np.arange(directions)
    norms = rng.chisquare(1, (50_000, 4, directions)) @ weights
    failed = trace_factor(0) * norms.mean(1) < weights.sum()
    assert failed.mean() <= FAILS / 2
    assert trace_factor(0) > probe_factor(0)  # Chernoff, where the other is exact


def test_ranks_report_together():
    tallies = torch.tensor([[4, 10, 1, 85, 9, 0], [6, 90, 0, 4, 4, 1]])
    found = screening_sentence(tallies)
    assert "of 200 pairs of example and layer 10 were refined, 100 are proved" in found
    assert "of 13 drawn at random from the ranked ones 1 exceeded" in found
    # Each rank's share at 97.5 %, by its ranked pairs, from Clopper and Pearson's intervals.
    bounds = [binomtest(k, n).proportion_ci(0.95, "exact").high for k, n in ((0, 9), (1, 4))]
    assert f"at most {(85 * bounds[0] + 4 * bounds[1]) / 89:.1%} of them do" in found
    alone = screening_sentence(tallies[:1])
    assert f"at most {1 - 0.05 ** (1 / 9):.1%} of them do" in alone
