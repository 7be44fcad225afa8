"""Options that have no effect, or less than they say, are refused or noted."""

import json

import numpy as np
import pytest
import torch

import hesstune as ht
from hesstune.data.load import load_task
from hesstune.errors import ConfigError
from hesstune.methods import Method, method_class, method_names
from hesstune.runs.config import make_config


def declaring(name):
    return [method for method in method_names() if getattr(method_class(method), name)]


@pytest.mark.parametrize("method", declaring("warms_up"))
def test_a_warm_up_leaves_an_epoch_or_is_refused(method):
    options = {"method": method, "noise_matrix": "symmetric:0.2"}
    for epochs, warm in ((1, 0), (2, 1), (3, 2), (15, 2)):
        assert make_config({**options, "epochs": epochs}).resolved().warmup_epochs == warm
    for epochs in (1, 2):
        with pytest.raises(ConfigError, match=f"--warmup-epochs 2 of --epochs {epochs}"):
            make_config({**options, "epochs": epochs, "warmup_epochs": 2}).resolved()


def test_robust_of_one_epoch_is_not_plain_training(tiny):
    options = {**tiny, "epochs": 1, "inject_noise": None, "noise_matrix": "symmetric:0.4", "radius": 1e3}
    runs = [ht.finetune(options, method=method) for method in ("robust", "constraint")]
    one, other = (torch.cat([p.flatten() for p in run.model().parameters()]) for run in runs)
    assert not torch.allclose(one, other)
    assert any("warm-up takes 0 of 1 epoch:" in note for note in runs[0].facts.notes)


def test_the_warm_up_of_a_trial_of_radii_leaves_an_epoch_too(tiny, monkeypatch):
    seen = []
    robust = method_class("robust")
    made = robust.__init__

    def watched(self, setup):
        seen.append((setup.epochs, setup.warmup_epochs))
        made(self, setup)

    monkeypatch.setattr(robust, "__init__", watched)
    ht.finetune({**tiny, "epochs": 3, "method": "robust", "radius": "auto"})
    assert set(seen) == {(2, 1), (3, 2)}


@pytest.mark.parametrize(
    ("options", "method", "notes"),
    [
        (
            {"radius": 0.1, "norm": "mars", "momentum": 0.5, "max_length": 64, "clean_val": True,
             "label_model": "mace", "augment": "flip", "augment_views": 2, "patience": 9},
            "vanilla",
            ["--radius, --norm", "--momentum", "--max-length", "--clean-val", "--label-model",
             "--augment-views", "a patience of 9 cannot end 2 epochs early"],
        ),
        ({"train": "head", "augment_views": 2}, "vanilla", ["--augment-views"]),
        ({"warmup_epochs": 1}, "constraint", ["method 'constraint' has no warm-up"]),
        ({"train": "head"}, "lp_ft", ["plain fine-tuning of the head"]),
        ({"train": "head"}, "gradual_unfreezing", ["nothing thaws"]),
        ({"epochs": 1}, "gradual_unfreezing", ["no layer below the head thaws"]),
        ({"epochs": 1}, "lp_ft", ["probing is left out"]),
        ({"method_options": {"probe": 1.0}}, "wise_ft", ["nothing but the head is trained"]),
        ({"inject_noise": "symmetric:0.2", "epochs": 3}, "robust", []),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_noted(tiny, options, method, notes):
    found = ht.finetune({**tiny, "epochs": 2, "inject_noise": None, **options}, method=method).facts.notes
    for note in notes:
        assert any(note in each for each in found), found
    assert notes or not found


def test_notes_are_printed_and_kept(tiny, tmp_path, capsys):
    from hesstune.cli.main import run as cli

    options = ["--model", tiny["model"], "--data", tiny["data"], "--image-size", "16", "--epochs", "1"]
    with pytest.raises(SystemExit) as end:
        cli(["finetune", *options, "--method", "vanilla", "--radius", "1", "--out", str(tmp_path / "run")])
    assert end.value.code == 0
    assert "no effect of --radius" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "run" / "run.json").read_text())["notes"]) == 1
    assert "no effect of --radius" in (tmp_path / "run" / "README.md").read_text()


def test_a_matrix_that_the_loss_does_not_use_is_not_said_to_be_used(tiny):
    plain = ht.finetune({**tiny, "epochs": 1, "inject_noise": None}, method="vanilla", noise_matrix=0.2)
    assert plain.facts.noise.loss_matrix.startswith("nothing; the validation loss alone: rate 0.2")


