"""The registry of methods, and every method's step against its paper's formula on a small network."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from hesstune import ConsistentLoss, NoiseMatrix, Reference
from hesstune.errors import ConfigError, DataError
from hesstune.losses.robust import (
    ActivePassiveLoss,
    ForwardLoss,
    GeneralizedCrossEntropy,
    JensenShannonLoss,
    SymmetricCrossEntropy,
)
from hesstune.methods import (
    Batch,
    MethodSetup,
    method_class,
    method_name,
    method_names,
    methods_by_tier,
)
from hesstune.methods._base import balanced_rates, clean_shares, consistent
from hesstune.methods.two_networks import clean_probability

K, N = 3, 6
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 2, 0, 1, 2])
ONE_HOT = nn.functional.one_hot(Y, K).float()


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


def none(net):
    raise AssertionError("not needed")


def test_the_registry_holds_every_method_once_in_tiers():
    kinds = {name: method_class(name) for name in method_names()}
    assert len(set(kinds.values())) == len(kinds) >= 30
    assert all(method_name(kind) == name for name, kind in kinds.items())
    tiers = methods_by_tier()
    assert list(tiers) == ["recommended", "baseline", "research"]
    assert {name: kind for tier in tiers.values() for name, kind in tier.items()} == kinds
    assert {"auto", "robust", "certified"} <= tiers["recommended"].keys()
    for name, kind in kinds.items():
        assert kind.__doc__
        for key, option in kind.own_options.items():
            assert option.source, f"{name}.{key}"
            assert option.low <= option.default <= option.high
            if option.search:
                assert option.low <= option.search[0] < option.search[1] <= option.high
    with pytest.raises(ConfigError, match="robust"):
        method_class("robsut")


@pytest.mark.parametrize("name", ["vanilla", "consistent", "constraint", "robust"])
def test_losses_by_epoch_and_projection(name):
    method = built(name, warmup_epochs=2)
    given = method.setup
    logits = given.model(X)
    plain, corrected = cross_entropy(logits, Y).mean(), consistent(given)(logits, Y)
    assert not torch.isclose(plain, corrected)
    expected = {"consistent": (corrected, corrected), "robust": (plain, corrected)}.get(name, (plain, plain))
    for epoch, loss in enumerate(expected, start=1):  # the warm-up ends with epoch 1
        torch.testing.assert_close(method.loss(logits, Y, epoch), loss)
    with torch.no_grad():
        given.model[0].weight.add_(1.0)
    method.after_step()
    distance = given.reference.distances(given.model)["0.weight"]
    assert distance == pytest.approx(0.1 if method.constrained else 20**0.5, rel=1e-4)


@pytest.mark.parametrize("balance", ["weights", "sampler"])
def test_balanced_consistent_loss_is_unbiased_for_the_balanced_clean_risk(balance):
    """Enumerate true classes and noisy labels of a population, with its exact frequencies."""
    F = NoiseMatrix([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.25, 0.15, 0.6]])
    prior = np.array([0.6, 0.3, 0.1])
    noisy = prior @ F.array
    counts = np.round(noisy * 1_000_000).astype(int)
    given = built("vanilla", noise_matrix=F, counts=counts, balance=balance).setup
    logits = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    loss = consistent(given)
    loss.reduction = "none"
    rates = balanced_rates(given.counts) if balance == "sampler" else np.ones(3)
    risk = 0.0
    for true in range(3):
        for label in range(3):
            drawn = prior[true] * F.array[true, label] * rates[label]
            risk += drawn * float(loss(logits[true : true + 1], torch.tensor([label])))
    clean = nn.functional.cross_entropy(logits, torch.arange(3), reduction="none")
    assert risk == pytest.approx(float(clean.mean()), rel=1e-4)


def test_a_balanced_sampler_draws_all_labels_equally_often():
    counts = np.array([5, 10, 85])
    np.testing.assert_allclose(balanced_rates(counts) * counts, 100 / 3)
    with pytest.raises(DataError, match="class 1 has no training example"):
        balanced_rates(np.array([3, 0]))


@pytest.mark.parametrize("n", [200, 20000])
def test_shares_of_true_classes_are_at_least_their_standard_error(n):
    """Over draws of the labels a class of share 0.01 gets a weight of the right size, never 1e5."""
    prior = np.array([0.5, 0.3, 0.19, 0.01])
    F = NoiseMatrix.symmetric(4, 0.4)
    rng = np.random.default_rng(0)
    errors, largest = [], 0.0
    for _ in range(100):
        counts = rng.multinomial(n, prior @ F.array)
        shares, raised = clean_shares(F, counts)
        assert shares.sum() == pytest.approx(1)
        largest = max(largest, 1 / (4 * shares[3]))
        errors.append(((counts / n) @ F.inverse)[3] - prior[3])
        assert n == 200 or set(raised) <= {3}
    # The least share is the estimate's own standard error, as its spread over the draws shows.
    assert largest < 2 / (4 * np.std(errors))
    assert n == 200 or largest < 4 / (4 * prior[3])
    counts = np.array([500, 300, 400])
    shares, raised = clean_shares(NoiseMatrix.pair(3, 0.2), counts)
    np.testing.assert_allclose(shares, counts / 1200 @ NoiseMatrix.pair(3, 0.2).inverse, rtol=1e-12)
    assert not len(raised)


@pytest.mark.parametrize(
    ("name", "options", "loss"),
    [
        ("forward", {}, ForwardLoss(NoiseMatrix.symmetric(K, 0.3))),
        ("gce", {"q": 0.5}, GeneralizedCrossEntropy(0.5)),
        ("sce", {"alpha": 0.3, "beta": 0.6}, SymmetricCrossEntropy(0.3, 0.6)),
        ("apl", {"alpha": 0.3, "beta": 0.6}, ActivePassiveLoss(0.3, 0.6)),
        ("gjs", {"weight": 0.4}, None),
    ],
)
def test_losses_in_place_of_cross_entropy(name, options, loss):
    method = built(name, options=options)
    found, logits = method.batch_loss(batch(method, epoch=3, other=X.flip(1)))
    if name == "gjs":  # of two views
        expected = JensenShannonLoss(0.4)([logits, method.setup.model(X.flip(1))], Y)
    else:
        expected = loss(logits, Y)
    torch.testing.assert_close(found, expected)


def test_mixup_and_label_smoothing_train_on_mixed_labels():
    method = built("mixup", options={"alpha": 1.0})
    torch.manual_seed(5)
    loss, _ = method.batch_loss(batch(method))
    torch.manual_seed(5)
    share = float(torch.distributions.Beta(1.0, 1.0).sample())
    order = torch.randperm(N)
    logits = method.setup.model(share * X + (1 - share) * X[order])
    soft = share * ONE_HOT + (1 - share) * ONE_HOT[order]
    torch.testing.assert_close(loss, cross_entropy(logits, soft).mean())
    method = built("label_smoothing", options={"epsilon": 0.3})
    logits = method.setup.model(X)
    soft = 0.7 * ONE_HOT + 0.3 / K
    torch.testing.assert_close(method.loss(logits, Y, 0), cross_entropy(logits, soft).mean())


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


def test_sam_perturbs_only_the_layers_below_a_head_from_zero():
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


def test_elr_penalises_by_its_memory_for_hard_and_soft_labels():
    method = built("elr", options={"lambda": 2.0, "beta": 0.6})
    p = torch.softmax(method.setup.model(X).detach(), 1)
    memory, given = torch.zeros_like(p), batch(method)
    soft = torch.softmax(torch.randn(N, K, generator=torch.Generator().manual_seed(2)), 1)
    for epoch, targets in enumerate((Y, Y, soft)):
        given.epoch, given.soft = epoch, None if epoch < 2 else soft
        loss, logits = method.batch_loss(given)
        memory = 0.6 * memory + 0.4 * p
        penalty = torch.log(1 - (memory * p).sum(1)).mean()
        torch.testing.assert_close(loss, cross_entropy(logits, targets).mean() + 2.0 * penalty)


def test_robust_plus_is_the_consistent_loss_with_the_memory_and_the_constraint():
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
    soft = 0.8 * ONE_HOT + 0.2 * log_p.exp().detach()
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
    refined = w[:, None] * ONE_HOT + (1 - w[:, None]) * own
    expected = torch.where(trusted[:, None], refined, (own + other) / 2) ** 2
    torch.testing.assert_close(soft, expected / expected.sum(1, keepdim=True))
    plain, logits = method.batch_loss(batch(method, epoch=0))
    expected = cross_entropy(logits, Y).mean() + cross_entropy(method.twin(X), Y).mean()
    torch.testing.assert_close(plain, expected)


def test_depth_scaled_radii_reach_the_constraint():
    method = built("constraint", radius={"2.weight": 2.0, "*": 0.1}, radius_scale=3.0)
    assert method.constraint.radii == {"0.weight": 0.1, "2.weight": 2.0}
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)], nn.Linear(4, K))
    method = built("constraint", model=model, reference=Reference.of(model), head="4", radius_scale=3.0)
    assert list(method.constraint.radii.values()) == pytest.approx([0.1, 0.1, 0.3, 0.9, 0.1])


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("gce", {"q": 2.0}, r"'q'.*\[1e-06, 1\]; got 2"),
        ("elr", {"lamda": 1.0}, "'lamda'.*'lambda'"),
        ("vanilla", {"q": 1.0}, "has none"),
    ],
)
def test_wrong_options_of_methods_are_refused(name, options, said):
    with pytest.raises(ConfigError, match=said):
        built(name, options=options)
