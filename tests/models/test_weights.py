"""Weights as wrappers and training scripts leave them."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import hesstune as ht
from hesstune.errors import ModelError
from hesstune.models.load import fitting_names, load_model, read_weights


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


def test_safetensors_too_and_the_run_says_so(tmp_path, tiny):
    start = load_model(tiny["model"], 2, head_init="keep").model
    save_file({f"module.{k}": v.clone() for k, v in start.state_dict().items()}, tmp_path / "w.safetensors")
    run = ht.finetune({**tiny, "epochs": 1}, method="vanilla", weights=str(tmp_path / "w.safetensors"))
    assert any("'module.' was taken off" in note for note in run.facts.notes)


def test_a_model_whose_own_names_begin_so_keeps_them(tmp_path):
    lit = Lit()
    found, removed = fitting_names(lit.state_dict(), dict(lit.named_parameters()))
    assert removed is None
    assert set(found) == set(lit.state_dict())


def test_names_that_fit_nothing_are_told_as_they_are(tmp_path):
    other = {"module.elsewhere.weight": torch.zeros(2), "module.unknown": torch.zeros(1)}
    torch.save(other, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"unexpected: module\.elsewhere"):
        load_model(network(), 2, weights=tmp_path / "w.pt")


def test_more_than_the_wrapped_model_is_unexpected(tmp_path):
    state = {**Lit().state_dict(), "criterion.weight": torch.ones(2)}
    torch.save({"state_dict": copy.deepcopy(state)}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"unexpected: criterion\.weight"):
        load_model(network(), 2, weights=tmp_path / "w.pt")


def test_a_checkpoint_without_a_state_dict_is_told(tmp_path):
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="holds none as state_dict"):
        read_weights(tmp_path / "w.pt")
