"""Every method's step against its paper's formula, worked by hand on a small network."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from hesstune import NoiseMatrix, Reference
from hesstune.errors import ConfigError
from hesstune.methods import Batch, MethodSetup, method_class
from hesstune.methods.divide_mix import clean_probability

K, N = 3, 6
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def built(name, **changes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, K))
    values = {
        "model": model,
        "reference": Reference.of(model),
        "noise_matrix": NoiseMatrix.symmetric(K, 0.3),
        "counts": np.array([2, 2, 2]),
        "radius": 0.1,
        "norm": "frobenius",
        "warmup_epochs": 1,
        "head": "2",
        "epochs": 10,
    }
    return method_class(name)(MethodSetup(**{**values, **changes}))


def batch(method, epoch=0, other=None):
    net = method.setup.network
    return Batch(net, X, Y, torch.arange(N), epoch, lambda: X if other is None else other)


def cross_entropy(logits, targets):
    return nn.functional.cross_entropy(logits, targets, reduction="none")


def trained_weights(method):
    return {name: p.detach().clone() for name, p in method.setup.model.named_parameters()}


def step(method):
    """The gradients that the loop would step along."""

    def compute():
        method.setup.model.zero_grad()
        loss, _ = method.batch_loss(batch(method))
        loss.backward()

    method.gradients(compute)
    return {name: p.grad.clone() for name, p in method.setup.model.named_parameters()}


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


def none(net):
    raise AssertionError("not needed")


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


def test_elr_remembers_and_penalises():
    method = built("elr", options={"lambda": 2.0, "beta": 0.6})
    p = torch.softmax(method.setup.model(X).detach(), 1)
    first, logits = method.batch_loss(batch(method))
    memory = 0.4 * p
    expected = cross_entropy(logits, Y).mean() + 2.0 * torch.log(1 - (memory * p).sum(1)).mean()
    torch.testing.assert_close(first, expected)
    second, _ = method.batch_loss(batch(method, epoch=1))
    memory = 0.6 * memory + 0.4 * p
    expected = cross_entropy(logits, Y).mean() + 2.0 * torch.log(1 - (memory * p).sum(1)).mean()
    torch.testing.assert_close(second, expected)


def test_elr_trains_on_soft_labels():
    method = built("elr", options={"lambda": 2.0, "beta": 0.6})
    p = torch.softmax(method.setup.model(X).detach(), 1)
    soft = torch.softmax(torch.randn(N, K, generator=torch.Generator().manual_seed(2)), 1)
    given = batch(method)
    given.soft = soft
    loss, logits = method.batch_loss(given)
    penalty = torch.log(1 - (0.4 * p * p).sum(1)).mean()
    torch.testing.assert_close(loss, -(soft * torch.log_softmax(logits, 1)).sum(1).mean() + 2.0 * penalty)


def test_robust_plus_is_the_consistent_loss_with_the_memory_inside_the_ball():
    from hesstune import ConsistentLoss

    method = built("robust_plus", options={"lambda": 2.0, "beta": 0.6})
    p = torch.softmax(method.setup.model(X).detach(), 1)
    early, logits = method.batch_loss(batch(method, epoch=0))
    memory = 0.4 * p
    penalty = torch.log(1 - (memory * p).sum(1)).mean()
    torch.testing.assert_close(early, cross_entropy(logits, Y).mean() + 2.0 * penalty)
    late, logits = method.batch_loss(batch(method, epoch=1))
    memory = 0.6 * memory + 0.4 * p
    penalty = torch.log(1 - (memory * p).sum(1)).mean()
    expected = ConsistentLoss(method.setup.noise_matrix)(logits, Y) + 2.0 * penalty
    torch.testing.assert_close(late, expected)
    with torch.no_grad():
        method.setup.model[0].weight.add_(1.0)
    method.after_step()
    assert method.distances()["0.weight"] == pytest.approx(0.1, rel=1e-5)


def test_self_adaptive_training_moves_its_targets_after_the_first_phase():
    method = built("sat", options={"alpha": 0.8, "after": 0.5})
    early, logits = method.batch_loss(batch(method, epoch=4))
    torch.testing.assert_close(early, cross_entropy(logits, Y).mean())
    late, _ = method.batch_loss(batch(method, epoch=5))
    log_p = torch.log_softmax(logits, 1)
    soft = 0.8 * nn.functional.one_hot(Y, K) + 0.2 * log_p.exp().detach()
    weight = soft.max(1).values
    expected = (weight * -(soft * log_p).sum(1)).sum() / weight.sum()
    torch.testing.assert_close(late, expected)


def test_regsl_reweights_then_relabels_confident_examples():
    method = built("regsl", options={"threshold": 0.5, "temperature": 1.5})
    with torch.no_grad():
        method.setup.model[2].bias.copy_(torch.tensor([0.0, 2.0, 0.0]))
    plain, logits = method.batch_loss(batch(method, epoch=1))
    losses = cross_entropy(logits, Y)
    torch.testing.assert_close(plain, losses.mean())
    weight = torch.softmax(-losses.detach() / 1.5, 0)
    torch.testing.assert_close(method.batch_loss(batch(method, epoch=2))[0], (weight * losses).sum())
    p = torch.softmax(logits.detach(), 1)
    relabelled = torch.where(p.max(1).values > 0.5, p.argmax(1), Y)
    assert (relabelled != Y).any()
    losses = cross_entropy(logits, relabelled)
    weight = torch.softmax(-losses.detach() / 1.5, 0)
    torch.testing.assert_close(method.batch_loss(batch(method, epoch=4))[0], (weight * losses).sum())
    with torch.no_grad():
        method.setup.model[0].weight.add_(1.0)
    method.after_step()
    assert method.distances()["0.weight"] == pytest.approx(0.1, rel=1e-5)


def test_gjs_uses_two_views():
    from hesstune.losses.robust import JensenShannonLoss

    method = built("gjs", options={"weight": 0.4})
    other = X.flip(1)
    loss, _ = method.batch_loss(batch(method, other=other))
    views = [method.setup.model(X), method.setup.model(other)]
    torch.testing.assert_close(loss, JensenShannonLoss(0.4)(views, Y))


def test_co_teaching_exchanges_the_easy_examples():
    method = built("co_teaching", options={"ramp": 0.2})
    assert [round(method.kept(e), 3) for e in range(3)] == [0.85, 0.7, 0.7]
    with torch.no_grad():
        method.twin[2].bias.copy_(torch.tensor([3.0, 0.0, -3.0]))
    loss, _ = method.batch_loss(batch(method, epoch=5))
    losses = [cross_entropy(net(X), Y) for net in (method.setup.model, method.twin)]
    easy = [values.argsort()[:5] for values in losses]  # ⌈0.7 · 6⌉
    torch.testing.assert_close(loss, losses[0][easy[1]].mean() + losses[1][easy[0]].mean())


def test_the_twin_starts_elsewhere_and_its_state_is_kept():
    method = built("co_teaching")
    own, twin = method.setup.model.state_dict(), method.twin.state_dict()
    assert torch.equal(own["0.weight"], twin["0.weight"])
    assert not torch.equal(own["2.weight"], twin["2.weight"])
    with torch.no_grad():
        method.twin[0].weight.add_(1.0)
    resumed = built("co_teaching")
    resumed.load_state(method.state())
    assert torch.equal(resumed.twin[0].weight, method.twin[0].weight)


def test_divide_mix_divides_refines_and_sharpens():
    losses = torch.cat([torch.rand(80) * 0.1, 2 + torch.rand(40) * 0.1])
    clean = clean_probability(losses)
    assert clean[:80].min() > 0.99
    assert clean[80:].max() < 0.01
    assert torch.equal(clean_probability(torch.ones(5)), torch.ones(5))
    method = built("divide_mix")
    own = torch.softmax(torch.randn(N, K), 1)
    other = torch.softmax(torch.randn(N, K), 1)
    w = torch.tensor([0.9, 0.8, 1.0, 0.1, 0.2, 0.0])
    soft, trusted = method.targets(batch(method), own, other, w)
    assert trusted.tolist() == [True] * 3 + [False] * 3
    refined = w[:, None] * nn.functional.one_hot(Y, K) + (1 - w[:, None]) * own
    expected = torch.where(trusted[:, None], refined, (own + other) / 2) ** 2
    torch.testing.assert_close(soft, expected / expected.sum(1, keepdim=True))
    plain, logits = method.batch_loss(batch(method, epoch=0))
    expected = cross_entropy(logits, Y).mean() + cross_entropy(method.twin(X), Y).mean()
    torch.testing.assert_close(plain, expected)


def test_lora_updates_have_low_rank_and_are_merged():
    pytest.importorskip("peft")
    method = built("lora", options={"rank": 2.0})
    model = method.setup.model
    before = model(X).detach()
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert all("lora_" in n or n.startswith("2.") for n in trained)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.randn_like(p))
    expected, distances = model(X).detach(), method.distances()
    assert not torch.allclose(before, expected)
    method.finish()
    method.setup.reference.check(model)
    torch.testing.assert_close(model(X).detach(), expected, rtol=1e-4, atol=1e-5)
    assert method.setup.reference.distances(model) == pytest.approx(distances, rel=1e-4)
    update = model[0].weight.detach() - method.setup.reference["0.weight"]
    assert torch.linalg.matrix_rank(update, rtol=1e-4) == 2


def test_lora_takes_a_layer_by_its_whole_name():
    """`0` is a layer and the ending of another module's name, which is none."""
    pytest.importorskip("peft")
    torch.manual_seed(0)
    inner = nn.Sequential(nn.ReLU(), nn.Linear(5, 5))
    model = nn.Sequential(nn.Linear(4, 5), inner, nn.Linear(5, K))
    method = built("lora", model=model, reference=Reference.of(model))
    assert sorted(method.layers) == ["0", "1.1"]
    assert isinstance(inner[0], nn.ReLU)


