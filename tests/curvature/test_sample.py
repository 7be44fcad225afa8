"""The sample of smooth layers: how it is drawn, what it predicts, and the means that follow."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from networks import batches_of, build, dense_values, mlp, moved
from torch import nn

from dense_hessians import block_jacobian
from hesstune.curvature.engine import CurvatureEngine
from hesstune.curvature.measure import measure
from hesstune.curvature.sample import Sample, sampled_means
from hesstune.forward import evaluating, logits_of
from hesstune.reference import Reference

EVEN = 0.05


def chances_of(weights: torch.Tensor) -> torch.Tensor:
    return (1 - EVEN) * weights / weights.sum(0) + EVEN / len(weights)


def test_means_and_their_variances_are_unbiased_over_all_possible_draws():
    weights = torch.tensor([[1.0], [4.0], [0.5], [2.0]], dtype=torch.float64)
    values = torch.tensor([[2.0], [3.0], [0.1], [0.0]], dtype=torch.float64)
    chances, means, variances, spreads, probabilities = chances_of(weights)[:, 0], [], [], [], []
    for draws in itertools.product(range(4), repeat=3):
        found = sampled_means(values, weights, torch.tensor(draws)[:, None])
        means.append(float(found.mean))
        variances.append(float(found.sampling_stderr.square()))
        spreads.append(float(found.stderr.square() - found.sampling_stderr.square()))
        probabilities.append(float(chances[list(draws)].prod()))
    p, m = torch.tensor(probabilities).double(), torch.tensor(means).double()
    mean = float(values.mean())
    assert float(p.sum()) == pytest.approx(1)
    assert float(p @ m) == pytest.approx(mean)
    assert float(p @ torch.tensor(variances).double()) == pytest.approx(float(p @ (m - mean).square()))
    # Negative estimates of the variance over the examples are set to 0, so that it is not too small.
    assert float(p @ torch.tensor(spreads).double()) >= float(values.var()) / 4


def test_pairs_that_are_known_enter_as_they_are():
    weights = torch.tensor([[torch.nan], [1.0], [1.0]], dtype=torch.float64)
    values = torch.tensor([[5.0], [2.0], [2.0]], dtype=torch.float64)
    found = sampled_means(values, weights, torch.tensor([[1], [2], [1]]))
    assert float(found.mean) == pytest.approx(3)
    assert float(found.sampling_stderr) == 0
    assert float(found.stderr) == pytest.approx(1)  # the standard error of (5, 2, 2)


def test_draws_follow_the_weights_and_not_the_order_of_the_examples():
    weights = torch.tensor([[1.0, 0.0], [6.0, 1.0], [3.0, 1.0], [torch.nan, 2.0]], dtype=torch.float64)
    inputs, targets = torch.arange(4.0)[:, None], torch.arange(4)
    counts = torch.zeros(4, 2)
    for seed in range(40):
        samples = []
        for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
            sample = Sample(50, 2, seed)
            sample.draw_keys(4)
            for part in torch.tensor(order).split(2):
                sample.offer(part, weights[part], (inputs[part], targets[part]))
            samples.append(sample)
        assert torch.equal(samples[0].drawn, samples[1].drawn)
        counts += torch.stack([(samples[0].drawn == number).sum(0) for number in range(4)])
    expected = torch.stack([chances_of(weights[:3, 0]), torch.zeros(3).double()], 1)
    expected = torch.cat([expected, torch.zeros(1, 2)])
    expected[:, 1] = chances_of(weights[:, 1])
    errors = (expected * (1 - expected) / 2000).sqrt() + 1e-12
    assert bool((((counts / 2000) - expected).abs() <= 5 * errors).all())


def test_only_drawn_examples_are_kept():
    sample = Sample(3, 1, 0)
    for first in range(0, 40, 4):
        sample.draw_keys(4)
        numbers = torch.arange(first, first + 4)
        sample.offer(numbers, torch.ones(4, 1, dtype=torch.float64), (numbers[:, None], numbers))
        if first == 0:
            assert not sample.is_complete
    assert set(sample.examples) == set(sample.drawn.flatten().tolist())
    for number, (inputs, targets) in sample.examples.items():
        assert inputs.tolist() == [[number]]
        assert targets.tolist() == [number]


class OwnLayers(nn.Module):
    """A convolution, GELU, tokens, and a linear layer, with tanh before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear, self.head = nn.Conv1d(2, 4, 2), nn.Linear(4, 3), nn.Linear(3, 3)
        self.outputs: dict[str, torch.Tensor] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.outputs["conv"] = self.conv(x)
        t = self.outputs["linear"] = self.linear(F.gelu(z).transpose(1, 2))
        return self.head(torch.tanh(t).mean(1))


