"""The older measures beside a run's own: against their formulas, on a network small enough to do by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import hesstune as ht
from hesstune.analysis.complexity import complexity_measures, margins_of
from hesstune.analysis.measure import measure_run
from hesstune.bounds.hessian import constrained_distance_measure


@pytest.fixture
def measured():
    """Two layers, moved by known amounts, with their measurement and examples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    ref = ht.Reference.of(model)
    with torch.no_grad():
        model[0].weight.add_(0.1)
        model[2].weight.sub_(0.2)
    x = torch.randn(20, 3)
    y = model(x).argmax(dim=1)  # every example is on the right side
    return model, ref, x, y, ht.measure(model, ref, [(x, y)], trace=True)


def named(rows):
    return {row.name: row.value for row in rows}


def test_margins_are_of_the_true_class_and_norms_of_the_inputs(measured):
    model, _, x, y, _ = measured
    found = margins_of(model, iter([(x[:7], y[:7]), (x[7:], y[7:])]))
    logits = model(x).detach().double().numpy()
    gaps = [row[t] - row[1 - t] for row, t in zip(logits, y.numpy(), strict=True)]
    assert found.margin == pytest.approx(np.percentile(gaps, 10), rel=1e-5)
    assert found.norm == pytest.approx(math.sqrt(float((x**2).sum(dim=1).mean())), rel=1e-5)
    assert found.largest == pytest.approx(float(x.abs().max()))
    assert found.inputs == 3


def test_values_are_those_of_the_formulas(measured):
    model, ref, x, y, m = measured
    margins = margins_of(model, iter([(x, y)]))
    found = named(complexity_measures(m, model, ref, margins, n=20))
    # Layer 1 moved by 0.1 in 12 entries, layer 2 by 0.2 in 8: rank one, so the spectral norm is Frobenius's.
    d1, d2 = 0.1 * math.sqrt(12), 0.2 * math.sqrt(8)
    assert found["Σ ‖v‖"] == pytest.approx(d1 + d2, rel=1e-5)
    assert found["√(p·Σ ‖v‖₂/n)"] == pytest.approx(math.sqrt(20 * (d1 + d2) / 20), rel=1e-5)
    s1, s2 = (float(np.linalg.norm(model[i].weight.detach().numpy(), 2)) for i in (0, 2))
    r1, r2 = 4 * 0.1 * math.sqrt(3) / s1, 2 * 0.2 * 2 / s2
    complexity = s1 * s2 * (r1 ** (2 / 3) + r2 ** (2 / 3)) ** 1.5
    assert found["spectral margin"] == pytest.approx(
        margins.norm * complexity / (margins.margin * math.sqrt(20)), rel=1e-4
    )
    depth, width = 2, 4
    spread = (d1 / s1) ** 2 + (d2 / s2) ** 2
    square = (margins.norm * s1 * s2 / margins.margin) ** 2 * depth**2 * width * math.log(8) * spread / 20
    assert found["PAC-Bayes spectral margin"] == pytest.approx(math.sqrt(square), rel=1e-4)
    m1, m2 = (float(model[i].weight.detach().abs().sum(dim=1).max()) for i in (0, 2))
    rows = 2 * m1 * 2 * m2 * (0.3 / m1 + 0.8 / m2)
    assert found["MARS distance"] == pytest.approx(
        margins.largest * math.sqrt(math.log(6)) * rows / math.sqrt(20), rel=1e-4
    )


def test_the_constrained_form_bounds_the_measure_and_takes_the_radii(measured):
    model, ref, x, y, m = measured
    margins = margins_of(model, iter([(x, y)]))
    name = "Σ √(Cα²·max Tr H⁺/n)"
    own = named(complexity_measures(m, model, ref, margins, n=20))[name]
    assert own >= m.hessian_distance(20)
    balls = named(
        complexity_measures(m, model, ref, margins, n=20, radii={"0.weight": 1.0, "2.weight": 2.0})
    )[name]
    trace = m.trace.amax(0).numpy()
    assert balls == pytest.approx(constrained_distance_measure([1.0, 2.0], trace, 20, float(m.losses.max())))


def test_where_a_measure_does_not_exist_the_reason_stands_in_its_place(measured):
    model, ref, x, y, m = measured
    wrong = margins_of(model, iter([(x, 1 - y)]))
    m.trace = None
    rows = {row.name: row for row in complexity_measures(m, model, ref, wrong, n=20)}
    assert "misclassified" in rows["spectral margin"].why
    assert "--trace" in rows["Σ √(Cα²·max Tr H⁺/n)"].why
    assert rows["spectral margin"].value is None


def test_a_measured_run_has_them_in_its_record_with_the_noisy_form_where_f_is_believed(tiny, tmp_path):
    run = ht.finetune(tiny, method="robust", out=str(tmp_path / "a"))
    measure_run(run)
    record = run.records.measure
    found = named(record.others)
    rho = np.abs(run.noise_matrix.inverse).sum(axis=1).max()
    assert found["Σ √(ρC𝓗/n)"] == pytest.approx(math.sqrt(rho) * record.measure.value, rel=1e-6)
    assert found["Σ ‖v‖"] == pytest.approx(sum(layer.distance for layer in record.layers), rel=1e-5)
    plain = ht.finetune({**tiny, "method": "vanilla", "out": str(tmp_path / "b")})
    measure_run(plain)
    names = named(plain.records.measure.others)
    assert "Σ √(ρC𝓗/n)" not in names
