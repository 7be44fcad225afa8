"""`method="gauss_newton"`: vᵀGv, traces, spectra and the joint form against dense Jacobians in float64."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from networks import PIECEWISE_LINEAR, AlsoFunctional, Case, build, moved
from torch import nn

from dense_hessians import block_jacobian
from hesstune.curvature import CurvatureEngine
from hesstune.curvature.measure import measure
from hesstune.curvature.result import Measure
from hesstune.errors import ConfigError, MeasureError
from hesstune.forward import evaluating, logits_of
from hesstune.reference import Reference

TIGHT = {"rtol": 1e-8, "atol": 1e-13}
GN = {"method": "gauss_newton"}


class Smooth(nn.Module):
    """Convolutions with batch norm and GELU, then layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.layer_norm = nn.Conv2d(4, 4, 3, stride=2, groups=2), nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.second(F.gelu(self.norm(self.first(x)))))
        return self.head(self.layer_norm(x.mean((2, 3))))


class Shared(nn.Module):
    """One weight in two places, and a layer of its own before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.twice(torch.tanh(self.twice(torch.tanh(self.first(x)))))))


def made(model, inputs, classes=3):
    generator = torch.Generator().manual_seed(1)
    for p in model.double().parameters():
        nn.init.normal_(p, 0, 0.5, generator=generator)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    ref = moved(model, 0.3)
    x = torch.randn(*inputs, dtype=torch.float64, generator=generator)
    return Case(model, ref, x, torch.randint(classes, (len(x),), generator=generator))


def case_of(name):
    built = {
        "smooth": lambda: made(Smooth(), (5, 2, 6, 6)),
        "shared": lambda: made(Shared(), (5, 4)),
        "functional": lambda: made(AlsoFunctional(torch.tanh), (5, 4)),
    }
    return built[name]() if name in built else build(name)


def twin(case, weights=None):
    """Forms (B, L), traces (B, L), eigenvalues [(B, d)], and the joint form (B,), from dense Jacobians."""
    with torch.no_grad(), evaluating(case.model):
        p = logits_of(case.model, case.inputs).softmax(1)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    if weights is not None:
        middle = middle * weights[:, None, None]
    forms, traces, spectra, total = [], [], [], 0
    for name in case.ref.layers():
        jacobian = block_jacobian(case.model, case.inputs, name)
        u = jacobian @ case.ref.difference(case.model, name).flatten()
        total = total + u
        matrix = jacobian.mT @ middle @ jacobian
        forms.append(torch.einsum("bk,bkl,bl->b", u, middle, u))
        traces.append(matrix.diagonal(dim1=1, dim2=2).sum(1))
        spectra.append(torch.linalg.eigvalsh(matrix).flip(1))
    return (
        torch.stack(forms, 1),
        torch.stack(traces, 1),
        spectra,
        torch.einsum("bk,bkl,bl->b", total, middle, total),
    )


def rows(case, index):
    x = case.inputs
    part = x[index] if isinstance(x, torch.Tensor) else {key: value[index] for key, value in x.items()}
    return part, case.targets[index]


EVERY = ["mlp_gelu", "attention", "bert", "gpt2", "torch_encoder_sequence_first", "smooth"]
APART = ["shared", "functional"]


@pytest.mark.parametrize("name", [*EVERY, *APART])
def test_forms_traces_spectra_and_the_joint_form_are_those_of_dense_jacobians(name):
    case = case_of(name)
    forms, traces, spectra, joint = twin(case)
    m = measure(case.model, case.ref, [(case.inputs, case.targets)], trace=True, spectrum=True, **GN)
    assert set(m.methods) == {"gauss_newton"}
    assert m.quantity == "gauss_newton"
    assert not any(m.exact)
    torch.testing.assert_close(m.quadratic, forms, **TIGHT)
    torch.testing.assert_close(m.trace, traces, **TIGHT)
    torch.testing.assert_close(m.more["joint"][:, 0], joint, **TIGHT)
    assert bool((m.quadratic >= 0).all())
    assert bool((m.more["joint"] >= 0).all())
    assert float(m.trace_stderr.max()) == 0.0
    for layer, dense in enumerate(spectra):
        count = min(m.spectrum.shape[2], dense.shape[1])
        torch.testing.assert_close(m.spectrum[:, layer, :count], dense[:, :count], rtol=1e-7, atol=1e-12)
    # The sum over layers moved together is at most L times the sum of their own forms (Cauchy–Schwarz).
    assert bool((m.more["joint"][:, 0] <= len(m.names) * m.quadratic.sum(1) * (1 + 1e-9)).all())
    without = measure(case.model, case.ref, [(case.inputs, case.targets)], **GN)
    torch.testing.assert_close(without.quadratic, m.quadratic, **TIGHT)
    torch.testing.assert_close(without.more["joint"], m.more["joint"], **TIGHT)
    assert without.trace is None


@pytest.mark.parametrize("name", APART)
def test_weights_used_in_other_ways_are_measured_example_by_example_and_said(name):
    case = case_of(name)
    m = measure(case.model, case.ref, [(case.inputs, case.targets)], **GN)
    reasons = dict(zip(m.names, m.reasons, strict=True))
    said = [layer for layer, reason in reasons.items() if "example by example" in reason]
    assert said == {"shared": ["twice.weight"], "functional": ["a.weight"]}[name]
    engine = CurvatureEngine.of(case.model, case.ref)
    found = engine.gauss_newton((case.inputs, case.targets))
    torch.testing.assert_close(found, m.quadratic, **TIGHT)


@pytest.mark.parametrize("name", PIECEWISE_LINEAR)
def test_it_equals_the_exact_path_on_piecewise_linear_networks(name):
    case = build(name)
    options = {"trace": True, "spectrum": True, "skip_classes": 0.0}
    exact = measure(case.model, case.ref, [(case.inputs, case.targets)], **options)
    m = measure(case.model, case.ref, [(case.inputs, case.targets)], **GN, **options)
    assert set(exact.methods) == {"exact"}
    for key in ("quadratic", "trace", "spectrum", "losses"):
        torch.testing.assert_close(getattr(m, key), getattr(exact, key), **TIGHT)
    assert m.hessian_distance(100) == pytest.approx(exact.hessian_distance(100))


@pytest.mark.parametrize("name", ["bert", "smooth", "shared"])
def test_batch_size_and_order_do_not_matter_and_forms_are_per_example(name):
    case = case_of(name)
    options = {**GN, "trace": True, "skip_classes": 0.0}
    whole = measure(case.model, case.ref, [(case.inputs, case.targets)], **options)
    n = len(case.targets)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(3))
    one, two = rows(case, order[:1]), rows(case, order[1:])
    split = measure(case.model, case.ref, [one, two], **options)
    small = measure(case.model, case.ref, [rows(case, order)], memory_mib=whole_mib(case, options), **options)
    for other in (split, small):
        for key in ("quadratic", "trace", "losses"):
            torch.testing.assert_close(getattr(other, key), getattr(whole, key)[order], **TIGHT)
        torch.testing.assert_close(other.more["joint"], whole.more["joint"][order], **TIGHT)


def whole_mib(case, options):
    """The least memory budget."""
    with pytest.raises(MeasureError) as refused:
        measure(case.model, case.ref, [(case.inputs, case.targets)], memory_mib=1e-6, **options)
    return float(str(refused.value).split("give memory_mib=")[1].split()[0])


@pytest.mark.parametrize("name", ["mlp_gelu", "bert"])
def test_it_scales_with_the_distance_squared_and_the_weight_of_the_loss(name):
    case = build(name)
    batch = (case.inputs, case.targets)
    m = measure(case.model, case.ref, [batch], **GN)
    twice = {n: 2 * case.ref.difference(case.model, n) for n in case.ref.layers()}
    doubled = CurvatureEngine(case.model, twice, **GN).exact(batch).quadratic
    torch.testing.assert_close(doubled, 4 * m.quadratic, **TIGHT)
    k = 4 if name == "mlp_gelu" else 3
    weights = torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=torch.float64)[:k]
    weighted = measure(case.model, case.ref, [batch], class_weights=weights, trace=True, **GN)
    forms, traces, _, joint = twin(case, weights[case.targets])
    torch.testing.assert_close(weighted.quadratic, forms, **TIGHT)
    torch.testing.assert_close(weighted.trace, traces, **TIGHT)
    torch.testing.assert_close(weighted.more["joint"][:, 0], joint, **TIGHT)
    # G does not depend on the labels, and its values depend on label smoothing and soft targets by no factor.
    soft = F.one_hot(case.targets, k).double() * 0.8 + 0.2 / k
    for targets in ((case.targets + 1) % k, soft):
        other = measure(case.model, case.ref, [(case.inputs, targets)], **GN)
        torch.testing.assert_close(other.quadratic, m.quadratic, **TIGHT)


def test_many_classes_are_skipped_within_the_bounds_or_taken_forward():
    case = build("mlp_fifty_classes")
    case.model[1] = nn.GELU()
    forms, traces, _, joint = twin(case)
    batch = (case.inputs, case.targets)
    forward = measure(case.model, case.ref, [batch], skip_classes=0.0, **GN)  # three products, not 49 passes
    torch.testing.assert_close(forward.quadratic, forms, **TIGHT)
    torch.testing.assert_close(forward.more["joint"][:, 0], joint, **TIGHT)
    with torch.no_grad():
        case.model[4].weight.mul_(20)
    forms, traces, _, joint = twin(case)
    m = measure(case.model, case.ref, [batch], trace=True, skip_classes=0.05, **GN)
    assert bool((m.lower <= forms * (1 + 1e-9)).all())
    assert bool((forms <= m.upper * (1 + 1e-9)).all())
    torch.testing.assert_close(m.quadratic, forms, rtol=0.05, atol=1e-12)
    near = (m.trace - traces).abs() <= 4 * m.trace_stderr + 1e-12
    assert float(near.double().mean()) > 0.9
    torch.testing.assert_close(m.more["joint"][:, 0], joint, rtol=0.1, atol=1e-12)


@pytest.mark.parametrize("classes", [5000, 40_000])
def test_heads_of_a_vocabulary_are_measured_without_a_matrix_of_their_size_and_have_no_spectrum(classes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, classes))
    ref = moved(model, 0.02)
    batch = torch.randn(3, 6), torch.tensor([0, classes - 1, 7])
    m = measure(model, ref, [batch], trace=True, **GN)
    with torch.no_grad():
        p = model(batch[0]).double().softmax(1)
    hidden = F.gelu(model[0](batch[0])).detach()
    u = (hidden @ ref.difference(model, "2.weight").T).double()
    wanted = (p * (u - (p * u).sum(1, keepdim=True)).square()).sum(1)
    torch.testing.assert_close(m.quadratic[:, 1], wanted, rtol=1e-4, atol=1e-10)
    with pytest.raises(MeasureError, match=f"network has {classes}|MiB are free"):
        measure(model, ref, [batch], spectrum=True, **GN)


class NoForwardMode(torch.autograd.Function):
    """The identity, without a forward-mode derivative."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.clone()