def test_a_class_that_the_matrix_leaves_empty_is_named(tmp_path, tiny):
    ht.NoiseMatrix(np.array([[0.5, 0.5], [0.0, 1.0]])).save(tmp_path / "F.json")
    options = {**tiny, "inject_noise": None, "noise_matrix": str(tmp_path / "F.json"), "epochs": 2}
    run = ht.finetune(options, method="robust", class_weights="balanced", split="stratified")
    assert any("class 'light' has hardly an example" in note for note in run.facts.notes)


def test_noise_that_leaves_nothing_to_learn_is_injected_and_noted_and_given_to_no_loss(tiny):
    plain = tiny | {"epochs": 1, "train": "head", "method": "vanilla", "noise_matrix": None}
    run = ht.finetune(plain, inject_noise="symmetric:60%")
    assert run.record["noise"]["realised_rate"] > 0.1
    assert any("0.6 is not below that of labels drawn at random (0.5)" in n for n in run.record["notes"])
    for options in ({"inject_noise": "symmetric:0.6"}, {"noise_matrix": "0.6", "inject_noise": None}):
        with pytest.raises(ht.HesstuneError, match="cannot be corrected"):
            ht.finetune(plain | {"method": "robust"} | options)


# -- methods that mix inputs -------------------------------------------------------------------


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.csv"
    rows = [f"{word} film number {i},{label}" for i in range(12) for word, label in (("good", 1), ("bad", 0))]
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    return f"csv:{path}"


def test_methods_that_mix_inputs_refuse_texts_and_mix_features(texts, tiny_bert):
    class Blending(Method):
        mixes_inputs = True

    options = {"model": f"hf:{tiny_bert}", "epochs": 2, "warmup_epochs": 1}
    for method in [*declaring("mixes_inputs"), Blending]:
        for data in (texts, load_task(texts, size=32)):
            with pytest.raises(ConfigError, match="texts cannot be mixed"):
                ht.finetune(data, method=method, **options)
    for method in declaring("mixes_inputs"):
        assert ht.finetune(texts, method=method, train="head", **options).result["epochs"] == 2


def test_a_comparison_of_all_methods_leaves_out_those_that_do_not_take_texts(texts, tiny_bert):
    from hesstune.study.compare import plan_of

    options = {"data": texts, "model": f"hf:{tiny_bert}", "seeds": 1, "noise_matrix": "symmetric:0.1"}
    plan, _ = plan_of({**options, "methods": "all"})
    assert set(declaring("mixes_inputs")) <= set(plan.left_out)
    assert "vanilla" in {cell.method for cell in plan.cells}
    with pytest.raises(ConfigError, match="method mixup: method 'mixup' mixes inputs"):
        plan_of({**options, "methods": ["vanilla", "mixup"]})


# -- batch norm --------------------------------------------------------------------------------

POOLED = """
from torch import nn

def pooled(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.BatchNorm1d(6), nn.Linear(6, num_classes),
    )
"""


@pytest.fixture
def normed(tiny, tmp_path, monkeypatch):
    """A network whose batch norm has one number an example and channel."""
    (tmp_path / "pooled_net.py").write_text(POOLED)
    monkeypatch.syspath_prepend(str(tmp_path))
    return {**tiny, "model": "py:pooled_net:pooled", "batch_norm": "adapt", "epochs": 2}


@pytest.mark.parametrize(
    ("limit", "batch", "steps"), [(13, 4, 3), (13, 12, 1), (5, 2, 2), (12, 4, 3), (14, 4, 4)]
)
def test_a_last_batch_of_one_joins_the_one_before(normed, limit, batch, steps):
    seen = []
    options = {**normed, "limit": limit, "batch_size": batch, "val_fraction": 0}
    ht.finetune(options, method="vanilla", progress=lambda done, whole, text: seen.append((done, whole)))
    assert seen[-1] == (2 * steps, 2 * steps)


@pytest.mark.parametrize("wrong", [{"batch_size": 1}, {"limit": 1}])
def test_batch_norm_cannot_adapt_to_one_example(normed, wrong, tmp_path):
    with pytest.raises(ConfigError, match="batches of one example"):
        ht.finetune({**normed, **wrong}, method="vanilla", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["vanilla", "sam", "nso", "lp_ft", "mixup", "elr", "divide_mix"])
def test_statistics_move_once_a_step(normed, method):
    steps = []
    options = {**normed, "warmup_epochs": 1} if method == "divide_mix" else normed
    run = ht.finetune(options, method=method, progress=lambda done, whole, text: steps.append(done))
    assert int(dict(run.model().named_buffers())["4.num_batches_tracked"]) == len(steps)
