"""The screened maximum against the maximum of all dense values, and what its record claims."""

from __future__ import annotations

import math

import pytest
import torch
from networks import Case, build, mlp, moved
from torch import nn

from hesstune.curvature.dense import block_hessian, positive_form
from hesstune.curvature.engine import CurvatureEngine
from hesstune.curvature.measure import measure
from hesstune.curvature.smooth.ranking import Ranking
from hesstune.curvature.smooth.screening import Screening, Status, screen_maximum
from hesstune.curvature.smooth.stopping import Stopping
from hesstune.errors import ConfigError
from hesstune.reference import Reference

PROVED = Stopping(tol=1e-6, most=200)


def deltas_of(case: Case) -> dict[str, torch.Tensor]:
    return {name: case.ref.difference(case.model, name) for name in case.ref.layers()}


def many(n: int = 40, seed: int = 0) -> Case:
    """A GELU MLP with n examples, some of them confidently wrong."""
    torch.manual_seed(seed)
    model = mlp(nn.GELU).double()
    ref = Reference.of(model)
    moved(model, 0.5)
    x, y = torch.randn(n, 5, dtype=torch.float64), torch.randint(4, (n,))
    return Case(model, ref, 2 * x, y)


def screened(case: Case, deltas=None, ranking=None, **options) -> Screening:
    """The maximum over one batch, by the engine's ranking unless another one is given."""
    engine = CurvatureEngine(case.model, deltas_of(case) if deltas is None else deltas)
    engine.plan_on(case.inputs)
    return screen_maximum(
        engine.rank((case.inputs, case.targets)) if ranking is None else ranking,
        engine.differences,
        lambda e, names: engine.source((case.inputs[e : e + 1], case.targets[e : e + 1]), names),
        **options,
    )


def dense(case: Case) -> torch.Tensor:
    """v_iᵀ H_i⁺ v_i of every example and layer, (n, L)."""
    columns = [
        positive_form(block_hessian(case.model, case.inputs, case.targets, name), delta)
        for name, delta in deltas_of(case).items()
    ]
    return torch.stack(columns, 1)


@pytest.mark.parametrize("seed", range(4))
def test_trying_every_example_proves_the_maximum(seed: int):
    case = many(seed=seed)
    truth = dense(case)
    found = screened(case, stopping=PROVED, safety=math.inf)
    torch.testing.assert_close(found.value, truth.amax(0), rtol=1e-5, atol=1e-12)
    assert torch.equal(found.argmax, truth.argmax(0))
    assert found.counts()["ranked"] == 0
    assert found.exceeding_share == 0.0
    assert bool((found.lower <= truth.amax(0) * (1 + 1e-9)).all())


@pytest.mark.parametrize("seed", range(4))
def test_the_default_finds_the_maximum_with_few_products(seed: int):
    case = many(60, seed=seed)
    truth = dense(case)
    found = screened(case)
    torch.testing.assert_close(found.value, truth.amax(0), rtol=0.03, atol=1e-12)
    refined = found.status == Status.REFINED
    torch.testing.assert_close(found.quadratic[refined], truth[refined], rtol=0.05, atol=1e-10)
    assert int(found.products.sum()) < 60 * 3 * 4  # four products a pair would be a coarse full matrix


@pytest.mark.parametrize("seed", range(4))
def test_what_is_proved_below_the_maximum_is_below_it(seed: int):
    case = many(seed=seed)
    truth = dense(case)
    found = screened(case, check=10)
    proved = found.status == Status.PROVED
    assert bool(proved.any())
    assert bool((truth <= truth.amax(0))[proved].all())
    assert bool((truth < found.value.expand_as(truth) * (1 + 1e-9))[proved].all())
    # The upper bound covers every pair that was proved or refined.
    sure = proved | (found.status == Status.REFINED)
    assert bool((torch.where(sure, truth, 0.0).amax(0) <= found.upper * (1 + 1e-9)).all())


def test_the_random_check_finds_what_the_ranking_hides():
    case = many(30)
    name, delta = next(iter(deltas_of(case).items()))
    truth = dense(case)[:, :1]
    # A ranking that calls the truly largest examples hopeless.
    misled = Ranking(
        torch.zeros_like(truth), 1e4 ** -truth[:, 0].argsort().argsort().double(), torch.zeros(30)
    )
    blind = screened(case, {name: delta}, misled, check=0)
    checked = screened(case, {name: delta}, misled, check=5)
    assert bool((blind.value <= truth.amax(0) * 1.03).all())
    assert blind.exceeding_share == 1.0  # nothing was drawn, so nothing is known of the ranked ones
    assert checked.exceeded > 0
    assert float(checked.value.sum()) > float(blind.value.sum())


def test_a_layer_that_has_not_moved_is_zero_without_a_product():
    case = many(10)
    deltas = deltas_of(case)
    first = next(iter(deltas))
    deltas[first] = torch.zeros_like(deltas[first])
    found = screened(case, deltas)
    assert float(found.value[0]) == 0.0
    assert int(found.products[:, 0].sum()) == 0
    assert float(found.value[1:].min()) > 0


def test_statuses_sum_up_and_the_summary_says_them():
    case = many(30)
    found: Screening = screened(case)
    counts = found.counts()
    assert sum(counts.values()) == 30 * 3
    text = found.summary()
    for word in ("refined", "proved", "ranked"):
        assert str(counts[word]) in text
    assert (found.products == 0).sum() == counts["ranked"]
    engine = CurvatureEngine.of(case.model, case.ref)
    parts = torch.arange(30).split(3)
    ranking = Ranking.joined([engine.rank((case.inputs[i], case.targets[i])) for i in parts])
    torch.testing.assert_close(screened(case, ranking=ranking).value, found.value)


def test_wrong_arguments_are_refused():
    case = many(4)
    with pytest.raises(ConfigError, match="safety must be at least 1"):
        screened(case, safety=0.5)
    with pytest.raises(ConfigError, match="no examples"):
        screened(case, ranking=Ranking(torch.zeros(0, 3), torch.zeros(0), torch.zeros(0)))


@pytest.mark.slow
def test_the_random_sample_gives_a_mean_with_an_honest_error():
    case = many(200)
    truth = dense(case)
    batches = [(case.inputs, case.targets)]
    scores = []
    for seed in range(12):
        m = measure(case.model, case.ref, batches, examples="max", mean_sample=20, seed=seed)
        smooth = [not exact for exact in m.exact]
        # As an estimate of these examples' mean; `mean_stderr` also counts their own sampling.
        scores.append(((m.mean - truth.mean(0)) / m.mean_stderr)[smooth])
        assert m.mean_stderr[smooth].isfinite().all()
    scores = torch.stack(scores)
    assert float(scores.abs().max()) < 5
    assert 0.2 < float(scores.std()) < 1.5
    without = measure(case.model, case.ref, batches, examples="max")
    assert without.mean[smooth].isnan().all()


def test_exact_traces_alone_leave_smooth_layers_untold():
    case = build("mlp_gelu")
    batches = [(case.inputs, case.targets)]
    m = measure(case.model, case.ref, batches, examples="max", trace="exact")
    full = measure(case.model, case.ref, batches, trace=True)
    exact = torch.tensor(m.exact)
    torch.testing.assert_close(m.trace[:, exact], full.trace[:, exact])
    assert m.trace[:, ~exact].isnan().all()
    rows = m.to_dict()["layers"]
    assert [row["trace_mean"] is None for row in rows] == (~exact).tolist()
    with pytest.raises(ConfigError, match="mean_sample must be 0, or at least 2"):
        measure(case.model, case.ref, batches, examples="max", mean_sample=1)
