"""Modules that keep tensors in eval mode, as LeViT does, give the results of twins that keep none."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hesstune as ht
from hesstune.forward import clear_caches, evaluating, logits_of
from hesstune.models.cut import AfterCut, find_cut
from network_uses import K, X, batches, certified, distances, measured, stability, traces


class Gathered(nn.Module):
    """Gathers its biases by index and keeps them in eval mode until train(True), as LeViT does."""

    def __init__(self, width, keeps=True):
        super().__init__()
        self.biases = nn.Parameter(torch.randn(width))
        self.register_buffer("places", torch.arange(width).flip(0))
        self.keeps, self.kept = keeps, None

    def train(self, mode=True):
        super().train(mode)
        if mode:
            self.kept = None

    def forward(self, x):
        if self.training or not self.keeps:
            return x + self.biases[self.places]
        if self.kept is None:
            self.kept = self.biases[self.places]
        return x + self.kept


class Normalised(nn.Linear):
    """A layer that keeps its normalised weight itself in eval mode."""

    def __init__(self, inputs, outputs, keeps=True):
        super().__init__(inputs, outputs)
        self.keeps, self.kept = keeps, {}

    def train(self, mode=True):
        if mode:
            self.kept.clear()
        return super().train(mode)

    def forward(self, x):
        weight = self.kept.get("weight", 2 * F.normalize(self.weight))
        if self.keeps and not self.training:
            self.kept["weight"] = weight
        return F.linear(x, weight, self.bias)


class Merging(nn.Linear):
    """LoRA that adds B·A to the weight when eval mode begins and takes it off when it ends, as in loralib."""

    def __init__(self, inputs, outputs, merges=True):
        super().__init__(inputs, outputs)
        self.a = nn.Parameter(torch.randn(2, inputs))
        self.b = nn.Parameter(torch.randn(outputs, 2))
        self.merges, self.merged = merges, False

    def train(self, mode=True):
        super().train(mode)
        if self.merges and self.merged == mode:
            self.weight.data += (-1 if mode else 1) * (self.b @ self.a).data
            self.merged = not mode
        return self

    def forward(self, x):
        return super().forward(x) if self.merged else F.linear(x, self.weight + self.b @ self.a, self.bias)


def network(keeps=True, middle=Gathered):
    torch.manual_seed(0)
    inner = Gathered(6, keeps) if middle is Gathered else middle(6, 6, keeps)
    return nn.Sequential(nn.Linear(5, 6), inner, nn.Tanh(), nn.Linear(6, K)).double()


def stale(model):
    """Fill what is kept, then move all weights in place, as training does."""
    model.eval()
    model(X)
    torch.manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def pair(middle=Gathered):
    """A network with a stale cache and the same network without one, and their reference."""
    ref = ht.Reference.of(network(True, middle))
    return stale(network(True, middle)), stale(network(False, middle)), ref


def logits(model, ref):
    with evaluating(model), torch.no_grad():
        return logits_of(model, X), []


@torch.no_grad()
def after_restoring(model, ref):
    clear_caches(model)
    model(X)  # keeps what the weights are now
    ref.restore_(model)
    return model(X), []


@torch.no_grad()
def after_projecting(model, ref):
    model(X)
    ht.DistanceConstraint(model, ref, 0.2, include=()).project_()
    return model(X), []


CHANGING = (after_restoring, after_projecting)
USERS = [measured, traces, stability, certified, distances, logits, *CHANGING]


@pytest.mark.parametrize("user", USERS, ids=lambda user: user.__name__)
@pytest.mark.parametrize("middle", [Gathered, Normalised], ids=lambda kind: kind.__name__)
def test_what_is_kept_in_eval_mode_changes_nothing(user, middle):
    one, other, ref = pair(middle)
    torch.testing.assert_close(user(one, ref)[0], user(other, ref)[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("user", USERS, ids=lambda user: user.__name__)
@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_a_network_is_left_as_it_was(user, mode):
    model, _, ref = pair()
    clear_caches(model)
    model.train(mode)
    model[2].train(not mode)  # a part with a mode of its own
    before = {name: t.clone() for name, t in model.state_dict().items()}
    user(model, ref)
    assert [m.training for m in model.modules()] == [mode, mode, mode, not mode, mode]
    if user not in CHANGING:
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert model[1].kept is None or user in CHANGING
    copy.deepcopy(model)  # no graph is left in it
    model.eval()
    twin = network(keeps=False)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(model(X), twin.eval()(X))


def test_merged_weights_are_taken_apart_again():
    model = network(middle=Merging).train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with evaluating(model):
        assert model[1].merged
        inside = logits_of(model, X)
    assert not model[1].merged
    torch.testing.assert_close(model(X), inside)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name])


def test_a_module_in_two_places_and_one_that_refuses_modes_keep_their_own():
    class Frozen(nn.BatchNorm1d):
        def train(self, mode=True):
            return super().train(False)

    shared = nn.Dropout()
    model = nn.Sequential(nn.Sequential(shared), nn.Sequential(shared, Frozen(5)), nn.Linear(5, K))
    model.train()
    model[1].training = False
    modes = [m.training for m in model.modules()]
    with evaluating(model):
        assert not any(m.training for m in model.modules())
    assert [m.training for m in model.modules()] == modes
    clear_caches(model)
    assert [m.training for m in model.modules()] == modes


def test_a_cut_network_computes_with_its_present_weights():
    one, other, _ = pair()
    for model in (one, other):
        model[0].requires_grad_(False)
    found = find_cut(one, X)
    assert found == find_cut(other, X)
    assert found.at == "1"
    with torch.no_grad():
        for model in (one, other):
            model[1].biases.add_(1.0)
        inside = one[0](X)
        torch.testing.assert_close(AfterCut(one, found).eval()(inside), AfterCut(other, found).eval()(inside))


class Pictures(nn.Module):
    """Small pictures through one module that keeps its biases."""

    def __init__(self, keeps):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 6))
        self.bias, self.head = Gathered(6, keeps), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.bias(self.body(x))))


@pytest.mark.parametrize("method", ["vanilla", "auto", "robust", "certified", "sam", "nso", "wise_ft", "elr"])
def test_training_validates_and_keeps_the_present_weights(tiny, method, tmp_path):
    options = {k: v for k, v in tiny.items() if k not in ("model", "out")}
    options |= {"method": method, "train": "all", "epochs": 3, "lr": 0.05, "batch_size": 4}
    runs = {}
    for keeps in (True, False):
        out = str(tmp_path / f"{method}{keeps}")
        model = Pictures(keeps).eval()
        model(torch.zeros(1, 3, 8, 8))  # with a graph, which could not be copied
        runs[keeps] = ht.finetune(options, model=model, out=out)
    assert [e["val_loss"] for e in runs[True].metrics] == [e["val_loss"] for e in runs[False].metrics]
    other = runs[False].model().state_dict()
    assert all(torch.equal(t, other[name]) for name, t in runs[True].model().state_dict().items())
    assert runs[True].outcome.test_accuracy == runs[False].outcome.test_accuracy


def test_draws_are_independent_of_each_other():
    """The biases of draws j and j + 1 differ: with a stale cache every draw had the first one's."""
    model, _, _ = pair()
    torch.manual_seed(0)
    seen = []
    with evaluating(model), torch.no_grad():
        for _ in range(4):
            model[1].biases.normal_()
            seen.append(logits_of(model, X))
    assert all(not torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])


def test_gradients_of_eval_mode_reach_the_kept_weights_in_every_batch():
    one, other, _ = pair()
    for model in (one, other):
        with evaluating(model):
            for inputs, targets in batches():
                F.cross_entropy(logits_of(model, inputs), targets).backward()
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
