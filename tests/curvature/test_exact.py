"""The exact path against the dense twin, and against closed forms in many digits."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import PIECEWISE_LINEAR, build, dense_values, mlp, moved
from torch import nn

from dense_hessians import block_hessian, block_jacobian, positive_trace
from hesstune.curvature.capture import differentiable
from hesstune.curvature.engine import CurvatureEngine
from hesstune.curvature.exact import (
    FAILURE_PROBABILITY,
    FormOptions,
    exact_by_forward_mode,
    exact_forms,
    probe_factor,
)
from hesstune.curvature.factor import LogitFactor, TraceSum
from hesstune.curvature.measure import measure
from hesstune.errors import ConfigError, DataError

DOUBLE = {"rtol": 1e-8, "atol": 1e-14}
SINGLE = {"rtol": 1e-4, "atol": 1e-9}


def logits_of(case):
    with torch.no_grad():
        return case.model.eval()(case.inputs)


def covariances(logits):
    p = logits.softmax(1)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]


@pytest.mark.parametrize("name", PIECEWISE_LINEAR)
def test_every_layer_and_example_matches_the_dense_twin_in_either_mode_and_precision(name):
    case = build(name)
    m = measure(case.model, case.ref, [(case.inputs, case.targets)], trace=True, spectrum=True)
    forms, traces, spectra = dense_values(case)
    assert m.exact == [True] * len(m.names)
    assert m.names == case.ref.layers()
    torch.testing.assert_close(m.quadratic, forms, **DOUBLE)
    torch.testing.assert_close(m.trace, traces, **DOUBLE)
    for i, dense in enumerate(spectra):
        ours = m.spectrum[:, i]
        kept = min(ours.shape[1], dense.shape[1])
        torch.testing.assert_close(ours[:, :kept], dense[:, :kept], rtol=1e-7, atol=1e-12)
        assert float(dense[:, kept:].abs().sum()) < 1e-12  # nothing is left out
    torch.testing.assert_close(m.losses, F.cross_entropy(logits_of(case), case.targets, reduction="none"))
    names, engine = case.ref.layers(), CurvatureEngine.of(case.model, case.ref)
    engine.plan_on(case.inputs)
    with differentiable(case.model, names):
        captured = engine.capture(case.inputs, names)
        backward = exact_forms(captured, names, engine.differences)
        forward = exact_by_forward_mode(
            lambda name, on_output: engine.capture(case.inputs, [name], on_output).logits,
            names,
            engine.differences,
        )
    torch.testing.assert_close(forward.quadratic, backward.quadratic, **DOUBLE)
    assert (backward.passes, forward.passes) == (captured.logits.shape[1] - 1, len(names))
    case.model.float()
    options = {"trace": True, "trace_passes": 60, "method": "exact"}
    m = measure(case.model, case.ref, [(case.inputs.float(), case.targets)], **options)
    torch.testing.assert_close(m.quadratic, forms, **SINGLE)
    torch.testing.assert_close(m.trace, traces, **SINGLE)


def test_the_dense_twin_is_the_textbook_hessian_and_the_gauss_newton_form_of_a_relu_network():
    case = build("cnn")
    covariance = covariances(logits_of(case))
    for name in case.ref.layers():
        jacobian = block_jacobian(case.model, case.inputs, name)
        found = block_hessian(case.model, case.inputs, case.targets, name)
        torch.testing.assert_close(found, jacobian.mT @ covariance @ jacobian, rtol=1e-9, atol=1e-12)
    linear, x = nn.Linear(3, 4, bias=False).double(), torch.randn(5, 3, dtype=torch.float64)
    pairs = zip(covariances(linear(x)), x, strict=True)
    expected = torch.stack([torch.kron(c, torch.outer(a, a)) for c, a in pairs])
    torch.testing.assert_close(block_hessian(linear, x, torch.tensor([0, 1, 2, 3, 0]), "weight"), expected)


@pytest.mark.parametrize("gap", [0.0, 18.0, 60.0, 300.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_saturated_logits_match_a_closed_form_in_many_digits(gap, dtype):
    # At 1 − p = 1e-8 and below autodiff's second derivative is wrong; here f = Wx + b is linear, so
    # vᵀHv = Σ_k p_k (u_k − ū)² with u = (W − W⁽ˢ⁾)x, and mpmath can take any number of digits.
    generator = torch.Generator().manual_seed(3)
    model = nn.Linear(4, 5).to(dtype)
    x = torch.randn(6, 4, generator=generator, dtype=torch.float64).to(dtype)
    ref = moved(model, 0.3)
    with torch.no_grad():
        model.bias[2] += gap
    m = measure(model, ref, [(x, torch.full((6,), 2))], method="exact", trace=True)
    weight, bias = model.weight.detach().double().numpy(), model.bias.detach().double().numpy()
    delta = ref.difference(model, "weight").double().numpy()
    forms, traces = [], []
    with mpmath.workdps(250):
        for row in x.double().numpy():
            f = [mpmath.mpf(float(b)) + _dot(w, row) for w, b in zip(weight, bias, strict=True)]
            forms.append(_variance(f, [_dot(d, row) for d in delta]))
            p = _softmax(f)
            traces.append(float(sum(a * (1 - a) for a in p) * _dot(row, row)))
    tolerance = {"rtol": 1e-8 if dtype == torch.float64 else 1e-4, "atol": 0.0}
    torch.testing.assert_close(m.quadratic[:, 0], torch.tensor(forms, dtype=torch.float64), **tolerance)
    torch.testing.assert_close(m.trace[:, 0], torch.tensor(traces, dtype=torch.float64), **tolerance)


def _dot(a, b):
    return sum(mpmath.mpf(float(x)) * mpmath.mpf(float(y)) for x, y in zip(a, b, strict=True))


def _softmax(logits):
    e = [mpmath.exp(mpmath.mpf(f) - mpmath.mpf(max(logits))) for f in logits]
    return [value / sum(e) for value in e]


def _variance(logits, u):
    with mpmath.workdps(250):
        p = _softmax(logits)
        mean = sum(a * b for a, b in zip(p, u, strict=True))
        return float(sum(a * (b - mean) ** 2 for a, b in zip(p, u, strict=True)))


@pytest.mark.parametrize("gap", [10.0, 40.0])
def test_fitted_examples_of_a_deep_network(gap):
    # Scaling the head saturates p; the twin is built from J, which has no cancellation, by Λ in many digits.
    case = build("mlp")
    with torch.no_grad():
        case.model[4].weight.mul_(gap)
    m = measure(case.model, case.ref, [(case.inputs, case.targets)], method="exact")
    logits = logits_of(case).tolist()
    for i, name in enumerate(m.names):
        v = case.ref.difference(case.model, name).flatten()
        u = (block_jacobian(case.model, case.inputs, name) @ v).tolist()
        expected = torch.tensor([*map(_variance, logits, u)], dtype=torch.float64)
        torch.testing.assert_close(m.quadratic[:, i], expected, rtol=1e-8, atol=0)


def test_the_factor_reproduces_the_softmax_covariance():
    logits = torch.randn(7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4
    factor = LogitFactor(logits)
    columns = [factor.seed(rank) for rank in range(factor.columns)]
    b = torch.stack([weight.sqrt()[:, None] * seed for seed, weight in columns], 2)
    torch.testing.assert_close(b @ b.mT, covariances(logits), rtol=1e-12, atol=1e-15)


def test_few_layers_of_many_classes_take_forward_mode():
    case = build("mlp_fifty_classes")
    m = measure(case.model, case.ref, [(case.inputs, case.targets)], layers="2.*")
    torch.testing.assert_close(m.quadratic[:, 0], dense_values(case)[0][:, 1], **DOUBLE)


def _losses(k):
    rng = np.random.default_rng(0)
    noise = 0.6 * np.eye(k) + 0.4 * rng.dirichlet(np.ones(k), size=k)
    inverse = torch.as_tensor(np.linalg.inv(noise))
    weights = torch.linspace(0.5, 2.0, k, dtype=torch.float64)
    weighted = {"weight": weights, "label_smoothing": 0.1, "reduction": "none"}
    return [
        (
            {"loss": "consistent", "noise_matrix": noise},
            lambda f, y: -(inverse[y] * f.log_softmax(1)).sum(1),
        ),
        (
            {"label_smoothing": 0.2},
            lambda f, y: F.cross_entropy(f, y, reduction="none", label_smoothing=0.2),
        ),
        (
            {"class_weights": weights, "label_smoothing": 0.1},
            lambda f, y: F.cross_entropy(f, y, **weighted),
        ),
    ]


@pytest.mark.parametrize("kind", range(3))
def test_mixtures_of_cross_entropies_stay_exact(kind):
    case = build("mlp")
    options, loss = _losses(4)[kind]
    forms, traces, _ = dense_values(case, loss)
    m = measure(case.model, case.ref, [(case.inputs, case.targets)], trace=True, **options)
    assert all(m.exact)
    torch.testing.assert_close(m.quadratic, forms, **DOUBLE)
    torch.testing.assert_close(m.trace, traces, **DOUBLE)
    torch.testing.assert_close(m.losses, loss(logits_of(case), case.targets))


def test_soft_targets_stay_exact_and_a_negative_total_weight_leaves_no_positive_part():
    case = build("mlp")
    case.targets = torch.rand(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    forms, _, _ = dense_values(case, lambda f, t: F.cross_entropy(f, t, reduction="none"))
    m = measure(case.model, case.ref, [(case.inputs, case.targets)])
    torch.testing.assert_close(m.quadratic, forms, **DOUBLE)
    m = measure(case.model, case.ref, [(case.inputs, -case.targets)], trace=True)
    assert float(m.quadratic.abs().max()) == float(m.trace.abs().max()) == 0.0


def test_any_other_loss_goes_through_the_smooth_path():
    case = build("mlp")

    def brier(f, y):
        return (f.softmax(1) - F.one_hot(y, 4)).square().sum(1)

    forms, _, _ = dense_values(case, brier)
    m = measure(case.model, case.ref, [(case.inputs, case.targets)], loss=brier, tol=1e-7, steps=40)
    assert m.methods == ["lanczos"] * 3
    torch.testing.assert_close(m.quadratic, forms, rtol=1e-6, atol=1e-10)


def _sure(classes, depth=1):
    """Return a network of many classes with confident predictions, its reference, and a batch."""
    generator = torch.Generator().manual_seed(5)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        inner = [m for _ in range(depth) for m in (nn.Linear(8, 8), nn.ReLU())]
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), *inner, nn.Linear(8, classes)).double()
    x = torch.randn(20, 6, generator=generator, dtype=torch.float64)
    ref = moved(model, 0.3)
    with torch.no_grad():
        model[-1].weight.mul_(9 / float(model(x).std()))
    return model, ref, (x, torch.zeros(20, dtype=torch.long))


def closed(model, ref, batch, **options):
    """Return the closed forms from backward passes."""
    engine = CurvatureEngine.of(model, ref)
    engine.plan_on(batch[0])
    with differentiable(model, engine.names):
        captured = engine.capture(batch[0], engine.names)
        return exact_forms(captured, engine.names, engine.differences, FormOptions(**options))


def test_skipped_classes_are_covered_by_the_bounds():
    model, ref, batch = _sure(60, depth=12)  # forward mode would need 14 products, for as long as 28 passes
    full = measure(model, ref, [batch], method="exact", skip_classes=0, trace=True, trace_passes=59)
    assert all(full.exact)
    forms = CurvatureEngine.of(model, ref, method="exact").exact(batch, skip_classes=0.05, trace=True)
    assert forms.passes < 45  # of 59
    assert bool((forms.lower <= full.quadratic * (1 + 1e-9)).all())
    inside = full.quadratic <= forms.upper * (1 + 1e-9)
    assert float(inside.double().mean()) >= 0.95  # 99 % an entry, by probes that the entries share
    torch.testing.assert_close(forms.quadratic, full.quadratic, rtol=0.05, atol=0)
    torch.testing.assert_close(forms.trace.mean(0), full.trace.mean(0), rtol=0.1, atol=0)
    skipped = measure(model, ref, [batch], method="exact", skip_classes=0.05, trace=True)
    assert not any(skipped.exact)  # an estimate is not called exact
    torch.testing.assert_close(skipped.quadratic, forms.quadratic)
    assert float(skipped.trace_stderr.min()) > 0
    (note,) = [note for note in skipped.notes if "were skipped" in note]
    assert f"{forms.passes / 59:.0%} of the passes" in note
    alone = closed(model, ref, batch, tol=0.05)
    assert alone.trace is None
    assert alone.passes <= forms.passes
    torch.testing.assert_close(alone.quadratic, full.quadratic, rtol=0.05, atol=0)
    default = measure(model, ref, [batch], trace=True)
    assert not any(default.exact)
    torch.testing.assert_close(default.quadratic, full.quadratic, rtol=0.01, atol=0)
    assert bool((default.upper <= default.lower * 1.01 * (1 + 1e-9)).all())
    model, ref, batch = _sure(10)  # few classes are never skipped
    few = measure(model, ref, [batch], trace=True)
    assert all(few.exact)
    assert torch.equal(few.quadratic, CurvatureEngine.of(model, ref).exact(batch, trace=True).quadratic)


def test_the_bound_on_skipped_classes_holds_over_repeated_looks():
    """All looks see the same probes: the chance that any of them fails is at most 1 %."""
    rng = np.random.default_rng(0)
    trials, looks, classes = 20_000, 8, 60
    roots = np.sqrt(0.8 ** np.arange(classes))
    normals = rng.standard_normal((trials, 4, classes))
    failed = np.zeros(trials, dtype=bool)
    for look in range(looks):
        left = roots[4 * look :]  # of the classes that are left; the truth is the sum of squares
        squares = (normals[:, :, 4 * look :] @ left) ** 2
        failed |= probe_factor(look) * squares.mean(1) < (left**2).sum()
    assert failed.mean() <= FAILURE_PROBABILITY


def _flat(classes):
    """Return a network of many classes, all of them probable, its reference, and a batch."""
    model = mlp(nn.ReLU, 6, 8, classes).double()
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return model, moved(model, 0.3), (x, torch.zeros(12, dtype=torch.long))


@pytest.mark.parametrize("make", [_sure, _flat])
@pytest.mark.parametrize("trace_passes", [2, 5, 12])
def test_traces_of_many_classes_are_estimated_without_bias_and_with_their_error(make, trace_passes):
    model, ref, batch = make(20)
    exact = measure(model, ref, [batch], skip_classes=0, trace=True, trace_passes=19)
    dense = positive_trace(block_hessian(model, *batch, "2.weight"))
    torch.testing.assert_close(exact.trace[:, 1], dense, **DOUBLE)
    assert float(exact.trace_stderr.max()) == 0.0
    found = [closed(model, ref, batch, trace=True, trace_passes=trace_passes, seed=s) for s in range(200)]
    assert found[0].passes == 19  # the probes of the trace are among the passes of the forms
    for forms in found[:3]:
        torch.testing.assert_close(forms.quadratic, exact.quadratic, **DOUBLE)
    traces = torch.stack([forms.trace for forms in found])
    spread = traces.std(0)
    assert bool(((traces.mean(0) - exact.trace).abs() <= 4.5 * spread / 200**0.5 + 1e-12).all())
    errors = torch.stack([forms.trace_stderr for forms in found]).square().mean(0).sqrt()
    assert 0.7 < float((errors / spread).nanmedian()) < 1.4


def _terms(traces, matrix, weight):
    """Take all columns of a trace of Bᵀ W J Jᵀ Wᵀ B; return the terms, (columns, B)."""
    found = []
    for index in range(matrix):
        seed, scale = traces.column(index)
        found.append(scale * (seed.double() @ weight).square().sum(1))
    return torch.stack(found)


@pytest.mark.parametrize("spread", [0.1, 5.0])
def test_the_columns_of_a_trace_are_orthonormal_and_the_first_ones_lead(spread):
    generator = torch.Generator().manual_seed(1)
    logits = spread * torch.randn(7, 40, generator=generator, dtype=torch.float64)
    low_rank = torch.randn(40, 5, generator=generator, dtype=torch.float64) * torch.tensor([9.0, 7, 5, 3, 1])
    weight = low_rank @ torch.randn(5, 30, generator=generator, dtype=torch.float64)
    factor = LogitFactor(logits)
    p = torch.softmax(logits, 1)
    hessians = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    values = torch.linalg.eigvalsh(weight.mT @ hessians @ weight).flip(1)
    torch.testing.assert_close(factor.trace(weight), values.sum(1), **DOUBLE)
    u, c = torch.randn(7, 40, generator=generator).double(), torch.randn(7, 39, generator=generator).double()
    seed, scale = factor.combination(0, c)
    torch.testing.assert_close((factor.adjoint(u) * c).sum(1), scale.sqrt() * (seed * u).sum(1), **DOUBLE)
    terms = _terms(TraceSum(factor, 10, head=weight), 39, weight)
    torch.testing.assert_close(terms.sum(0), values.sum(1), **DOUBLE)
    assert bool((terms[:5].sum(0) > 0.99 * values.sum(1)).all())


def test_without_leading_directions_all_columns_of_a_trace_are_probes():
    generator = torch.Generator().manual_seed(1)
    factor = LogitFactor(0.01 * torch.randn(7, 300, generator=generator, dtype=torch.float64))
    flat = torch.linalg.qr(torch.randn(300, 300, generator=generator, dtype=torch.float64))[0]
    few = TraceSum(factor, 12, head=flat)
    numbers = TraceSum(factor, 12, head=flat, numbers=[3] * 7)
    assert not torch.equal(few.column(0)[0], numbers.column(0)[0])  # drawn for each example
    terms = _terms(few, 12, flat)
    for term in terms:
        few.take(term[:, None])
    trace, error = few.estimate()
    truth = factor.trace(flat)
    torch.testing.assert_close(trace[:, 0], 299 * terms.mean(0), **DOUBLE)
    torch.testing.assert_close(error[:, 0], 299 * terms.std(0) * ((1 - 12 / 299) / 12) ** 0.5, **DOUBLE)
    torch.testing.assert_close(trace[:, 0], truth, rtol=0.05, atol=0)


def test_leading_directions_make_traces_of_many_classes_more_precise():
    model, ref, batch = _flat(300)
    engine = CurvatureEngine.of(model, ref)
    exact = engine.exact(batch, trace=True, trace_passes=299).trace
    squares = {}
    for names in (None, ["0.weight", "2.weight"]):  # without the head only the most probable classes lead
        found = [
            engine.exact(batch, names, trace=True, numbers=12 * draw + torch.arange(12)).trace[:, :2]
            for draw in range(20)
        ]
        squares[names is None] = (torch.stack(found) - exact[:, :2]).mean(1).square().mean()
    assert squares[True] < 0.3 * squares[False]


def test_a_trace_of_a_thousand_classes_takes_twelve_passes():
    model, ref, batch = _flat(1000)
    exact = measure(model, ref, [batch], skip_classes=0, trace=True, trace_passes=999)
    forms = CurvatureEngine.of(model, ref).exact(batch, trace=True)
    assert forms.passes == 3 + 12  # a forward-mode product for each layer, and the trace
    torch.testing.assert_close(forms.quadratic, exact.quadratic, **DOUBLE)
    torch.testing.assert_close(forms.trace.mean(0), exact.trace.mean(0), rtol=0.15, atol=0)
    engine = CurvatureEngine.of(model, ref)
    draws = [engine.exact(batch, trace=True, numbers=12 * draw + torch.arange(12)) for draw in range(1, 9)]
    away = torch.stack([draw.trace - exact.trace for draw in draws]).mean((0, 1))
    stated = torch.stack([draw.trace_stderr for draw in draws]).square().sum((0, 1)).sqrt() / (8 * 12)
    assert bool((away.abs() <= 4 * stated).all())
    # An example's probes are its own, whatever batch it is in.
    parts = measure(model, ref, [(batch[0][:5], batch[1][:5]), (batch[0][5:], batch[1][5:])], trace=True)
    torch.testing.assert_close(parts.trace, forms.trace, **DOUBLE)
    (note,) = [note for note in parts.notes if "traces in closed form" in note]
    assert "standard error" in note


@pytest.mark.parametrize("size", [7, 8])
def test_gradients_of_strided_depthwise_convolutions_are_those_of_autograd(size):
    conv = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4, bias=False)
    model = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)).double()
    x = torch.randn(5, 4, size, size, dtype=torch.float64)
    model(x)
    engine = CurvatureEngine.of(model, moved(model, 0.1))
    engine.plan_on(x)
    with differentiable(model, engine.names):
        layer = engine.capture(x, engine.names).layers["0.weight"]
    assert layer.is_depthwise()
    gradient = torch.randn(layer.shape, dtype=torch.float64)
    for row, found in enumerate(layer.pullback(gradient)):
        wanted = torch.autograd.grad(conv(x[row : row + 1]), conv.weight, gradient[row : row + 1])[0]
        torch.testing.assert_close(found, wanted, **DOUBLE)


def test_a_layer_that_did_not_move_is_zero():
    case = build("cnn")
    with torch.no_grad():
        case.model.stem.weight.copy_(case.ref["stem.weight"])
    m = measure(case.model, case.ref, [(case.inputs, case.targets)], trace=True)
    assert not m.quadratic.isnan().any()
    assert float(m.quadratic[:, 0].abs().max()) == 0.0
    assert float(m.trace[:, 0].min()) > 0


@pytest.mark.parametrize(
    ("options", "targets", "error", "text"),
    [
        ({"loss": "consistent"}, [0, 1], ConfigError, "noise matrix"),
        ({"noise_matrix": np.eye(4)}, [0, 1], ConfigError, "go together"),
        ({"loss": "consistent", "noise_matrix": np.eye(3)}, [0, 1], ConfigError, "3 classes"),
        ({"loss": "consistent", "noise_matrix": np.ones((4, 4)) / 4}, [0, 1], ConfigError, "singular"),
        ({"loss": "cross_entrpy"}, [0, 1], ConfigError, "did you mean 'cross_entropy'"),
        ({"label_smoothing": 1.5}, [0, 1], ConfigError, "label_smoothing"),
        ({}, [0, 4], DataError, "got 4 at index 1"),
        ({}, [0.0, 1.0], DataError, "class indices"),
        ({"loss": F.cross_entropy}, [0, 1], ConfigError, "one value an example"),
    ],
)
def test_losses_and_targets_that_do_not_fit_are_refused(options, targets, error, text):
    model = mlp()
    with pytest.raises(error, match=text):
        measure(model, moved(model, 0.1), [(torch.ones(2, 5), torch.tensor(targets))], **options)
