"""The measure as a whole: every network against the dense twin, and what users rely on."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from networks import SMOOTH, batches_of, build, dense_values, mlp, moved

from dense_hessians import block_hessian
from hesstune.curvature.engine import CurvatureEngine
from hesstune.curvature.layers import CapturedLayer
from hesstune.curvature.measure import measure
from hesstune.curvature.quantities import QUANTITIES, Quantity
from hesstune.curvature.result import Measure
from hesstune.errors import ConfigError, DataError, LayerError, MeasureError, RunError
from hesstune.reference import Reference

ROUNDING = {"rtol": 1e-9, "atol": 1e-13}


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_networks_match_the_dense_twin_and_their_brackets_hold_it(name):
    case = build(name)
    forms = dense_values(case)[0]
    m = measure(case.model, case.ref, [(case.inputs, case.targets)])
    assert m.names == case.ref.layers()
    assert m.exact[-1]  # nothing follows the head
    slack = 1e-9 * float(forms.max())
    assert bool((m.lower <= forms + slack).all())
    assert bool((forms <= m.upper + slack).all())
    torch.testing.assert_close(m.quadratic, forms, rtol=0.03, atol=slack)
    tight = measure(case.model, case.ref, [(case.inputs, case.targets)], tol=1e-7, steps=40)
    torch.testing.assert_close(tight.quadratic, forms, rtol=1e-6, atol=slack)


@pytest.mark.parametrize("name", ["cnn", "mlp_gelu", "bert"])
def test_layers_that_did_not_move_take_no_work(name, monkeypatch):
    case = build(name)
    *still, head = case.ref.layers()
    with torch.no_grad():
        for layer in still:
            case.model.get_parameter(layer).copy_(case.ref[layer])
    batches, options = [(case.inputs, case.targets)], {"examples": "max", "mean_sample": 2}
    whole = measure(case.model, case.ref, batches, **options, trace=True)
    alone = measure(case.model, case.ref, batches, **options, trace=True, layers=[head])
    worked = set()
    for method in ("apply", "pullback", "gram"):
        plain = getattr(CapturedLayer, method)
        monkeypatch.setattr(
            CapturedLayer, method, lambda layer, *a, f=plain: worked.add(layer.name) or f(layer, *a)
        )
    monkeypatch.setattr(CurvatureEngine, "source", None)
    lines = []
    engine = CurvatureEngine.of(case.model, case.ref)
    plan = engine.plan_on(case.inputs)
    worked.clear()  # by the probes of the plan
    engine.exact(batches[0], engine.moved(), trace=True)
    assert worked == {head}
    found = measure(case.model, case.ref, batches, **options, trace="exact", on_forecast=lines.append)
    assert f"{len(still)} of them unmoved" in lines[1]
    assert found.methods == [layer.method for layer in plan.layers]
    assert bool((found.quadratic[:, :-1] == 0).all())
    assert bool((found.mean_stderr[:-1] == 0).all())
    for one in (whole, alone):
        assert torch.equal(found.quadratic[:, -1], one.quadratic[:, -1])
        assert torch.equal(found.trace[:, -1], one.trace[:, -1])
    assert bool(found.trace[:, :-1].isnan().all())
    assert bool(whole.trace[:, :-1].isfinite().all())  # a number of their own
    assert found.to_dict()["layers"][0]["trace_mean"] is None


def test_traces_of_smooth_layers_carry_their_error():
    case = build("mlp_gelu")
    traces = dense_values(case)[1]
    m = measure(case.model, case.ref, [(case.inputs, case.targets)], trace=True)
    assert bool(((m.trace - traces).abs() <= 5 * m.trace_stderr + 1e-9).all())
    assert float(m.trace_stderr[:, -1].max()) == 0.0  # the head is exact
    assert float(m.trace_stderr[:, 0].min()) > 0.0


@pytest.mark.parametrize("name", ["cnn", "torch_encoder"])
def test_batch_size_order_and_memory_do_not_matter(name):
    case = build(name)
    trace = name == "cnn"
    whole = measure(case.model, case.ref, batches_of(case, 4), trace=trace)
    exact = whole.exact
    split = measure(case.model, case.ref, batches_of(case, 1, 2, 1), trace=trace)
    with pytest.raises(MeasureError) as refused:
        measure(case.model, case.ref, batches_of(case, 4), trace=trace, memory_mib=1e-6)
    least = float(re.search(r"give memory_mib=([\d.]+)", str(refused.value))[1])
    small = measure(case.model, case.ref, batches_of(case, 4), trace=trace, memory_mib=least)
    order = torch.tensor([2, 0, 3, 1])
    x = case.inputs
    shuffled = x[order] if isinstance(x, torch.Tensor) else {k: v[order] for k, v in x.items()}
    mixed = measure(case.model, case.ref, [(shuffled, case.targets[order])], trace=trace)
    for other, rows in ((split, slice(None)), (small, slice(None)), (mixed, order)):
        torch.testing.assert_close(other.losses, whole.losses[rows], **ROUNDING)
        torch.testing.assert_close(other.quadratic[:, exact], whole.quadratic[rows][:, exact], **ROUNDING)
        torch.testing.assert_close(other.quadratic, whole.quadratic[rows], rtol=0.03, atol=1e-9)
        if trace:
            torch.testing.assert_close(other.trace, whole.trace[rows], **ROUNDING)


@pytest.mark.parametrize("name", ["cnn", "torch_encoder"])
@pytest.mark.parametrize("engine", [False, True])
def test_the_model_and_the_random_state_are_left_as_found(name, engine):
    case = build(name)
    model = case.model.train()
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    parameters[1].grad = torch.full_like(parameters[1], 3.0)

    def state():
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
        flags = [m.training for m in model.modules()], [p.requires_grad for p in parameters]
        missing = [p.grad is None for p in parameters]
        return flags, hooks, missing, torch.backends.mha.get_fastpath_enabled()

    before, tensors, random = state(), copy.deepcopy(model.state_dict()), torch.get_rng_state()
    batch = (case.inputs, case.targets)
    if engine:
        built = CurvatureEngine.of(model, case.ref)
        for method in (built.exact, built.lanczos, built.gauss_newton, built.trace, built.spectrum):
            method(batch)
    else:
        first, second = (measure(model, case.ref, [batch], trace=True) for _ in range(2))
        assert torch.equal(first.quadratic, second.quadratic)
        assert torch.equal(first.trace, second.trace)
        with pytest.raises(DataError, match="at index 0"):
            measure(model, case.ref, [batch, (case.inputs, case.targets + 50)])
    assert state() == before
    assert torch.equal(torch.get_rng_state(), random)
    assert float((parameters[1].grad - 3.0).abs().max()) == 0.0
    assert all(torch.equal(value, tensors[key]) for key, value in model.state_dict().items())


def test_summaries_follow_from_the_matrix():
    case = build("mlp")
    m = measure(case.model, case.ref, [(case.inputs, case.targets)])
    q = m.quadratic
    torch.testing.assert_close(m.maximum, q.max(0).values)
    torch.testing.assert_close(m.mean, q.mean(0))
    torch.testing.assert_close(m.mean_stderr, q.std(0) / 5**0.5)
    torch.testing.assert_close(m.p99, q.quantile(0.99, dim=0))
    assert m.distances.tolist() == pytest.approx(list(case.ref.distances(case.model).values()))
    expected = (m.losses.max() * m.maximum / 600).sqrt().sum()
    assert m.hessian_distance(600) == pytest.approx(float(expected))
    assert m.hessian_distance(600, C=4.0) == pytest.approx(float((4.0 * m.maximum / 600).sqrt().sum()))
    assert float(m.shares(600).sum()) == pytest.approx(m.hessian_distance(600))
    for wrong in ({"n": 0}, {"n": 5, "C": -1.0}):
        with pytest.raises(ConfigError):
            m.hessian_distance(**wrong)


def test_examples_outside_the_sample_are_left_out_of_the_summaries():
    q = torch.tensor([[1.0, 4.0], [float("nan"), 2.0], [3.0, 0.0]], dtype=torch.float64)
    low = q.nan_to_num(nan=0.0)
    m = Measure(["a", "b"], q, low, low + 5, torch.ones(3), torch.ones(2), ["lanczos", "exact"], ["", ""])
    assert m.maximum.tolist() == [3.0, 4.0]
    assert m.mean.isnan().tolist() == m.p99.isnan().tolist() == [True, False]
    assert m.mean_stderr.tolist() == pytest.approx([float("nan"), (4 / 3) ** 0.5], nan_ok=True)
    assert m.refined.sum(0).tolist() == [2, 3]


def test_results_are_saved_and_loaded(tmp_path):
    case = build("mlp_gelu")
    m = measure(case.model, case.ref, [(case.inputs, case.targets)], trace=True)
    m.save(tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["measure.json", "measure.safetensors"]
    back = Measure.load(tmp_path / "run")
    for key in ("quadratic", "lower", "upper", "losses", "trace", "distances"):
        assert torch.equal(getattr(back, key), getattr(m, key))
    assert (back.names, back.methods, back.reasons) == (m.names, m.methods, m.reasons)
    summary = json.loads((tmp_path / "run" / "measure.json").read_text())
    assert summary.pop("tensors")  # the checksum of the other file
    assert summary == m.to_dict() == back.to_dict()
    row = summary["layers"][0]
    assert (row["maximum"], row["exact"]) == (float(m.maximum[0]), False)
    assert "Gelu" in row["reason"]
    with pytest.raises(RunError, match="not a readable measurement"):
        Measure.load(tmp_path)


def test_spectra_are_summed_up_by_layer_and_smooth_layers_have_none():
    case = build("mlp_gelu")
    m = measure(case.model, case.ref, [(case.inputs, case.targets)], spectrum=True)
    *smooth, head = m.to_dict()["layers"]
    dense = torch.linalg.eigvalsh(block_hessian(case.model, case.inputs, case.targets, head["name"])).flip(1)
    first = dense[:, :3]  # K − 1 of four classes
    assert head["spectrum"]["mean"] == pytest.approx(first.mean(0).tolist(), rel=1e-7)
    errors = (first.var(0) / len(first)).sqrt()
    assert head["spectrum"]["stderr"] == pytest.approx(errors.tolist(), rel=1e-7)
    assert [layer["spectrum"] for layer in smooth] == [None] * len(smooth)
    (note,) = [note for note in m.notes if "eigenvalues" in note]
    assert all(layer["name"] in note for layer in smooth)
    assert head["name"] not in note
    many = build("mlp_fifty_classes")
    kept = measure(many.model, many.ref, [(many.inputs, many.targets)], spectrum=True).to_dict()["layers"][0]
    assert len(kept["spectrum"]["mean"]) == 10


def test_a_further_quantity_is_one_class(tmp_path):
    class Gap(Quantity):
        name, sentence, keys = "gauss_newton_gap", "vᵀH⁺v less its Gauss–Newton part", ("gap",)

        @staticmethod
        def rows(engine, batch, forms, settings):
            return {"gap": engine.lanczos(batch).quadratic - engine.gauss_newton(batch)}

        @staticmethod
        def summary(measured, layer):
            return {"gap_mean": float(measured.more["gap"][:, layer].mean())}

    case = build("mlp_gelu")
    batches = [(case.inputs[:2], case.targets[:2]), (case.inputs[2:], case.targets[2:])]
    try:
        m = measure(case.model, case.ref, batches, quantities=["gauss_newton_gap"])
        m.save(tmp_path)
        back = Measure.load(tmp_path)
        with pytest.raises(ConfigError, match="did you mean 'gauss_newton_gap'"):
            measure(case.model, case.ref, batches, quantities=["gauss_newton_gab"])
        assert torch.equal(back.more["gap"], m.more["gap"])
        means = [layer["gap_mean"] for layer in back.to_dict()["layers"]]
        assert means == pytest.approx(m.more["gap"].mean(0).tolist())
        assert any(Gap.sentence in note for note in m.notes)
        halves = m.with_rows(lambda rows: rows[:2])
        assert (len(halves.more["gap"]), len(halves.losses), m.more["gap"].shape) == (2, 2, (5, 3))
    finally:
        del QUANTITIES["gauss_newton_gap"]
    plain = measure(case.model, case.ref, batches)
    assert plain.more == {}
    assert "gap_mean" not in plain.to_dict()["layers"][0]


def test_every_quantity_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "measure.md").read_text(encoding="utf-8")
    assert [name for name in QUANTITIES if f"`{name}`" not in page] == []
    assert all(len(quantity.sentence) > 20 for quantity in QUANTITIES.values())


def test_one_example_has_no_standard_error_and_still_makes_json():
    case = build("mlp_one_example")
    m = measure(case.model, case.ref, [(case.inputs, case.targets)])
    assert json.loads(json.dumps(m.to_dict(), allow_nan=False))["layers"][0]["mean_stderr"] is None


def test_layers_are_chosen_by_name_or_pattern_and_examples_by_number():
    case = build("cnn")
    batches = batches_of(case, 2, 2)
    full = measure(case.model, case.ref, batches)
    some = measure(case.model, case.ref, batches, layers=["head.*", "stem.weight"])
    assert some.names == ["stem.weight", "head.weight"]
    torch.testing.assert_close(some.quadratic, full.quadratic[:, [0, 5]], **ROUNDING)
    with pytest.raises(LayerError, match=r"did you mean 'head.weight'"):
        measure(case.model, case.ref, batches, layers=["stem.weight", "haed.weight"])
    seen = []
    m = measure(case.model, case.ref, batches, max_examples=3, progress=seen.append)
    assert seen == [2, 3]
    torch.testing.assert_close(m.quadratic, full.quadratic[:3], **ROUNDING)


GOOD = [(torch.ones(2, 5), torch.tensor([0, 1]))]


@pytest.mark.parametrize(
    ("batches", "options", "error", "text"),
    [
        (GOOD, {"method": "exakt"}, ConfigError, "did you mean 'exact'"),
        (GOOD, {"examples": "some"}, ConfigError, "valid: max, all"),
        (GOOD, {"steps": 0}, ConfigError, "steps must be above 0; got 0"),
        (GOOD, {"tol": -1.0}, ConfigError, "tol must be above 0"),
        (GOOD, {"memory_mib": 0}, ConfigError, "memory_mib must be above 0"),
        ([], {}, DataError, "no examples"),
        ([torch.ones(2, 5)], {}, DataError, "must yield"),
        ([(torch.ones(2, 5), torch.tensor([0]))], {}, DataError, "2 inputs but targets of shape"),
    ],
)
def test_wrong_arguments_and_batches_are_refused(batches, options, error, text):
    model = mlp()
    with pytest.raises(error, match=text):
        measure(model, moved(model, 0.1), batches, **options)


def test_a_reference_of_another_model_is_refused():
    with pytest.raises(LayerError, match="does not match the reference"):
        measure(mlp(), Reference.of(torch.nn.Linear(3, 2)), [])