def test_predicted_forms_are_the_gauss_newton_value_and_the_size_of_slopes_and_changes():
    torch.manual_seed(0)
    model = OwnLayers().double()
    ref = moved(model, 0.4)
    x, y = torch.randn(3, 2, 5, dtype=torch.float64), torch.tensor([0, 2, 1])
    names = ["conv.weight", "linear.weight"]
    found = CurvatureEngine.of(model, ref).predicted_forms((x, y), names)
    with evaluating(model):
        for row in range(3):
            one = x[row : row + 1]
            logits = logits_of(model, one)
            p = logits.detach().softmax(1)[0]
            slopes = torch.autograd.grad(F.cross_entropy(logits, y[row : row + 1]), model.outputs.values())
            for column, (name, slope) in enumerate(zip(names, slopes, strict=True)):
                v, weight = ref.difference(model, name), model.get_parameter(name).detach()
                u = (block_jacobian(model, one, name)[0] @ v.flatten()).flatten()
                gauss_newton = float(p @ u.square() - (p @ u).square())
                module = F.conv1d if name == "conv.weight" else F.linear
                inputs = one if name == "conv.weight" else F.gelu(model.outputs["conv"]).transpose(1, 2)
                change, axis = module(inputs, v), 1 if name == "conv.weight" else 2
                change = change.detach()
                size = (slope.norm(dim=axis) * change.norm(dim=axis)).sum() * v.norm() / weight.norm()
                assert float(found[row, column]) == pytest.approx(gauss_newton + float(size), rel=1e-8)


@pytest.mark.parametrize("name", ["mlp_gelu", "bert"])
def test_a_sample_is_measured_as_all_examples_are(name):
    case = build(name)
    options = {"examples": "max", "tol": 1e-6, "steps": 40}
    forms = dense_values(case)[0][:4]
    m = measure(case.model, case.ref, batches_of(case, 2, 2), **options, mean_sample=3)
    smooth, counts = torch.tensor([not exact for exact in m.exact]), m.refined.sum(0)
    assert bool((counts[~smooth] == 4).all())
    assert bool(((counts[smooth] >= 1) & (counts[smooth] <= 3)).all())
    torch.testing.assert_close(m.quadratic[m.refined], forms[m.refined], rtol=1e-5, atol=1e-10)
    torch.testing.assert_close(m.maximum, forms.where(m.refined, 0.0).amax(0), rtol=1e-5, atol=1e-10)
    assert bool((m.sampling_stderr[smooth] < m.mean_stderr[smooth]).all())
    assert f"{m.sampling_error:.1%} to the sum" in m.notes[0]
    every = measure(case.model, case.ref, batches_of(case, 2, 2), **options, mean_sample=4)
    assert bool(every.refined.all())
    torch.testing.assert_close(every.mean, forms.mean(0), rtol=1e-5, atol=1e-10)
    torch.testing.assert_close(every.mean_stderr, forms.std(0) / 2, rtol=1e-5, atol=1e-10)
    assert every.sampling_error == 0


def test_the_sample_depends_on_the_seed_only_and_without_one_all_examples_are_measured():
    case = build("mlp_gelu")
    options = {"examples": "max", "mean_sample": 2}
    splits = (4,), (1, 2, 1)
    found = [measure(case.model, case.ref, batches_of(case, *sizes), **options) for sizes in splits]
    torch.testing.assert_close(found[0].quadratic, found[1].quadratic, rtol=0.03, atol=1e-9, equal_nan=True)
    torch.testing.assert_close(found[0].mean, found[1].mean, rtol=0.03, atol=1e-9)
    batches = batches_of(case, 4)
    drawn = {
        tuple(measure(case.model, case.ref, batches, seed=seed, **options).refined[:, 0].tolist())
        for seed in range(6)
    }
    assert len(drawn) > 1
    every = measure(case.model, case.ref, batches, examples="max")
    assert bool(every.refined.all())
    assert torch.equal(every.quadratic, measure(case.model, case.ref, batches).quadratic)


def fitted_network() -> tuple[nn.Module, Reference, tuple[torch.Tensor, torch.Tensor]]:
    """A GELU network after training on half of 200 examples with some wrong labels."""
    torch.manual_seed(0)
    model = mlp(nn.GELU, width=16).double()
    ref = Reference.of(model)
    x = 2 * torch.randn(200, 5, dtype=torch.float64)
    y = torch.where(torch.rand(200) < 0.2, torch.randint(4, (200,)), x[:, :4].argmax(1))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(x[:100]), y[:100]).backward()
        optimizer.step()
    return model, ref, (x, y)


@pytest.mark.slow
def test_the_error_of_a_sampled_mean_is_as_stated():
    model, ref, batch = fitted_network()
    truth = measure(model, ref, [batch], tol=1e-3).mean
    errors, scores = [], []
    for seed in range(60):
        m = measure(model, ref, [batch], examples="max", mean_sample=20, seed=seed, tol=0.01)
        error = m.mean.sum() - truth.sum()
        errors.append(float(error / truth.sum()))
        scores.append(float(error / m.sampling_stderr.square().nansum().sqrt()))
    relative, score = torch.tensor(errors), torch.tensor(scores)
    assert abs(float(relative.mean())) < 4 * float(relative.std()) / 60**0.5
    assert 0.75 < float(score.std()) < 1.4
    assert float((score.abs() < 2).float().mean()) > 0.85
