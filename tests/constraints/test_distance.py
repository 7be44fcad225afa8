import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hesstune import DistanceConstraint, Reference
from hesstune.errors import ConfigError, LayerError

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def brute_force(weight, anchor, radius, norm):
    """The projection by the definition, in float64 and one row at a time."""
    w, a = weight.double().numpy(), anchor.double().numpy()
    delta = (w - a).reshape(len(w), -1)
    if norm == "frobenius":
        size = np.sqrt((delta**2).sum())
        delta = delta * min(1.0, radius / size) if size > 0 else delta
    else:
        for row in delta:
            size = np.abs(row).sum()
            row *= min(1.0, radius / size) if size > 0 else 1.0
    return torch.from_numpy(a + delta.reshape(w.shape))


shapes = st.sampled_from([nn.Linear(3, 5), nn.Linear(1, 1), nn.Conv2d(4, 6, 3, groups=2), nn.Conv1d(2, 3, 2)])


@settings(max_examples=60, deadline=None)
@given(shapes, st.floats(1e-3, 10), st.sampled_from(["frobenius", "mars"]), st.integers(0, 10**6))
def test_projection_is_the_definition(layer, radius, norm, seed):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(layer)
    ref = Reference.of(model)
    with torch.no_grad():
        layer.weight.add_(torch.randn(layer.weight.shape, generator=generator))
        moved = layer.weight.clone()
        con = DistanceConstraint(model, ref, radius, norm)
        before = con.project_()["0.weight"]
        rows = (moved - ref["0.weight"]).flatten(1)
        size = rows.norm() if norm == "frobenius" else rows.abs().sum(1).max()
        assert before == pytest.approx(float(size), rel=1e-5)
        expected = brute_force(moved, ref["0.weight"], radius, norm)
        torch.testing.assert_close(layer.weight.double(), expected, **CLOSE)
        if before <= radius:
            assert torch.equal(layer.weight, moved)
        layer.weight.copy_(ref["0.weight"])  # the strategy's layers are shared between examples


def two_layers():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    return model, Reference.of(model)


def push(model, by=1.0):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(by)


def test_patterns_first_match_wins_and_unmatched_layers_are_free():
    model, ref = two_layers()
    push(model)
    con = DistanceConstraint(model, ref, {"2.*": 0.5})
    assert con.radii == {"2.weight": 0.5}
    con.project_()
    distances = ref.distances(model)
    assert distances["2.weight"] == pytest.approx(0.5, rel=1e-5)
    assert distances["0.weight"] == pytest.approx(4.0, rel=1e-5)
    assert DistanceConstraint(model, ref, {"0.*": 1, "*": 2}).radii == {"0.weight": 1.0, "2.weight": 2.0}


def test_layers_inside_and_biases_are_not_touched():
    model, ref = two_layers()
    push(model, 0.01)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    DistanceConstraint(model, ref, {"0.weight": 0.02, "*": 5.0}).project_()
    changed = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert changed == ["0.weight"]


def test_wrong_arguments_are_refused():
    model, ref = two_layers()
    with pytest.raises(LayerError, match=r"layer pattern '3\.wei"):
        DistanceConstraint(model, ref, {"3.weight": 1.0})
    for radius in (0, -1.0, float("nan"), float("inf"), {"*": 0}):
        with pytest.raises(ConfigError, match="above 0"):
            DistanceConstraint(model, ref, radius)
    with pytest.raises(ConfigError, match="did you mean 'frobenius'"):
        DistanceConstraint(model, ref, 1.0, norm="frobenious")
    with pytest.raises(ConfigError, match="empty"):
        DistanceConstraint(model, ref, {})
    with pytest.raises(LayerError, match="missing in the model"):
        DistanceConstraint(nn.Sequential(nn.Linear(4, 4)), ref, 1.0)


def test_tied_frozen_and_channels_last():
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    ref = Reference.of(tied)
    push(tied)
    assert list(DistanceConstraint(tied, ref, 0.5).project_()) == ["0.weight"]
    assert tied[1].weight is tied[0].weight
    assert ref.distances(tied)["0.weight"] == pytest.approx(0.5, rel=1e-5)

    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)).to(memory_format=torch.channels_last)
    conv[0].weight.requires_grad_(False)
    ref = Reference.of(conv)
    with torch.no_grad():
        conv[1].weight.add_(1.0)
    frozen = conv[0].weight.clone()
    DistanceConstraint(conv, ref, 0.5).project_()
    assert torch.equal(conv[0].weight, frozen)
    assert conv[1].weight.is_contiguous(memory_format=torch.channels_last)
    assert ref.distances(conv)["1.weight"] == pytest.approx(0.5, rel=1e-5)


def test_projection_leaves_gradients_and_optimizer_alone():
    model, ref = two_layers()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    grads = [p.grad.clone() for p in model.parameters()]
    DistanceConstraint(model, ref, 1e-3).project_()
    assert all(torch.equal(g, p.grad) for g, p in zip(grads, model.parameters(), strict=True))
    assert max(ref.distances(model).values()) <= 1e-3 * (1 + 1e-4)
