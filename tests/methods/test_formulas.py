"""Every method's step against its paper's formula, worked by hand on a small network."""

import copy
import math

import pytest
import torch
from by_hand import K, N, X, Y, batch, built, cross_entropy, none, step, trained_weights
from torch import nn

from hesstune import Reference


@pytest.mark.parametrize("name", ["forward", "gce", "sce", "apl"])
def test_losses_in_place_of_cross_entropy(name):
    options = {"forward": {}, "gce": {"q": 0.5}}.get(name, {"alpha": 0.3, "beta": 0.6})
    method = built(name, options=options)
    loss, logits = method.batch_loss(batch(method, epoch=3))
    p = torch.softmax(logits.double(), 1)
    p_y, logs = p[torch.arange(N), Y], torch.log(p)
    log_y = logs[torch.arange(N), Y]
    reverse = 4.0 * (1.0 - p_y)  # log 0 is taken as −4
    expected = {
        "forward": -torch.log((p @ torch.tensor(method.setup.noise_matrix.array))[torch.arange(N), Y]),
        "gce": (1.0 - p_y**0.5) / 0.5,
        "sce": 0.3 * -log_y + 0.6 * reverse,
        "apl": 0.3 * log_y / logs.sum(1) + 0.6 * reverse,
    }[name]
    torch.testing.assert_close(loss.double(), expected.mean(), rtol=1e-5, atol=1e-6)


def test_mixup_is_linear_in_inputs_and_labels():
    method = built("mixup", options={"alpha": 1.0})
    torch.manual_seed(5)
    loss, _ = method.batch_loss(batch(method))
    torch.manual_seed(5)
    share = float(torch.distributions.Beta(1.0, 1.0).sample())
    order = torch.randperm(N)
    logits = method.setup.model(share * X + (1 - share) * X[order])
    soft = share * nn.functional.one_hot(Y, K) + (1 - share) * nn.functional.one_hot(Y[order], K)
    torch.testing.assert_close(loss, -(soft * torch.log_softmax(logits, 1)).sum(1).mean())


def test_label_smoothing_targets():
    method = built("label_smoothing", options={"epsilon": 0.3})
    logits = method.setup.model(X)
    soft = 0.7 * nn.functional.one_hot(Y, K) + 0.3 / K
    torch.testing.assert_close(
        method.loss(logits, Y, 0), -(soft * torch.log_softmax(logits, 1)).sum(1).mean()
    )


def test_sam_takes_the_gradient_at_the_worst_point_and_comes_back():
    method = built("sam", options={"rho": 0.2})
    before = trained_weights(method)
    found = step(method)
    model = method.setup.model
    model.zero_grad()
    cross_entropy(model(X), Y).mean().backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for p, own in zip(moved.parameters(), model.parameters(), strict=True):
            p.add_(0.2 * own.grad / norm)
    moved.zero_grad()
    cross_entropy(moved(X), Y).mean().backward()
    for name, p in moved.named_parameters():
        torch.testing.assert_close(found[name], p.grad)
        assert torch.equal(before[name], dict(model.named_parameters())[name])


def test_sam_does_not_turn_a_head_from_zero_round():
    """The layers below climb by ρ; the head, which starts from zero, is held still meanwhile."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, K))
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    method = built("sam", model=model, reference=Reference.of(model), options={"rho": 0.2})
    with torch.no_grad():  # some steps later
        model[2].weight.normal_(std=0.01)
    before, seen = trained_weights(method), []

    def compute():
        model.zero_grad()
        cross_entropy(model(X), Y).mean().backward()
        seen.append({name: p.detach().clone() for name, p in model.named_parameters()})

    method.gradients(compute)
    climbed = {name: float((seen[1][name] - before[name]).norm()) for name in before}
    assert climbed["2.weight"] == climbed["2.bias"] == 0.0
    assert math.hypot(climbed["0.weight"], climbed["0.bias"]) == pytest.approx(0.2, rel=1e-4)


def test_nso_averages_two_opposite_gradients():
    """On a quadratic the two-point average is the gradient at the centre, whatever the draw."""
    method = built("nso", options={"sigma": 0.5})
    weight = method.setup.model[2].weight

    def compute():
        method.setup.model.zero_grad()
        (weight.square().sum() + 0 * sum(p.sum() for p in method.setup.model.parameters())).backward()

    before = weight.detach().clone()
    method.gradients(compute)
    torch.testing.assert_close(weight.grad, 2 * before)
    assert torch.equal(weight, before)
    # and on the network it is not the plain gradient
    plain = step(built("vanilla"))
    assert not torch.allclose(plain["0.weight"], step(method)["0.weight"], rtol=1e-3)


@pytest.mark.parametrize("name", ["l2_sp", "l1_sp"])
def test_starting_point_penalties_enter_the_loss(name):
    method = built(name, options={"alpha": 0.5, "beta": 0.25})
    with torch.no_grad():
        for p in method.setup.model.parameters():
            p.add_(0.1)
    loss, logits = method.batch_loss(batch(method))
    power = (lambda d: 0.5 * d * d) if name == "l2_sp" else abs
    expected = sum(power(0.1) * p.numel() * (0.25 if n[0] == "2" else 0.5)
                   for n, p in method.setup.model.named_parameters())  # fmt: skip
    assert float((loss - cross_entropy(logits, Y).mean()).detach()) == pytest.approx(expected, rel=1e-4)


def test_lp_ft_trains_the_head_first_and_wise_ft_averages_its_two_phases():
    method = built("wise_ft", options={"alpha": 0.25, "probe": 0.3})
    body, head = method.setup.model[0].weight, method.setup.model[2].weight
    flags = []
    for epoch in range(5):
        method.start_epoch(epoch, none)
        flags.append((body.requires_grad, head.requires_grad, method.lr_factor(epoch)))
        with torch.no_grad():
            head.add_(1.0)
    assert flags == [(False, True, 100.0)] * 3 + [(True, True, 1.0)] * 2
    probed = method.setup.reference["2.weight"] + 3.0
    resumed = built("wise_ft", options={"alpha": 0.25, "probe": 0.3})
    resumed.load_state(method.state())
    with torch.no_grad():
        resumed.setup.model[2].weight.copy_(head)
    resumed.finish()
    torch.testing.assert_close(resumed.setup.model[2].weight.detach(), 0.75 * probed + 0.25 * head.detach())


def test_gradual_unfreezing_thaws_from_the_top():
    method = built("gradual_unfreezing", options={"share": 0.2})
    seen = []
    for epoch in range(4):
        method.start_epoch(epoch, none)
        seen.append([p.requires_grad for p in method.setup.model.parameters()])
    assert seen == [[False, False, True, True], [False, True, True, True]] + [[True] * 4] * 2
