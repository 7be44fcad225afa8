"""The engine's methods, batch by batch, against the dense twins and against `measure`."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from networks import AlsoFunctional, build, mlp, moved
from torch import nn

from dense_hessians import block_hessian, block_jacobian, positive_form, positive_trace
from hesstune.curvature import CurvatureEngine, Objective, Stopping
from hesstune.curvature.measure import measure
from hesstune.errors import ConfigError, DataError, LayerError, MeasureError

TIGHT = {"rtol": 1e-8, "atol": 1e-14}
ENOUGH = Stopping(tol=0, most=80)
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def made(model, scale=0.3):
    generator = torch.Generator().manual_seed(1)
    for p in model.double().parameters():
        nn.init.normal_(p, 0, 0.5, generator=generator)
    return model, moved(model, scale)


def hessians(model, inputs, targets, names, *loss):
    return {name: block_hessian(model, inputs, targets, name, *loss) for name in names}


@pytest.mark.parametrize("name", ["mlp_gelu", "attention"])
def test_gauss_newton_values_are_the_form_of_the_jacobian(name):
    case = build(name)
    batch = (case.inputs, case.targets)
    weights = torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=torch.float64)
    k = 4 if name == "mlp_gelu" else 3
    engine = CurvatureEngine.of(case.model, case.ref, loss=Objective(class_weights=weights[:k]))
    found = engine.gauss_newton(batch)
    p = logits(case).softmax(1)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    w = weights[case.targets]
    for i, layer in enumerate(engine.names):
        u = block_jacobian(case.model, case.inputs, layer) @ case.ref.difference(case.model, layer).flatten()
        form = torch.einsum("bk,bkl,bl->b", u, middle, u)
        torch.testing.assert_close(found[:, i], w * form, **TIGHT)


def logits(case):
    with torch.no_grad():
        given = case.inputs
        model = case.model.eval()
        return model(given) if isinstance(given, torch.Tensor) else model(**given)


@pytest.mark.parametrize("act", [torch.relu, torch.tanh])
def test_weights_used_in_a_plain_call_and_otherwise_are_measured_in_weight_space(act):
    model, ref = made(AlsoFunctional(act))
    engine = CurvatureEngine.of(model, ref)
    forms = engine.lanczos((X, Y), stopping=ENOUGH)
    traces = engine.trace((X, Y), probes=100)
    assert engine.plan.by("weight_space") == ["a.weight"]
    for i, (layer, dense) in enumerate(hessians(model, X, Y, engine.names).items()):
        truth = positive_form(dense, ref.difference(model, layer))
        torch.testing.assert_close(forms.quadratic[:, i], truth, rtol=1e-6, atol=1e-12)
        off = (traces.value[:, i] - positive_trace(dense)).abs()
        assert (off <= 5 * traces.stderr[:, i] + 1e-12).all()


@pytest.mark.parametrize("name", ["mlp_gelu", "mlp_fifty_classes", "also_functional"])
def test_a_batch_gives_what_measure_gives(name):
    if name == "also_functional":
        model, ref = made(AlsoFunctional(torch.tanh))
        batch = (X, Y)
    else:
        case = build(name)
        model, ref, batch = case.model, case.ref, (case.inputs, case.targets)
    engine = CurvatureEngine.of(model, ref, seed=2)
    m = measure(model, ref, [batch], seed=2)
    full = measure(model, ref, [batch], seed=2, trace=True)
    exact, smooth = engine.exact(batch), engine.plan.by("lanczos", "weight_space")
    torch.testing.assert_close(exact.losses, m.losses, rtol=1e-12, atol=0)
    for forms in [exact, *([engine.lanczos(batch, smooth)] if smooth else [])]:
        columns = engine.columns(forms.names)
        for key in ("quadratic", "lower", "upper"):
            found, wanted = getattr(forms, key), getattr(m, key)[:, columns]
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-15)
    traces = engine.trace(batch)
    torch.testing.assert_close(traces.value, full.trace, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(traces.stderr, full.trace_stderr, rtol=1e-6, atol=1e-12)
    full = measure(model, ref, [batch], seed=2, spectrum=True)
    torch.testing.assert_close(engine.spectrum(batch), full.spectrum, rtol=1e-9, atol=1e-15, equal_nan=True)
    assert [layer.method for layer in engine.plan.layers] == m.methods


class FirstBySequence(nn.Module):
    """Its first layer gets the sequence before the batch dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.tanh(self.a(x.transpose(0, 1))).mean(0))


class Aside(nn.Module):
    """The logits do not depend on its layer `aside`."""

    def __init__(self) -> None:
        super().__init__()
        self.aside, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.aside(x)
        return self.head(x)


