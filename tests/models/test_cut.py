"""Networks cut before their first trained module: against the whole network, for the kinds in use."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hesstune.forward import evaluating, logits_of
from hesstune.models.cut import AfterCut, activations_at, find_cut
from hesstune.models.heads import freeze


class Residual(nn.Module):
    """Two layers with a connection around them, and an activation module that serves twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.act = nn.Linear(5, 5), nn.Linear(5, 5), nn.ReLU()

    def forward(self, x):
        return x + self.act(self.second(self.act(self.first(x))))


def residual():
    return nn.Sequential(nn.Linear(4, 5), Residual(), Residual(), nn.Linear(5, 3)), torch.randn(6, 4)


def transformers_model(kind):
    transformers = pytest.importorskip("transformers")
    images = torch.randn(3, 3, 48, 48)
    if kind == "vit":
        config = transformers.ViTConfig(
            hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, image_size=48,
            num_labels=3,
        )  # fmt: skip
        return transformers.ViTForImageClassification(config), images
    if kind == "resnet":
        config = transformers.ResNetConfig(
            num_labels=3, embedding_size=8, hidden_sizes=[8, 8, 16], depths=[1, 2, 2], layer_type="basic"
        )
        return transformers.ResNetForImageClassification(config), images
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, vocab_size=50,
        num_labels=3,
    )  # fmt: skip
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    ids = torch.randint(1, 50, (2, 5)) * mask
    return transformers.BertForSequenceClassification(config), {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("kind", ["residual", "vit", "resnet", "bert"])
@pytest.mark.parametrize("last", [1, 3, 5])
def test_behind_the_cut_is_the_whole_network_with_its_gradients(kind, last):
    model, inputs = residual() if kind == "residual" else transformers_model(kind)
    freeze(model, f"last:{last}", ())
    before = {name: p.clone() for name, p in model.state_dict().items()}
    cut = find_cut(model, inputs)
    assert cut is not None
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    masks = {} if isinstance(inputs, torch.Tensor) else inputs
    with evaluating(model):
        whole = logits_of(model, inputs)
        trained = [p for p in model.parameters() if p.requires_grad]
        expected = torch.autograd.grad(whole.square().sum(), trained, allow_unused=True)
        behind = AfterCut(model, cut)(activations_at(model, cut, inputs), **masks)
        found = torch.autograd.grad(behind.square().sum(), trained, allow_unused=True)
    assert torch.allclose(behind, whole, atol=1e-6)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, atol=1e-5)
    assert not any("forward" in vars(module) for module in model.modules())


def test_skipped_layers_do_not_run_behind_the_cut(monkeypatch):
    model, inputs = residual()
    freeze(model, "last:2", ())
    cut = find_cut(model, inputs)
    assert cut is not None
    assert cut.at == "2"  # before the block: a connection leads around its second layer
    activation = activations_at(model, cut, inputs)
    calls, linear = [], torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *args: calls.append(1) or linear(*args))
    AfterCut(model, cut)(activation)
    assert len(calls) == 3
    model(inputs)
    assert len(calls) == 3 + 6


def test_the_whole_network_is_restored_if_the_part_behind_fails():
    model, inputs = residual()
    assert find_cut(model, inputs) is None  # nothing is frozen
    freeze(model, "last:1", ())
    cut, before = find_cut(model, inputs), model(inputs)
    with pytest.raises(RuntimeError):
        AfterCut(model, cut)(torch.randn(6, 99))
    assert torch.equal(model(inputs), before)
    assert not any(module._forward_pre_hooks or "forward" in vars(module) for module in model.modules())


class Borrowing(nn.Module):
    """A frozen layer that uses a trained layer's weight before that layer is called."""

    def __init__(self):
        super().__init__()
        self.frozen, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = self.frozen(x) + (x @ self.last.weight.T).sum(dim=1, keepdim=True)
        return self.last(torch.relu(x))


class Around(nn.Module):
    """The input itself is used again at the end."""

    def __init__(self):
        super().__init__()
        self.frozen, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.frozen(x)) + x[:, :3]


@pytest.mark.parametrize("kind", [Borrowing, Around])
@pytest.mark.parametrize("zero", [False, True])  # a head of zeros hides nothing
def test_there_is_no_cut_if_the_activation_does_not_determine_the_logits(kind, zero):
    model = kind()
    if zero:
        nn.init.zeros_(model.last.weight)
    freeze(model, "last:1", ())
    assert find_cut(model, torch.randn(2, 4)) is None