def test_lora_adapts_convolutions_of_other_classes_and_puts_them_back():
    """EfficientNet's 1×1 convolutions are a subclass whose constructor peft cannot call."""
    pytest.importorskip("peft")

    class Own(nn.Conv2d):
        def __init__(self, needed):
            super().__init__(3, needed, 1)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 3, 3), Own(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, K))
    method = built("lora", model=model, reference=Reference.of(model), head="4", options={"rank": 2.0})
    assert method.layers == ["1"]
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.randn_like(p))
    images = torch.randn(2, 3, 6, 6)
    expected = model(images).detach()
    method.finish()
    assert type(model[1]) is Own
    torch.testing.assert_close(model(images).detach(), expected, rtol=1e-4, atol=1e-5)
    assert method.setup.reference.distances(model)["1.weight"] > 0


def test_lora_says_where_it_has_nothing_to_adapt():
    pytest.importorskip("peft")
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, K))
    model[0].requires_grad_(False)
    with pytest.raises(ConfigError, match="none of them trains here"):
        built("lora", model=model, reference=Reference.of(model))


def test_depth_scaled_radii_reach_the_constraint():
    method = built("constraint", radius={"2.weight": 2.0, "*": 0.1}, radius_scale=3.0)
    assert method.constraint.radii == {"0.weight": 0.1, "2.weight": 2.0}
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)], nn.Linear(4, K))
    method = built("constraint", model=model, reference=Reference.of(model), head="4", radius_scale=3.0)
    assert list(method.constraint.radii.values()) == pytest.approx([0.1, 0.1, 0.3, 0.9, 0.1])


def test_own_options_are_checked():
    with pytest.raises(ConfigError, match=r"'q' must lie in \[1e-06, 1\]; got 2"):
        built("gce", options={"q": 2.0})
    with pytest.raises(ConfigError, match="unknown method option 'lamda'; did you mean 'lambda'"):
        built("elr", options={"lamda": 1.0})
    with pytest.raises(ConfigError, match="this method has none"):
        built("vanilla", options={"q": 1.0})


def test_every_option_says_where_its_default_comes_from():
    from hesstune.methods import method_names

    for name in method_names():
        assert method_class(name).__doc__
        for key, option in method_class(name).own_options.items():
            assert option.source, f"{name}.{key}"
            assert option.low <= option.default <= option.high
            if option.search:
                assert option.low <= option.search[0] < option.search[1] <= option.high
