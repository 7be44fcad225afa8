"""The classifier head is found from the graph, whatever the order of registration."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import hesstune as ht
from hesstune.data.examples import Examples
from hesstune.errors import HesstuneError, ModelError
from hesstune.inputs.batches import make_inputs
from hesstune.inputs.features import features_of, frozen_features
from hesstune.models.heads import check_learnable, find_heads, freeze
from hesstune.models.load import load_model

K, D = 3, 5


class Net(nn.Module):
    """A backbone of D features, with classifiers that subclasses register and call."""

    def __init__(self):
        super().__init__()
        self.first(nn.Linear(D, K))
        self.body = nn.Sequential(
            nn.Conv2d(3, D, 3), nn.BatchNorm2d(D), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.last()

    def first(self, layer):
        self.fc = layer

    def last(self):
        self.aux = nn.Linear(D, K)

    def forward(self, x):
        return self.fc(self.body(x))


class Projected(Net):
    """A layer of K outputs is registered after the classifier and used before it."""

    def first(self, layer):
        self.fc = layer

    def last(self):
        self.squeeze, self.expand = nn.Linear(D, K), nn.Linear(K, D)

    def forward(self, x):
        x = self.body(x)
        return self.fc(x * torch.sigmoid(self.expand(torch.relu(self.squeeze(x)))))


class Nested(Net):
    def first(self, layer):
        self.block = nn.ModuleDict({"a": nn.Sequential(nn.LayerNorm(D), layer, nn.Dropout(0.5))})

    def forward(self, x):
        return 2 * self.block["a"](self.body(x))


class Perceptron(Net):
    def first(self, layer):
        self.fc = nn.Sequential(nn.Linear(D, K), nn.ReLU(), nn.Linear(K, K))


class Convolution(Net):
    def first(self, layer):
        self.fc = nn.Conv2d(D, K, 1)

    def forward(self, x):
        return self.fc(self.body[:3](x)).mean((2, 3))


class Twice(Net):
    """One module called on two inputs, and registered under two names."""

    def first(self, layer):
        self.fc = self.same = layer

    def forward(self, x):
        x = self.body(x)
        return self.fc(x) + self.same(x.square())


class Tuple(Net):
    def forward(self, x):
        x = self.body(x)
        return self.fc(x), self.aux(x)


class Averaged(Net):
    def forward(self, x):
        x = self.body(x)
        return (self.fc(x) + self.aux(x.square())) / 2


class Summed(Net):
    """Three classifiers in a list, one over positions as in token labelling."""

    def first(self, layer):
        self.heads = nn.ModuleList([layer, nn.Linear(D, K), nn.Conv2d(D, K, 1)])

    def forward(self, x):
        maps = self.body[:3](x)
        x = maps.mean((2, 3))
        return self.heads[0](x) + self.heads[1](x) + 0.5 * self.heads[2](maps).flatten(2).max(2)[0]


FOUND = {
    Net: ("fc",),
    Projected: ("fc",),
    Nested: ("block.a.1",),
    Perceptron: ("fc.2",),
    Convolution: ("fc",),
    Twice: ("fc",),
    Tuple: ("fc",),
    Averaged: ("fc", "aux"),
    Summed: ("heads.0", "heads.1", "heads.2"),
}


def images(n=2, size=8):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", FOUND)
def test_the_head_that_produces_the_logits_is_found_zero_and_trained(kind):
    net = kind()
    net.body.requires_grad_(False)
    net.body[1].eval()
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    modes = [m.training for m in net.modules()]
    flags = [p.requires_grad for p in net.parameters()]
    assert find_heads(net, images()) == FOUND[kind]
    assert torch.equal(torch.get_rng_state(), state)
    assert modes == [m.training for m in net.modules()]
    assert flags == [p.requires_grad for p in net.parameters()]
    assert all(p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks for m in net.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    loaded = load_model(net, K, image_size=8)
    heads = tuple(f"{name}." for name in loaded.heads)
    assert loaded.heads == FOUND[kind]
    assert not loaded.model.eval()(images())[0].any()
    for name, parameter in loaded.model.named_parameters():
        assert name.startswith(heads) != torch.equal(parameter, net.get_parameter(name)), name
    for train in ("head", "last:1"):
        trained = freeze(loaded.model, train, loaded.heads)
        assert set(trained) == {n for n, _ in net.named_parameters() if n.startswith(heads)}
    check_learnable(loaded.model, loaded.heads, images())


class OnlyInTraining(Averaged):
    def forward(self, x):
        return Tuple.forward(self, x) if self.training else Averaged.forward(self, x)


class Chained(Net):
    """One layer of K outputs feeds the other, and a connection leads around that."""

    def last(self):
        self.aux = nn.Linear(K, K)

    def forward(self, x):
        x = self.fc(self.body(x))
        return x + self.aux(torch.relu(x))


class Tied(Net):
    def last(self):
        self.aux = nn.Linear(D, K)
        self.aux.weight = self.fc.weight


class Normalised(Net):
    def first(self, layer):
        self.fc = nn.utils.parametrizations.weight_norm(layer)


class Prototypes(Net):
    """A layer of K outputs exists, but the logits come from another one."""

    def last(self):
        self.aux = nn.Linear(D, 4)

    def forward(self, x):
        x = self.body(x) + self.fc(self.body(x)).sum(1, keepdim=True)
        return self.aux(x) @ torch.ones(4, K)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (OnlyInTraining, ("fc", "aux")),
        (Chained, ("fc", "aux", "--head")),
        (Tied, ("fc", "aux")),
        (Normalised, ("fc",)),
        (Prototypes, ("aux", "fc", "--head")),
    ],
)
def test_an_ambiguous_head_is_refused_with_the_candidates(kind, names):
    with pytest.raises(ModelError) as error:
        load_model(kind(), K, image_size=8)
    assert all(name in str(error.value) for name in names)


def test_the_head_can_be_named_and_has_to_fit():
    loaded = load_model(Chained(), K, image_size=8, head="aux")
    assert loaded.heads == ("aux",)
    assert not loaded.model.aux.weight.any()
    assert loaded.model.fc.weight.any()
    assert load_model(Averaged(), K, head=["aux", "fc"]).heads == ("aux", "fc")
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, K))
    assert load_model(net, K, image_size=2).head == "1"
    for model, k, options, said in (
        (Chained(), K, {"head": "auxx"}, r"'auxx'.*aux"),
        (Chained(), K, {"head": "body.0"}, r"body\.0.*5 outputs"),
        (net, K, {"image_size": 8}, "8, 8"),
        (net, 7, {"image_size": 2}, rf"{K} logits.*7 classes"),
    ):
        with pytest.raises(ModelError, match=said):
            load_model(model, k, **options)


def test_a_head_that_cannot_learn_is_refused(image_folder, tmp_path):
    class Squeezed(Convolution):  # as in SqueezeNet: a ReLU after the classifier has no gradient at zero
        def forward(self, x):
            return torch.relu(self.fc(self.body[:3](x))).mean((2, 3))

    torch.manual_seed(0)
    net, plain = Squeezed(), {"method": "vanilla", "epochs": 1, "image_size": 16}
    net.fc = nn.Conv2d(D, 2, 1)
    nn.init.ones_(net.fc.bias)
    with pytest.raises(ModelError, match=r"fc.*--head-init keep"):
        ht.finetune(f"folder:{image_folder}", model=net, out=str(tmp_path / "a"), **plain)
    assert not (tmp_path / "a" / "run.json").exists()
    run = ht.finetune(f"folder:{image_folder}", model=net, head_init="keep", out=str(tmp_path / "a"), **plain)
    assert run.outcome.distances["fc.weight"] > 0
    with pytest.raises(ModelError, match="'aux'"):  # a head that the logits do not depend on
        ht.finetune(f"folder:{image_folder}", model=two(Net), head="aux", **plain)


def two(kind):
    """Return a network for two classes."""
    net = kind()
    for name in FOUND[kind]:
        net.set_submodule(name, nn.Linear(D, 2))
    net.aux = nn.Linear(D, 2)
    return net


@pytest.mark.parametrize("method", ["auto", "robust"])
def test_several_classifiers_are_one_head_in_a_run(method, image_folder, tmp_path):
    net, options = two(Averaged), {"method": method, "train": "head", "epochs": 2, "image_size": 16}
    if method == "robust":
        options |= {"noise_matrix": "0.1", "radius": {"head": 0.125}}
    if method == "auto":
        options |= {"train": "all", "select": "last"}
    run = ht.finetune(f"folder:{image_folder}", model=net, out=str(tmp_path / "run"), lr=0.1, **options)
    moved = {name for name, distance in run.outcome.distances.items() if distance > 0}
    assert moved >= {"fc.weight", "aux.weight"}
    assert (moved == {"fc.weight", "aux.weight"}) == (options["train"] == "head")
    assert any("fc, aux" in note for note in run.facts.notes)
    if method == "robust":
        assert run.outcome.radii == {"fc.weight": 0.125, "aux.weight": 0.125}
    loaded = ht.Run.load(run.path, model=net).loaded()
    assert loaded.heads == ("fc", "aux")
    assert run.certify(draws=2).n == run.facts.examples.train


def test_features_of_several_classifiers_are_concatenated(image_folder):
    from hesstune.data.load import load_task

    part: Examples = load_task(f"folder:{image_folder}", size=16).train
    loaded, cpu = load_model(two(Averaged), 2), torch.device("cpu")
    feed = make_inputs(part, loaded, cpu)
    with torch.no_grad():
        x = loaded.model.body.eval()(feed.inputs(np.arange(len(part))))
    expected = torch.cat([x, x.square()], dim=1)
    np.testing.assert_allclose(frozen_features(loaded, part, cpu), expected, rtol=1e-5, atol=1e-6)
    assert features_of(loaded, {"": part}, {"": feed}, 128) is None  # no single layer maps them to logits


def test_clean_takes_the_name_of_the_head(image_folder):
    assert len(ht.clean(f"folder:{image_folder}", head="_fc", image_size=32)) == 24
    with pytest.raises(HesstuneError, match="'_fcc'"):
        ht.clean(f"folder:{image_folder}", head="_fcc", image_size=32)


@pytest.mark.parametrize(
    ("package", "name", "heads"),
    [
        ("timm", "deit_tiny_distilled_patch16_224", ("head", "head_dist")),
        ("timm", "resnetv2_50x1_bit", ("head.fc",)),
        ("torchvision", "googlenet", ("fc",)),
        ("torchvision", "squeezenet1_1", ("classifier.1",)),
        ("torchvision", "vit_b_32", ("heads.head",)),
    ],
)
def test_heads_of_timm_and_torchvision(package, name, heads):
    pytest.importorskip(package, exc_type=ImportError)
    assert load_model(f"{package}:{name}", 7, pretrained=False).heads == heads


def test_two_headed_classifiers_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.DeiTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16,
        patch_size=8, num_labels=4,
    )  # fmt: skip
    transformers.DeiTForImageClassificationWithTeacher(config).save_pretrained(tmp_path / "net")
    loaded = load_model(f"hf:{tmp_path / 'net'}", 2, image_size=16)
    assert loaded.heads == ("cls_classifier", "distillation_classifier")
    trained = freeze(loaded.model, "head", loaded.heads)
    assert {n.rpartition(".")[0] for n in trained} == set(loaded.heads)
