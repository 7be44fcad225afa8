"""Runs of the last layers: frozen ones run once, and nothing else changes."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

import hesstune as ht
from hesstune.cli.main import run as cli
from hesstune.data.augment import Augmentation
from hesstune.errors import ConfigError
from hesstune.inputs.activations import ActivationFile, ActivationInputs
from hesstune.training import fit
from hesstune.training.fit import Trained
from sentences import sentences

NETS = """
from torch import nn

def plain(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(),
        nn.Conv2d(8, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
    )
"""


@pytest.fixture
def last(tiny, tmp_path, monkeypatch):
    """Options of a run that trains the last two layers of a network without dropout."""
    (tmp_path / "plainnets.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return {**tiny, "model": "py:plainnets:plain", "train": "last:2", "method": "vanilla"}


def counting(monkeypatch):
    """Return what counts the activations that runs compute, by part, in the order of their making."""
    made = []
    init = ActivationInputs.__init__

    def counted(self, *args):
        init(self, *args)
        made.append(self)

    monkeypatch.setattr(ActivationInputs, "__init__", counted)
    return made


@pytest.mark.parametrize(
    "method", ["vanilla", "robust", "auto", "sam", "elr", "co_teaching", "mixup", "lora"]
)
def test_as_with_the_whole_network_in_every_epoch(last, monkeypatch, same_weights, method):
    if method == "lora":
        pytest.importorskip("peft")
    options = {**last, "method": method, "augment": "shift+flip", "lr": 1e-3, "epochs": 2}
    kept = ht.finetune(options)
    monkeypatch.setattr(fit, "find_cut", lambda *_: None)
    whole = ht.finetune(options)
    same_weights(kept, whole, atol=1e-5)
    for one, other in zip(kept.metrics, whole.metrics, strict=True):
        assert one["val_loss"] == pytest.approx(other["val_loss"], abs=1e-5)


@pytest.mark.parametrize(
    ("options", "times"),
    [
        ({"augment": "none"}, 1),
        ({"augment": "flip"}, 2),
        ({"augment": "shift+flip", "augment_views": 2}, 3),  # and once as they are, at the end
    ],
)
def test_each_image_is_computed_once_a_variant(last, monkeypatch, same_weights, options, times):
    made = counting(monkeypatch)
    runs = [ht.finetune(last, **options), ht.finetune(last, activations_mib=0, **options)]
    same_weights(*runs, atol=1e-5)
    sizes = runs[0].record["examples"]
    computed = [feed.computed for feed in made]
    assert computed == [
        times * sizes["train"], sizes["val"], sizes["test"],
        5 * sizes["train"], 4 * sizes["val"], sizes["test"],
    ]  # fmt: skip
    assert not any("activ" in path.name for path in runs[0].path.iterdir())
    assert not runs[1].record["notes"]


def test_too_little_room_is_noted_and_nothing_changes(last, monkeypatch, same_weights):
    def full(*_):
        raise OSError("No space left on device")

    kept = ht.finetune(last)
    with monkeypatch.context() as patch:
        patch.setattr(ActivationFile, "__init__", full)
        run = ht.finetune(last)
    assert any("No space left" in note for note in run.record["notes"])
    same_weights(kept, run, atol=1e-5)
    monkeypatch.setattr(fit, "needed_bytes", lambda *_: 5000 * 2**20)
    run = ht.finetune(last)
    assert any("5000 MiB, more than --activations-mib 4096" in note for note in run.record["notes"])


def test_resumed_is_uninterrupted_bit_for_bit(last, tmp_path, interrupt, same_weights):
    interrupt(last, augment="flip", out=tmp_path / "run")
    resumed = ht.finetune(last, augment="flip", out=tmp_path / "run", resume=True)
    same_weights(resumed, ht.finetune(last, augment="flip"))


def test_adapting_batch_norm_and_mixed_inputs_run_the_whole_network(last, monkeypatch):
    made = counting(monkeypatch)
    for options in ({"batch_norm": "adapt"}, {"method": "mixup"}, {"train": "all"}):
        ht.finetune(last, **options, epochs=1)
    assert made == []


def test_observe_is_given_the_whole_network(last):
    seen: list[Trained] = []
    ht.finetune(last, observe=seen.append, epochs=1)
    assert seen[0].net is seen[0].loaded.model
    assert seen[0].feeds["test"].inputs(np.arange(2)).shape[1] == 3


def test_texts_are_kept_at_their_own_lengths(tiny_bert, tmp_path, monkeypatch, same_weights):
    path = tmp_path / "reviews.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *sentences(60)])
    options = {
        "data": f"csv:{path}", "model": f"hf:{tiny_bert}", "train": "last:3", "method": "vanilla",
        "epochs": 2, "batch_size": 4, "lr": 1e-3,
    }  # fmt: skip
    made = counting(monkeypatch)
    kept = ht.finetune(options)
    assert all(feed.computed == len(feed) for feed in made)
    monkeypatch.setattr(fit, "find_cut", lambda *_: None)
    whole = ht.finetune(options)
    assert kept.record["examples"] == whole.record["examples"]
    if not any(m.p for m in whole.loaded().model.modules() if isinstance(m, torch.nn.Dropout)):
        same_weights(kept, whole, atol=1e-5)


def test_from_a_module_on(last, tmp_path, capsys):
    run = ht.finetune(last, train="from:5", epochs=1)
    assert {name for name, d in run.result["distances"].items() if d} == {"5.weight", "9.weight"}
    with pytest.raises(ConfigError, match="'4'"):
        ht.finetune(last, train="from:4")
    with pytest.raises(SystemExit) as end:
        cli(["finetune", "--data", "digits", "--train", "from:_blokcs.6", "--out", str(tmp_path / "x")])
    assert end.value.code == 2
    assert "'_blocks" in capsys.readouterr().err


def test_variants_are_what_is_drawn():
    images = torch.randint(0, 255, (5, 3, 16, 16), dtype=torch.uint8)
    rows = np.arange(5)
    for kind, views in (("none", None), ("flip", None), ("shift+flip", 3), ("shift", 2)):
        augment, seen = Augmentation(kind, flip=True, n=5, seed=3, views=views), []
        for epoch in range(4):
            augment.start_epoch(epoch)
            which = augment.variant(rows, True)
            one = augment(images, rows)
            seen.append(one)
            other = torch.stack([augment.as_variant(images, rows, int(v))[i] for i, v in enumerate(which)])
            assert torch.equal(one, other)
            assert which.max() < augment.variants
        assert torch.equal(augment.as_variant(images, rows, 0), images)
        if views == 2:  # taken in turn
            assert [torch.equal(seen[0], other) for other in seen] == [True, False, True, False]
    fresh = Augmentation("shift", flip=False, n=5, seed=3)
    assert fresh.variant(rows, True) is None
    assert (fresh.variant(rows, False) == 0).all()
