"""Projected weights lie inside their distance constraint by float64, whatever their size and precision."""

import pytest
import torch
from torch import nn

import hesstune as ht
from hesstune.errors import DivergedError, HesstuneWarning, LayerError


class Matrix(nn.Module):
    def __init__(self, rows, columns, scale, dtype):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.linear = nn.Linear(columns, rows, bias=False, dtype=dtype)
        with torch.no_grad():
            self.linear.weight.copy_(scale * torch.randn(rows, columns, generator=generator))


def measured(weight, start, norm):
    delta = weight.detach().double() - start.double()
    return float(delta.norm() if norm == "frobenius" else delta.abs().sum(dim=1).max())


@pytest.mark.parametrize("norm", ["frobenius", "mars"])
@pytest.mark.parametrize("size", [(3, 2), (64, 64)], ids=str)
@pytest.mark.parametrize(("scale", "radius"), [(0.02, 0.01), (0.02, 30.0), (1.0, 0.01), (1.0, 1.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_projected_weights_lie_inside(norm, size, scale, radius, dtype):
    lies_inside(norm, size, scale, radius, dtype, steps=3)


@pytest.mark.parametrize("norm", ["frobenius", "mars"])
def test_millions_of_weights_lie_inside(norm):
    lies_inside(norm, (1000, 4608), 1.0, 0.01, torch.float32, steps=1)


def lies_inside(norm, size, scale, radius, dtype, steps):
    model = Matrix(*size, scale, dtype)
    start = model.linear.weight.detach().clone()
    constraint = ht.DistanceConstraint(model, ht.Reference.of(model), radius, norm)
    for step in range(steps):
        generator = torch.Generator().manual_seed(step + 1)
        with torch.no_grad():
            model.linear.weight.add_((radius * torch.randn(*size, generator=generator)).to(dtype))
        outside = measured(model.linear.weight, start, norm)
        found = constraint.project_()["linear.weight"]
        assert found == pytest.approx(outside, rel=1e-6)
        left = measured(model.linear.weight, start, norm)
        assert left <= radius
        if dtype in (torch.float32, torch.float64) and outside > radius and norm == "frobenius":
            assert left >= radius * (1 - 1e-3)
        assert constraint.reference.distances(model)["linear.weight"] == pytest.approx(
            measured(model.linear.weight, start, "frobenius"), rel=1e-6
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("norm", ["frobenius", "mars"])
def test_weights_that_are_no_numbers_have_diverged_and_are_left(value, norm):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    constraint = ht.DistanceConstraint(model, ht.Reference.of(model), 0.1, norm)
    with torch.no_grad():
        model[0].weight.add_(1.0)
        model[1].weight[2, 1] = value
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(DivergedError, match=r"in 1.weight: training has diverged"):
        constraint.project_()
    for p, kept in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(p, kept, rtol=0, atol=0, equal_nan=True)


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(5, 4)
        self.experts = nn.Parameter(torch.randn(3, 4, 4))
        self.start = nn.Parameter(torch.zeros(1, 1, 4))
        self.recurrent = nn.GRU(4, 4)
        self.head = nn.Linear(4, 2)


def test_trained_matrices_of_no_known_kind_are_named():
    model = Experts()
    reference = ht.Reference.of(model)
    names = r"hold experts, words.weight, recurrent.weight_ih_l0, recurrent.weight_hh_l0: trained"
    with pytest.warns(HesstuneWarning, match=names):
        ht.DistanceConstraint(model, reference, 0.1)
    ht.DistanceConstraint(model, reference, {"*": 0.1})
    ht.DistanceConstraint(model, reference, 0.1, include=())
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    ht.DistanceConstraint(model, reference, 0.1)


@pytest.mark.parametrize("norm", ["frobenius", "mars"])
def test_included_ones_are_held_like_layers(norm):
    model = Experts()
    reference = ht.Reference.of(model)
    radius = {"head.weight": 0.5, "experts": 0.2, "*": 0.1}
    constraint = ht.DistanceConstraint(
        model, reference, radius, norm, include=["experts", "recurrent.weight_*"]
    )
    assert constraint.radii == {
        "head.weight": 0.5, "experts": 0.2, "recurrent.weight_ih_l0": 0.1, "recurrent.weight_hh_l0": 0.1
    }  # fmt: skip
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    constraint.project_()
    for name, p in model.named_parameters():
        delta = (p - reference[name]).double()
        if name in constraint.radii:
            found = float(delta.norm() if norm == "frobenius" else delta.flatten(1).abs().sum(1).max())
            assert found <= constraint.radii[name]
            assert found > 0.999 * constraint.radii[name]
        else:
            torch.testing.assert_close(delta, torch.ones_like(delta), rtol=1e-6, atol=1e-6)
    with pytest.raises(
        LayerError, match=r"unknown pattern of included parameters 'expert'.*did you mean 'experts'"
    ):
        ht.DistanceConstraint(model, reference, radius, include=["expert"])


def test_a_run_names_what_is_not_constrained(tiny_bert, tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("text,label\n" + "".join(f"good {i},a\nbad {i},b\n" for i in range(8)))
    run = ht.finetune(f"csv:{path}", model=f"hf:{tiny_bert}", epochs=1, method="constraint", radius=0.1)
    notes = [note for note in run.facts.notes if "without a constraint" in note]
    assert any("word_embeddings.weight" in note for note in notes)
