import copy
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import hesstune as ht
from hesstune import Reference
from hesstune.errors import ConfigError, MissingExtraError, ModelError
from hesstune.models.heads import freeze
from hesstune.models.load import check_output, fitting_names, load_model

FACTORY = """
import torch
from torch import nn

def small(num_classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(4, num_classes))

def wrong(k):
    return "no module"

def headless(k):
    return nn.Conv2d(3, k, 3)
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "usernets.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "usernets", raising=False)
    return "py:usernets"


def test_efficientnet_has_its_weights_a_zero_head_and_its_own_normalisation():
    state = torch.get_rng_state()
    loaded = load_model("efficientnet_lite0", 7)
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.head == "_fc"
    assert loaded.model._fc.weight.shape == (7, 1280)
    assert not loaded.model._fc.weight.any()
    assert loaded.mean[0] == pytest.approx(127 / 255)
    assert len(Reference.of(loaded.model).layers()) == 50
    assert loaded.model._conv_stem.weight.std() > 0.05  # trained weights, not an initialisation


def test_users_factories(user_module):
    loaded = load_model(f"{user_module}:small", 3)
    assert loaded.head == "5"
    assert load_model(f"{user_module}:small", 3, head_init="keep").model[5].weight.any()
    check_output(loaded.model, torch.zeros(2, 3, 8, 8), 3)
    with pytest.raises(ModelError, match=r"outputs \(2, 3\).*4 classes"):
        check_output(loaded.model, torch.zeros(2, 3, 8, 8), 4)
    with pytest.raises(ModelError, match="fails on inputs"):
        check_output(loaded.model, torch.zeros(2, 3, 1, 1), 3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("efficientnet_lite", "did you mean 'efficientnet_lite0'"),
        ("efficientnet_lite0:x", "must be written efficientnet_lite0"),
        ("hf:", "must be written hf:NAME"),
        ("hf:./nowhere", "does not exist"),
        ("py:usernets", "py:module:factory"),
        ("py:no_such_module:f", "cannot import"),
        ("py:usernets:smal", "did you mean 'small'"),
        ("py:usernets:wrong", "returned str"),
        ("py:usernets:headless", "logits of shape"),
    ],
)
def test_wrong_specifications(user_module, spec, message):
    with pytest.raises(ModelError, match=message):
        load_model(spec, 3)


@pytest.mark.parametrize("name", ["timm", "torchvision", "transformers"])
def test_missing_extras_name_the_pip_command(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"pip install .*\[{name}\]"):
        load_model(f"{'hf' if name == 'transformers' else name}:resnet18", 3)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_on_top(user_module, tmp_path, suffix):
    source = load_model(f"{user_module}:small", 5, head_init="keep").model
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": source.state_dict()}, path)
    else:
        save_file(source.state_dict(), path)
    loaded = load_model(f"{user_module}:small", 3, weights=path).model  # another number of classes
    torch.testing.assert_close(loaded[0].weight, source[0].weight)
    assert loaded[5].out_features == 3


def test_weights_that_do_not_fit_or_are_unsafe(user_module, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(ModelError, match=r"missing: 0\.bias.*unexpected: bias, weight"):
        load_model(f"{user_module}:small", 3, weights=path)
    torch.save({"weights": [print]}, path)  # a pickled callable: never unpickled
    with pytest.raises(ModelError, match="cannot be read as weights"):
        load_model(f"{user_module}:small", 3, weights=path)
    with pytest.raises(ConfigError, match="does not exist"):
        load_model(f"{user_module}:small", 3, weights=tmp_path / "gone.pt")


def test_transformers_from_a_local_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=5
    )
    source = transformers.ResNetForImageClassification(config)
    source.save_pretrained(tmp_path / "net")
    loaded = load_model(f"hf:{tmp_path / 'net'}", 3)
    check_output(loaded.model, torch.zeros(2, 3, 32, 32), 3)
    name = "resnet.embedder.embedder.convolution.weight"
    torch.testing.assert_close(
        dict(loaded.model.named_parameters())[name], dict(source.named_parameters())[name]
    )


def test_what_is_trained():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.Linear(3, 2))
    assert freeze(model, "head", "3") == ["3.weight", "3.bias"]
    assert [p.requires_grad for p in model.parameters()] == [False] * 6 + [True] * 2
    assert freeze(model, "last:2", "3") == ["2.weight", "2.bias", "3.weight", "3.bias"]
    assert freeze(model, "*.bias", "3") == ["0.bias", "1.bias", "2.bias", "3.bias"]
    assert len(freeze(model, "all", "3")) == 8
    with pytest.raises(ConfigError, match="pattern of parameters"):
        freeze(model, "4.weight", "3")
    with pytest.raises(ConfigError, match="N from 1 to 3"):
        freeze(model, "last:9", "3")


@pytest.fixture
def torchvision_cache(tmp_path, monkeypatch):
    """A cache of torch.hub with random weights in place of ResNet-18's."""
    torchvision = pytest.importorskip("torchvision", exc_type=ImportError)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name = torchvision.models.ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[1]
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    source = torchvision.models.resnet18()
    torch.save(source.state_dict(), tmp_path / "hub" / "checkpoints" / name)
    return source


