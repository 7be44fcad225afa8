"""Methods that treat labels or examples apart: their steps against their papers' formulas, by hand."""

import pytest
import torch
from by_hand import K, N, X, Y, batch, built, cross_entropy
from torch import nn

from hesstune.methods.two_networks import clean_probability


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
