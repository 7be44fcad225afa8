"""Weights that optimizers and averages keep beside the model's lie within the radius, too."""

from __future__ import annotations

import gc
from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import optimizer as torch_optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hesstune.constraints.distance import DistanceConstraint
from hesstune.errors import ConfigError, LayerError
from hesstune.reference import Reference

RADIUS = 0.1


class Lookahead:
    """Slow weights in the state of the inner optimizer, as timm's and others keep them."""

    def __init__(self, base, k=3):
        self.base, self.k, self.steps = base, k, 0
        self.param_groups, self.state = base.param_groups, base.state

    @torch.no_grad()
    def sync(self):
        for p in (p for group in self.param_groups for p in group["params"]):
            slow = self.state[p].setdefault("lookahead_slow_buff", p.clone())
            slow.lerp_(p, 0.5)
            p.copy_(slow)

    def step(self):
        self.base.step()
        self.steps += 1
        if self.steps % self.k == 0:
            self.sync()


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)).to(dtype)


def train(model, optimizer, constraint, steps=25, after=lambda: None):
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(1)).to(next(model.parameters()).dtype)
    y = torch.randint(3, (16,), generator=torch.Generator().manual_seed(2))
    for _ in range(steps):
        model.zero_grad()
        (3 * nn.functional.cross_entropy(model(x).float(), y)).backward()
        optimizer.step()
        constraint.project_()
        after()


def largest(ref, model):
    return max(ref.distances(model).values())


def test_schedule_free_projection_is_that_of_iterate_and_average():
    """By hand: z and x are projected, and y lies between them."""
    schedulefree = pytest.importorskip("schedulefree")
    model = nn.Linear(4, 4, bias=False)
    ref = Reference.of(model)
    optimizer = schedulefree.SGDScheduleFree(model.parameters(), lr=0.3, momentum=0.8)
    optimizer.train()
    constraint = DistanceConstraint(model, ref, RADIUS)
    model.weight.grad = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    start, weight = ref["weight"], model.weight.detach().clone()
    z = optimizer.state[model.weight]["z"].clone()
    x = (weight - 0.2 * z) / 0.8

    def inside(w):
        return start + (w - start) * min(1.0, RADIUS / float((w - start).norm()))

    constraint.project_()
    torch.testing.assert_close(optimizer.state[model.weight]["z"], inside(z), rtol=1e-4, atol=1e-6)
    expected = 0.8 * inside(x) + 0.2 * inside(z)
    torch.testing.assert_close(model.weight.detach(), expected, rtol=1e-4, atol=1e-6)


def test_an_optimizer_without_copies_is_left_alone_and_hooks_end_with_the_constraint():
    before = len(torch_optimizer._global_optimizer_post_hooks)
    model = network()
    constraint = DistanceConstraint(model, Reference.of(model), RADIUS)
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    train(model, optimizer, constraint, steps=1)
    state = deepcopy(optimizer.state_dict()["state"])
    constraint.project_()
    for key, kept in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, state[key][name]) for name, value in kept.items())
    assert len(torch_optimizer._global_optimizer_post_hooks) == before + 1
    del constraint
    gc.collect()
    assert len(torch_optimizer._global_optimizer_post_hooks) == before


def test_slow_weights_and_averaged_sgd_lie_inside():
    model = network()
    ref = Reference.of(model)
    constraint = DistanceConstraint(model, ref, RADIUS)
    optimizer = Lookahead(torch.optim.SGD(model.parameters(), 0.5))
    train(model, optimizer, constraint)
    optimizer.sync()  # as some loops do at the end
    assert constraint.outside() == {}
    averaged = network()
    constraint = DistanceConstraint(averaged, ref, RADIUS)
    optimizer = torch.optim.ASGD(averaged.parameters(), 0.5, t0=2)
    train(averaged, optimizer, constraint)
    with torch.no_grad():
        for p in averaged.parameters():
            p.copy_(optimizer.state[p]["ax"])
    assert constraint.outside() == {}


def test_copies_in_float32_are_projected_with_the_weights():
    class Masters(torch.optim.Optimizer):
        """The update is made in float32 and then rounded into the weights."""

        @torch.no_grad()
        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                master = self.state[p].setdefault("master_param", p.float())
                master.sub_(p.grad.float(), alpha=0.5)
                p.copy_(master)

    model = network(torch.bfloat16)
    ref = Reference.of(model)
    constraint = DistanceConstraint(model, ref, RADIUS)
    optimizer = Masters(model.parameters(), {})
    train(model, optimizer, constraint)
    assert constraint.outside() == {}
    for name, p in model.named_parameters():
        if name in constraint.radii:
            assert float((optimizer.state[p]["master_param"] - ref[name].float()).norm()) <= RADIUS


@pytest.mark.parametrize(
    "averaged",
    [
        AveragedModel,
        partial(AveragedModel, multi_avg_fn=get_ema_multi_avg_fn(0.9)),
    ],
)
def test_averages_of_projected_weights_lie_inside_and_others_are_found(averaged):
    """A convex combination of points within the radius around one reference lies within it."""
    model = network()
    constraint = DistanceConstraint(model, Reference.of(model), RADIUS)
    average = averaged(model)  # starts at the reference
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    train(model, optimizer, constraint, after=lambda: average.update_parameters(model))
    assert constraint.outside(average) == {}
    assert constraint.outside() == {}
    with torch.no_grad():
        average.module[2].weight.add_(1.0)
    assert list(constraint.outside(average)) == ["2.weight"]
    assert constraint.outside(average)["2.weight"] > 1


def test_an_optimizer_of_other_tensors_is_refused():
    model = network(torch.bfloat16)
    masters = [p.detach().float() for p in model.parameters()]
    with pytest.raises(LayerError, match="SGD"):
        DistanceConstraint(model, Reference.of(model), RADIUS, optimizer=torch.optim.SGD(masters, 0.1))


@pytest.mark.parametrize("norm", ["frobenius", "mars"])
@pytest.mark.parametrize(
    "make",
    [
        lambda s, p: s.AdamWScheduleFree(p, lr=0.1),
        lambda s, p: s.AdamWScheduleFree(p, lr=0.1, foreach=False),
        lambda s, p: s.SGDScheduleFree(p, lr=1.0),
        lambda s, p: s.RAdamScheduleFree(p, lr=0.1),
        lambda s, p: s.AdamWScheduleFreeReference(p, lr=0.1),
        lambda s, p: s.ScheduleFreeWrapper(torch.optim.SGD(p, lr=1.0)),
    ],
)
def test_schedule_free_iterates_and_averages_lie_inside(make, norm):
    schedulefree = pytest.importorskip("schedulefree")
    model = network()
    ref = Reference.of(model)
    optimizer = make(schedulefree, model.parameters())
    wrapper = not isinstance(optimizer, torch.optim.Optimizer) or hasattr(optimizer, "base")
    constraint = DistanceConstraint(model, ref, RADIUS, norm, optimizer=optimizer if wrapper else None)
    optimizer.train()
    train(model, optimizer, constraint)
    assert constraint.outside() == {}
    optimizer.eval()
    assert constraint.outside() == {}
    assert largest(ref, model) > 0.5 * RADIUS or norm == "mars"
    if wrapper:
        optimizer.train()
        with pytest.raises(ConfigError, match="SGD"):
            train(model, optimizer, DistanceConstraint(model, ref, RADIUS), steps=1)