def test_a_batch_larger_than_one_example_decides_again():
    model, ref = made(FirstBySequence())
    x = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    engine = CurvatureEngine.of(model, ref)
    engine.lanczos((x[:1], Y[:1]))
    assert engine.plan.layouts["a.weight"] != "second"
    found = engine.lanczos((x, Y), stopping=ENOUGH).quadratic
    assert engine.plan.layouts["a.weight"] == "second"
    dense = hessians(model, x, Y, engine.names)
    truth = torch.stack([positive_form(dense[n], ref.difference(model, n)) for n in engine.names], 1)
    torch.testing.assert_close(found, truth, rtol=1e-6, atol=1e-12)
    plan = engine.plan
    engine.exact((x[:2], Y[:2]))
    assert engine.plan is plan


@pytest.mark.parametrize("layer", ["aside.weight", "*"])
def test_a_layer_that_the_logits_do_not_depend_on_is_zero(layer):
    model, ref = made(Aside())
    engine = CurvatureEngine.of(model, ref, layer)
    forms, traces = engine.lanczos((X, Y)), engine.trace((X, Y))
    assert float(forms.quadratic[:, 0].abs().max()) == float(forms.upper[:, 0].abs().max()) == 0.0
    assert float(traces.value[:, 0].abs().max()) == 0.0
    assert engine.gauss_newton((X, Y))[:, 0].abs().max() == 0


def test_weights_may_change_between_calls_and_directions_stay():
    model, _ = made(mlp(inputs=4, k=3))
    direction = {"0.weight": torch.ones(6, 4, dtype=torch.float64)}
    engine = CurvatureEngine(
        model, direction, loss=partial(F.cross_entropy, reduction="none"), method="lanczos"
    )
    before = engine.lanczos((X, Y), stopping=ENOUGH).quadratic
    with torch.no_grad():
        model[4].weight.mul_(2.0)
    after = engine.lanczos((X, Y), stopping=ENOUGH).quadratic
    truth = positive_form(block_hessian(model, X, Y, "0.weight"), direction["0.weight"])
    torch.testing.assert_close(after[:, 0], truth, rtol=1e-6, atol=1e-12)
    assert not torch.allclose(before, after)


def test_what_does_not_fit_is_refused():
    model, ref = made(mlp(nn.GELU, inputs=4, k=3))
    engine = CurvatureEngine.of(model, ref)
    with pytest.raises(ConfigError, match="no batch was seen yet"):
        _ = engine.plan
    with pytest.raises(LayerError, match=r"'0\.wight'.*did you mean '0\.weight'"):
        engine.lanczos((X, Y), ["0.wight"])
    with pytest.raises(LayerError, match=r"did you mean '0\.weight'"):
        CurvatureEngine(model, {"0.wight": torch.zeros(6, 4)})
    with pytest.raises(ConfigError, match=r"weight's shape, \(6, 4\); got \(4, 6\)"):
        CurvatureEngine(model, {"0.weight": torch.zeros(4, 6)})
    with pytest.raises(LayerError, match="differences is empty"):
        CurvatureEngine(model, {})
    with pytest.raises(ConfigError, match="probes must be at least 2"):
        engine.trace((X, Y), probes=1)
    with pytest.raises(DataError, match=r"6 inputs but targets of shape \(5,\)"):
        engine.exact((X, Y[:5]))
    with pytest.raises(MeasureError, match=r"'0\.weight' cannot be measured exactly"):
        CurvatureEngine.of(model, ref, method="exact").exact((X, Y))
    broken = X.clone()
    broken[2] = torch.inf
    engine.plan_on(X)
    with pytest.raises(MeasureError, match="logits of example 2 are not finite"):
        engine.exact((broken, Y))


class Switched(nn.Module):
    """A network with an activation that an attribute chooses."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.act = nn.Linear(4, 8), nn.Linear(8, 3), torch.relu
        self.calls = 0

    def forward(self, x):
        self.calls += len(x)
        return self.last(self.act(self.first(x)))


def test_a_plan_is_used_again_while_the_network_computes_the_same():
    torch.manual_seed(0)
    model = Switched()
    deltas = {name: torch.ones_like(p) for name, p in model.named_parameters() if p.ndim > 1}
    x = torch.randn(6, 4)

    def planned(inputs, **options):
        model.calls = 0
        return CurvatureEngine(model, deltas, **options).plan_on(inputs)

    first = planned(x)
    new = model.calls
    with torch.no_grad():
        model.first.weight.add_(1.0)
    assert planned(x) == first
    assert model.calls <= 2 < new / 5
    assert planned(x, method="gauss_newton").layers[0].method == "gauss_newton"
    assert planned(x) == first
    assert model.calls == new  # the last plan was for another method
    model.act = torch.tanh
    assert [layer.method for layer in planned(x).layers] == ["lanczos", "exact"]
    assert model.calls > 2
