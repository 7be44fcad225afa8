"""Adapters in a network: their layers, the merged weights, and networks that cannot have them."""

import pytest
import torch
from torch import nn

from hesstune import Reference
from hesstune.constraints.distance import DistanceConstraint
from hesstune.errors import ConfigError

pytest.importorskip("peft")

from hesstune.constraints.adapters import AdapterConstraint, distances
from hesstune.models.adapters import Adapters, LoraSize, check_adapters

SIZE = LoraSize(2, 4.0)
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(2))
TOKENS = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(3))


class OwnConv(nn.Conv2d):
    """A class whose constructor peft cannot call, as EfficientNet's."""

    def __init__(self, needed):
        super().__init__(3, needed, 1)


def layers():
    """`0` is a layer and the ending of another module's name, which is none."""
    inner = nn.Sequential(nn.ReLU(), nn.Linear(5, 5))
    return nn.Sequential(nn.Linear(4, 5), inner, nn.Linear(5, 3))


def convolutions():
    return nn.Sequential(
        nn.Conv2d(3, 3, 3), OwnConv(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )


class Attention(nn.Module):
    """torch's attention, which uses the weight of a linear layer without calling it."""

    def __init__(self):
        super().__init__()
        self.attention, self.body = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.attention(x, x, x, need_weights=False)[0]
        return self.head(torch.tanh(self.body(x)).mean(1))


class BaseLayer(nn.Module):
    """A module with the name that peft gives to what it wraps."""

    def __init__(self):
        super().__init__()
        self.base_layer, self.head = (
            nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5)),
            nn.Linear(5, 3),
        )

    def forward(self, x):
        return self.head(self.base_layer(x))


def gpt2():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=16, num_labels=3, pad_token_id=0
    )
    return transformers.GPT2ForSequenceClassification(config)


IDS = {"input_ids": torch.arange(1, 13).reshape(2, 6)}
NETWORKS = {
    "whole names": (layers, "2", X, ["0.weight", "1.1.weight"]),
    "convolutions of other classes": (convolutions, "4", IMAGES, ["1.weight"]),
    "attention": (Attention, "head", TOKENS, ["body.weight"]),
    "base_layer": (BaseLayer, "head", X, ["base_layer.0.weight", "base_layer.2.weight"]),
    "transposed": (gpt2, "score", IDS, ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]),
}


def logits(model, inputs):
    found = model(**inputs).logits if isinstance(inputs, dict) else model(inputs)
    return found.detach()


@pytest.fixture(params=NETWORKS)
def adapted(request):
    """A network with random adapters, its reference, and inputs."""
    make, head, inputs, names = NETWORKS[request.param]
    torch.manual_seed(0)
    model = make().eval()
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found, count = check_adapters(model, [head], SIZE, inputs)
    assert [name.endswith(end) or f"{end}.weight" in name for name, end in zip(found, names, strict=True)]
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    state, reference = torch.get_rng_state(), Reference.of(model)
    adapters = Adapters(model, [head], SIZE, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert adapters.layers == found
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == count
    with torch.no_grad():
        for name, p in trained.items():
            assert ".lora_" in name or name.startswith(f"{head}.")
            p.add_(0.5 * torch.randn_like(p))
    return model, adapters, reference, inputs


def test_the_merged_network_has_the_logits_of_the_network_with_adapters(adapted):
    model, adapters, reference, inputs = adapted
    expected, moved = logits(model, inputs), distances(model, reference, warn=False)
    with adapters.merged():
        torch.testing.assert_close(logits(model, inputs), expected, rtol=1e-4, atol=1e-5)
        assert reference.distances(model) == pytest.approx(moved, rel=1e-4, abs=1e-6)
    torch.testing.assert_close(logits(model, inputs), expected, rtol=0, atol=0)
    kinds = [type(module) for module in adapters._originals.values()]
    adapters.merge_()
    reference.check(model)
    assert [type(model.get_submodule(name.removesuffix(".weight"))) for name in adapters.layers] == kinds
    torch.testing.assert_close(logits(model, inputs), expected, rtol=1e-4, atol=1e-5)
    assert reference.distances(model) == pytest.approx(moved, rel=1e-4, abs=1e-6)
    for name in adapters.layers:
        update = model.get_parameter(name).detach() - reference[name]
        assert torch.linalg.matrix_rank(update.flatten(1), rtol=1e-4) == SIZE.rank
        assert moved[name] > 0
    assert not hasattr(model, "peft_config")
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("norm", ["frobenius", "mars"])
def test_the_constraint_holds_products_and_the_head_as_it_holds_weights(adapted, norm):
    model, adapters, reference, _ = adapted
    with adapters.merged():
        whole = {name: p.detach().clone() for name, p in model.named_parameters()}
    constraint = AdapterConstraint(model, 0.1, norm, reference, warn=False)
    moving = {name for name, d in distances(model, reference, warn=False).items() if d}
    assert set(constraint.radii) == moving
    constraint.project_()
    assert not constraint.outside()
    with adapters.merged(), torch.no_grad():
        found = {name: p.detach().clone() for name, p in model.named_parameters()}
        for name, p in model.named_parameters():
            p.copy_(whole[name])
        DistanceConstraint(model, reference, 0.1, norm, include=()).project_()
        for name, p in model.named_parameters():
            torch.testing.assert_close(found[name], p.detach(), rtol=1e-4, atol=1e-5)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.one, self.other, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.other.weight = self.one.weight

    def forward(self, x):
        return self.head(torch.tanh(self.other(torch.tanh(self.one(x)))))


class Blocks(nn.Module):
    """torch's encoder: in evaluation mode it uses weights without calling their layers."""

    def __init__(self):
        super().__init__()
        self.block, self.head = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.block(x).mean(1))


def frozen():
    model = layers()
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith("2"))
    return model


def with_adapters():
    model = layers()
    Adapters(model, ["2"], SIZE, seed=0)
    return model


@pytest.mark.parametrize(
    ("make", "head", "inputs", "rank", "said"),
    [
        (Tied, "head", X, 2, r"without calling their layers .one.weight"),
        (Blocks, "head", TOKENS, 2, "without calling their layers"),
        (frozen, "2", X, 2, "none of them trains here"),
        (layers, "2", X, 6, "rank 6 is larger than the layers themselves, of rank 5 at most"),
        (with_adapters, "2", X, 2, "has adapters already"),
    ],
)
def test_networks_that_cannot_have_adapters_are_refused_as_they_were(make, head, inputs, rank, said):
    torch.manual_seed(0)
    model = make().eval()
    before = {n: (p.detach().clone(), p.requires_grad) for n, p in model.named_parameters()}
    with pytest.raises(ConfigError, match=said):
        check_adapters(model, [head], LoraSize(rank, 4.0), inputs)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name][0]), name
        assert p.requires_grad == before[name][1]


def test_adapters_are_drawn_by_their_seed():
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        model = layers()
        Adapters(model, ["2"], SIZE, seed)
        drawn.append(dict(model.named_parameters())["0.lora_A.default.weight"].detach())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