def test_torchvision_from_its_cache(torchvision_cache):
    state = torch.get_rng_state()
    loaded = load_model("torchvision:resnet18", 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.head == "fc"
    torch.testing.assert_close(loaded.model.conv1.weight, torchvision_cache.conv1.weight)
    check_output(loaded.model, torch.zeros(2, 3, 64, 64), 3)
    with pytest.raises(ModelError, match="did you mean 'resnet18'"):
        load_model("torchvision:resnet-18", 3)


def test_timm_by_weights_of_ones_own(tmp_path):
    timm = pytest.importorskip("timm", exc_type=ImportError)
    source = timm.create_model("resnet18", num_classes=5)
    torch.save(source.state_dict(), tmp_path / "own.pt")
    loaded = load_model("timm:resnet18", 3, weights=tmp_path / "own.pt")
    torch.testing.assert_close(loaded.model.conv1.weight, source.conv1.weight)
    with pytest.raises(ModelError, match="did you mean 'resnet18'"):
        load_model("timm:resnet-18", 3)


@pytest.mark.parametrize("package", ["timm", "torchvision"])
def test_without_a_network_the_error_names_the_weights_option(monkeypatch, package, tmp_path):
    def offline(name, **options):
        raise OSError("no route to host")

    models = SimpleNamespace(get_model=offline, list_models=lambda module: ["resnet18"])
    fake = SimpleNamespace(models=models, create_model=offline, list_models=lambda: ["resnet18"])
    monkeypatch.setitem(sys.modules, package, fake)
    with pytest.raises(ModelError, match=r"no route to host.*--weights FILE"):
        load_model(f"{package}:resnet18", 3)


def test_a_torchvision_built_for_another_torch_is_refused(tmp_path, monkeypatch):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match=r"does not work with torch .*nms does not exist"):
        load_model("torchvision:resnet18", 3)


def network():
    torch.manual_seed(1)
    body = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    return nn.Sequential(body, nn.Linear(4, 2))


class Lit(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = network()


def wrapped():
    """Real wrappers' state dicts, and the names that come off."""
    lit = Lit().state_dict()
    return {
        "plain": (network().state_dict(), None),
        "compiled": (torch.compile(network()).state_dict(), "_orig_mod."),
        "parallel": (nn.DataParallel(network()).state_dict(), "module."),
        "both": (nn.DataParallel(torch.compile(network())).state_dict(), "_orig_mod., module."),
        "lightning": ({"state_dict": lit, "epoch": 3, "callbacks": {}}, "model."),
        "script": ({"model": network().state_dict(), "optimizer": {"lr": 0.1}, "epoch": 3}, None),
        "nested": ({"model_state_dict": nn.DataParallel(network()).state_dict(), "loss": 0.5}, "module."),
        "deep": ({f"a.b.c.{k}": v for k, v in network().state_dict().items()}, "a.b.c."),
    }


@pytest.mark.parametrize("kind", list(wrapped()))
def test_wrapped_weights_are_the_weights(kind, tmp_path):
    state, removed = wrapped()[kind]
    torch.save(state, tmp_path / "w.pt")
    start = network()
    with torch.no_grad():
        for p in start.parameters():
            p.zero_()
    loaded = load_model(start, 2, weights=tmp_path / "w.pt", head_init="keep")
    for name, value in network().state_dict().items():
        torch.testing.assert_close(loaded.model.state_dict()[name], value, msg=name)
    assert [removed in note for note in loaded.notes] == ([True] if removed else [])


def test_safetensors_with_a_prefix_too_and_the_run_notes_it(tmp_path, tiny):
    start = load_model(tiny["model"], 2, head_init="keep").model
    save_file({f"module.{k}": v.clone() for k, v in start.state_dict().items()}, tmp_path / "w.safetensors")
    run = ht.finetune({**tiny, "epochs": 1}, method="vanilla", weights=str(tmp_path / "w.safetensors"))
    assert any("'module.'" in note for note in run.facts.notes)
    lit = Lit()  # a model whose own names begin so keeps them
    found, removed = fitting_names(lit.state_dict(), dict(lit.named_parameters()))
    assert removed is None
    assert set(found) == set(lit.state_dict())


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"module.elsewhere.weight": torch.zeros(2), "module.unknown": torch.zeros(1)}, r"module\.elsewhere"),
        ({"state_dict": {**Lit().state_dict(), "criterion.weight": torch.ones(2)}}, r"criterion\.weight"),
        ({"epoch": 3, "optimizer": {"lr": 0.1}}, "state_dict"),
    ],
)
def test_weights_of_another_model_are_refused(tmp_path, state, said):
    torch.save(copy.deepcopy(state), tmp_path / "w.pt")
    with pytest.raises(ModelError, match=said):
        load_model(network(), 2, weights=tmp_path / "w.pt")