class WithoutForwardMode(nn.Module):
    """Two layers around an operation without forward mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(NoForwardMode.apply(self.first(x))))


def test_an_operation_without_forward_mode_takes_the_backward_passes():
    case = made(WithoutForwardMode(), (4, 4), 12)
    m = measure(case.model, case.ref, [(case.inputs, case.targets)], skip_classes=0.0, **GN)
    forms, _, _, joint = twin(case)
    torch.testing.assert_close(m.quadratic, forms, **TIGHT)
    torch.testing.assert_close(m.more["joint"][:, 0], joint, **TIGHT)


def test_a_layer_that_has_not_moved_is_zero_with_many_classes():
    case = build("mlp_fifty_classes")
    case.model[1] = nn.GELU()
    directions = {n: case.ref.difference(case.model, n) for n in case.ref.layers()}
    directions["2.weight"] = torch.zeros_like(directions["2.weight"])
    found = CurvatureEngine(case.model, directions, **GN).exact((case.inputs, case.targets), joint=True)
    forms = twin(case)[0]
    assert float(found.quadratic[:, 1].abs().max()) == 0.0
    torch.testing.assert_close(found.quadratic[:, [0, 2]], forms[:, [0, 2]], **TIGHT)


def test_half_precision_is_measured_in_float32():
    case = build("bert")
    half = case.model.to(torch.bfloat16)
    ref = Reference({n: case.ref[n].to(torch.bfloat16) for n in case.ref.names()}, case.ref.layers())
    m = measure(half, ref, [(case.inputs, case.targets)], trace=True, **GN)
    assert next(half.parameters()).dtype == torch.bfloat16
    wide = Case(half.double(), ref, case.inputs, case.targets)
    wide.ref = Reference({n: ref[n].double() for n in ref.names()}, ref.layers())
    forms, traces, _, _ = twin(wide)
    torch.testing.assert_close(m.quadratic, forms, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(m.trace, traces, rtol=1e-3, atol=1e-6)


def test_every_text_names_the_form(tmp_path):
    case = build("mlp_gelu")
    batch = (case.inputs, case.targets)
    m = measure(case.model, case.ref, [batch], trace=True, **GN)
    m.save(tmp_path)
    back = Measure.load(tmp_path)
    assert back.quantity == m.quantity == "gauss_newton"
    assert torch.equal(back.more["joint"], m.more["joint"])
    record = json.loads((tmp_path / "measure.json").read_text())
    assert record["quantity"] == "gauss_newton"
    assert {layer["method"] for layer in record["layers"]} == {"gauss_newton"}
    assert not any(layer["exact"] for layer in record["layers"])
    assert record["statement"].startswith("The Gauss–Newton distance measure")
    assert "vᵀGv" in record["notes"][0]
    assert any("uᵀΛu" in note for note in record["notes"])
    assert "vᵀGv" in repr(m)
    plain = measure(case.model, case.ref, [batch])
    assert plain.to_dict()["quantity"] == "positive_form"
    assert "vᵀGv" not in repr(plain)
    assert "joint" not in plain.more


def test_the_joint_form_is_a_quantity_of_its_own_where_all_layers_have_a_closed_form():
    case = build("mlp")
    m = measure(case.model, case.ref, [(case.inputs, case.targets)], quantities=["joint"])
    torch.testing.assert_close(m.more["joint"][:, 0], twin(case)[3], **TIGHT)
    smooth = build("mlp_gelu")
    found = measure(smooth.model, smooth.ref, [(smooth.inputs, smooth.targets)], quantities=["joint"])
    assert bool(found.more["joint"].isnan().all())
    assert any("not known" in note for note in found.notes)


def test_what_has_no_gauss_newton_part_is_refused():
    case = build("mlp_gelu")
    batch = (case.inputs, case.targets)
    with pytest.raises(MeasureError, match="callable"):
        measure(case.model, case.ref, [batch], loss=partial(F.cross_entropy, reduction="none"), **GN)
    with pytest.raises(ConfigError, match="did you mean 'gauss_newton'"):
        measure(case.model, case.ref, [batch], method="gauss_newtown")


def test_a_sample_is_not_drawn():
    case = build("mlp_gelu")
    batch = (case.inputs, case.targets)
    whole = measure(case.model, case.ref, [batch], **GN)
    asked = measure(case.model, case.ref, [batch], examples="max", mean_sample=2, **GN)
    assert torch.equal(asked.quadratic, whole.quadratic)
    assert asked.sampled_mean is None
