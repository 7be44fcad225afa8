"""Compiled networks give the results and names of their originals, and stay compiled."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import hesstune as ht
from hesstune.constraints.distance import StartingPointPenalty
from hesstune.forward import is_compiled, uncompiled
from hesstune.reference import layer_names
from network_uses import K, N, X, Y, batches, certified, measured, stability, traces

# Its backward pass is compiled, too, so that it cannot be differentiated again.
BACKEND = "aot_eager"


def plain():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.BatchNorm1d(6))
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), block, nn.Linear(6, K)).double().eval()


def whole(model):
    return torch.compile(model, backend=BACKEND)


def part(model):
    model[2] = torch.compile(model[2], backend=BACKEND)
    return model


def layer_in_part(model):
    model[2][0] = torch.compile(model[2][0], backend=BACKEND)
    return torch.compile(model, backend=BACKEND)


def in_place(model):
    model.compile(backend=BACKEND)
    return model


def part_in_place(model):
    model[2].compile(backend=BACKEND)
    return model


WAYS = [whole, part, layer_in_part, in_place, part_in_place]


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def networks(request):
    """A compiled network that has run, the same without compilation, and the reference of each."""
    compiled, model = request.param(plain()), plain()
    refs = ht.Reference.of(compiled), ht.Reference.of(model)
    torch.manual_seed(2)
    with torch.no_grad():
        for p, q in zip(compiled.parameters(), model.parameters(), strict=True):
            p.add_(0.2 * torch.randn_like(p))
            q.copy_(p)
    compiled(X)
    yield compiled, model, refs
    torch.compiler.reset()


def certified_head(model, ref):
    for name, p in model.named_parameters():
        p.requires_grad_(name.endswith(("3.weight", "3.bias")))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not p.requires_grad:
                p.copy_(ref[name.replace("_orig_mod.", "")])
    found = ht.certify(model, ref, TensorDataset(X, Y), draws=N, diagnostic=True)
    return torch.tensor([found.risk, found.empirical]), [*found.sigma, str(found.draw_size)]


def penalised(model, ref):
    return StartingPointPenalty(model, ref, "l2", alpha=1.0)().detach(), []


def ordered(model, ref):
    return torch.zeros(()), layer_names(model, X)


@pytest.mark.parametrize(
    "user",
    [measured, traces, stability, certified, certified_head, penalised, ordered],
    ids=lambda user: user.__name__,
)
def test_results_and_names_are_those_of_the_original(networks, user):
    compiled, model, refs = networks
    names = [name for name, _ in compiled.named_parameters()]
    for ref in refs:
        found, expected = user(compiled, ref), user(model, ref)
        torch.testing.assert_close(found[0], expected[0], rtol=1e-9, atol=1e-12)
        assert found[1] == expected[1]
    assert [name for name, _ in compiled.named_parameters()] == names
    assert is_compiled(compiled)
    assert not is_compiled(model)


def test_references_and_constraints_match_either_way(networks):
    compiled, model, refs = networks
    assert refs[0].names() == refs[1].names()
    assert refs[0].layers() == ["0.weight", "2.0.weight", "3.weight"]
    assert refs[0].distances(model) == refs[1].distances(compiled)
    for one, ref in ((compiled, refs[1]), (model, refs[0])):
        ht.DistanceConstraint(one, ref, {"2.*": 0.1, "3.weight": 0.05}).project_()
    assert refs[0].distances(model) == refs[1].distances(compiled)
    assert refs[0].distances(model)["3.weight"] <= 0.05
    torch.testing.assert_close(compiled(X), model(X))
    refs[1].restore_(compiled)
    assert set(refs[0].distances(compiled).values()) == {0.0}


def test_the_stance_of_the_compiler_is_as_before(networks):
    compiled, _, refs = networks
    ran = []

    def backend(graph, inputs):
        ran.append(graph)
        return graph.forward

    with pytest.raises(ht.HesstuneError):
        ht.measure(compiled, refs[0], [(X, torch.full((N,), K))])
    ht.measure(compiled, refs[0], batches())
    torch.compile(plain(), backend=backend)(X)
    assert ran


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_undone_it_has_plain_names_and_the_same_logits(way):
    compiled = way(plain())
    kept = copy.deepcopy(plain())
    found = uncompiled(compiled)
    assert not is_compiled(found)
    assert list(found.state_dict()) == list(kept.state_dict())
    torch.testing.assert_close(found(X), kept(X))


def test_a_compiled_network_is_fine_tuned_as_the_original(tiny, tmp_path):
    options = {k: v for k, v in tiny.items() if k not in ("model", "out")} | {"epochs": 1, "train": "all"}
    torch.manual_seed(0)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 2))
    expected = ht.finetune(options, model=model, out=str(tmp_path / "plain"))
    model[2] = torch.compile(model[2], backend=BACKEND)
    compiled = torch.compile(model, backend=BACKEND)
    run = ht.finetune(options, model=compiled, out=str(tmp_path / "compiled"))
    assert run.outcome.distances == expected.outcome.distances
    assert any("torch.compile" in note for note in run.facts.notes)
    assert not any("torch.compile" in note for note in expected.facts.notes)
    assert is_compiled(compiled)
    again = ht.Run.load(tmp_path / "compiled", model=compiled)
    assert again.measure().names == ["2.weight", "4.weight"]
