"""Gradients of batch norm in a batch of one example, against finite differences and the formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dense_hessians import block_hessian, positive_form
from hesstune.curvature.measure import measure
from hesstune.curvature.stability import noise_stability
from hesstune.forward import logits_of
from hesstune.reference import Reference


class Tokens(nn.Module):
    """A convolution, a norm, and tokens in channels-last order that each have their own weight."""

    def __init__(self, norm, twice=False, tokens_first=False):
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 1)
        self.norm = norm
        self.head = nn.Linear(12, 3)
        self.twice, self.tokens_first = twice, tokens_first

    def forward(self, x):
        z = self.stem(self.stem(x)[:, :2]) if self.twice else self.stem(x)
        if self.tokens_first:  # the input of the norm has the strides, its gradient has not
            tokens = z.flatten(2).transpose(1, 2).contiguous()
            return self.head(self.norm(tokens.transpose(1, 2).unflatten(2, (2, 2))).flatten(1))
        return self.head(self.norm(z).flatten(2).transpose(1, 2).flatten(1))


def _norm(kind):
    norm: nn.Module
    if kind == "instance":
        norm = nn.InstanceNorm2d(3, affine=True, track_running_stats=True)
    else:
        norm = nn.BatchNorm2d(3)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.3, 3.0)
    return norm


def _network(**options):
    torch.manual_seed(0)
    kind = str(options.pop("kind", "batch"))
    return Tokens(_norm(kind), **options).double()


def _finite_difference(function, x):
    found = torch.zeros_like(x)
    for place in range(x.numel()):
        step = torch.zeros_like(x)
        step.view(-1)[place] = 1e-6
        found.view(-1)[place] = (function(x + step) - function(x - step)) / 2e-6
    return found


@pytest.mark.parametrize("tokens_first", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["batch", "instance"])
def test_the_gradient_of_one_example_is_that_of_finite_differences(kind, training, tokens_first):
    model = _network(kind=kind, tokens_first=tokens_first).train(training)
    weights = torch.randn(3, dtype=torch.float64)

    def value(x):
        return logits_of(model, x)[0] @ weights

    x = torch.randn(1, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    found = torch.autograd.grad(value(x), x)[0]
    with torch.no_grad():
        assert torch.allclose(found, _finite_difference(value, x), atol=1e-7)


@pytest.mark.parametrize("functional", [F.batch_norm, torch.batch_norm])
def test_functional_norms_and_keyword_arguments_are_covered(functional):
    mean, var = torch.randn(3).double(), torch.rand(3).double() + 0.5

    class Functional(nn.Module):
        def forward(self, x):
            if functional is F.batch_norm:
                z = F.batch_norm(input=x, running_mean=mean, running_var=var)
            else:
                z = torch.batch_norm(x, None, None, mean, var, False, 0.1, 1e-5, False)
            return (z.flatten(2).transpose(1, 2) * factors).sum(2)

    factors = torch.randn(4, 3, dtype=torch.float64)
    x = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    logits_of(Functional(), x).sum().backward()
    assert torch.allclose(x.grad[0], factors.T.view(3, 2, 2) / (var + 1e-5).sqrt()[:, None, None])


def test_values_in_weight_space_and_noise_stability_do_not_depend_on_the_batch_size():
    model = _network(twice=True).eval()  # a weight that is used twice is measured in weight space
    ref = Reference.of(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.3)
    x, y = torch.randn(4, 2, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 1])
    found = measure(model, ref, [(x, y)], steps=64, tol=1e-9)
    assert found.methods[0] == "weight_space"
    truth = positive_form(block_hessian(model, x, y, "stem.weight"), ref.difference(model, "stem.weight"))
    moved = model.double()
    twin = _closed_form(moved, x, y, ref)
    assert torch.allclose(truth, twin, rtol=1e-6)
    assert torch.allclose(found.quadratic[:, 0], twin, rtol=1e-6)
    whole, alone = [(x, y)], [(x[i : i + 1], y[i : i + 1]) for i in range(4)]
    options = {"sigma": 0.01, "samples": 2, "layers": "stem.weight"}
    tables = [noise_stability(model, batches, **options).taylor for batches in (whole, alone)]
    assert tables[0] == pytest.approx(tables[1], rel=1e-9)


def _closed_form(model, x, y, ref):
    """Return vᵀH⁺v with the norm written as scale and shift."""

    class Affine(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            self.shift = norm.bias - norm.running_mean * self.scale

        def forward(self, z):
            return z * self.scale[:, None, None] + self.shift[:, None, None]

    twin = Tokens(Affine(model.norm), twice=True)
    twin.stem, twin.head = model.stem, model.head
    hessian = block_hessian(twin, x, y, "stem.weight")
    return positive_form(hessian, ref.difference(model, "stem.weight"))
