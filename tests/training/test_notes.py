"""Options that would do nothing, or less than they say, are refused or told of."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import hesstune as ht
from hesstune.cli.main import app
from hesstune.data.load import load_task
from hesstune.errors import ConfigError
from hesstune.methods import Method, method_class, method_names
from hesstune.runs.config import make_config


def warming():
    return [name for name in method_names() if method_class(name).warms_up]


@pytest.mark.parametrize("method", warming())
def test_a_warm_up_leaves_an_epoch_or_is_refused(method):
    told = {"method": method, "noise_matrix": "symmetric:0.2"}
    for epochs, warm in ((1, 0), (2, 1), (3, 2), (15, 2)):
        assert make_config({**told, "epochs": epochs}).resolved().warmup_epochs == warm
    for epochs in (1, 2):
        with pytest.raises(ConfigError, match="leaves none to the loss of method"):
            make_config({**told, "epochs": epochs, "warmup_epochs": 2}).resolved()
    assert make_config({**told, "epochs": 3, "warmup_epochs": 2}).resolved().warmup_epochs == 2


def test_robust_of_one_epoch_is_not_plain_training(tiny):
    told = {**tiny, "epochs": 1, "inject_noise": None, "noise_matrix": "symmetric:0.4"}
    runs = {m: ht.finetune(told, method=m, radius=1e3) for m in ("robust", "constraint")}
    weights = {m: torch.cat([p.flatten() for p in run.model().parameters()]) for m, run in runs.items()}
    assert not torch.allclose(weights["robust"], weights["constraint"])
    assert any("warm-up takes 0 of 1 epoch:" in note for note in runs["robust"].facts.notes)


def test_the_warm_up_of_a_trial_of_radii_leaves_an_epoch_too(tiny, monkeypatch):
    from hesstune.methods.constrained import Robust

    seen = []
    made = Robust.__init__

    def watched(self, setup):
        seen.append((setup.epochs, setup.warmup_epochs))
        made(self, setup)

    monkeypatch.setattr(Robust, "__init__", watched)
    ht.finetune({**tiny, "epochs": 3, "method": "robust", "radius": "auto"})
    assert set(seen) == {(2, 1), (3, 2)}


UNUSED = [
    ({"radius": 0.1, "norm": "mars"}, "vanilla", "has no distance constraint: no effect of --radius, --norm"),
    ({"warmup_epochs": 1}, "constraint", "method 'constraint' has no warm-up"),
    (
        {"augment": "flip", "augment_views": 2},
        "vanilla",
        "not shifted: no effect of --augment-views",
    ),
    (
        {"train": "head", "augment_views": 2},
        "vanilla",
        "not shifted: no effect of --augment-views",
    ),
    ({"momentum": 0.5}, "vanilla", "the optimizer is adam: no effect of --momentum"),
    ({"max_length": 64}, "vanilla", "the examples are images: no effect of --max-length"),
    ({"clean_val": True}, "vanilla", "no noise is injected: no effect of --clean-val"),
    ({"label_model": "mace"}, "vanilla", "the labels come from no votes: no effect of --label-model"),
    ({"patience": 9}, "vanilla", "a patience of 9 cannot end 2 epochs early"),
    ({"train": "head", "batch_norm": "frozen"}, "lp_ft", "plain fine-tuning of the head"),
    ({"train": "head"}, "gradual_unfreezing", "nothing thaws"),
    ({"epochs": 1}, "gradual_unfreezing", "no layer below the head thaws"),
    ({"epochs": 1}, "lp_ft", "probing is left out"),
    ({"epochs": 2, "method_options": {"probe": 1.0}}, "wise_ft", "nothing but the head is trained"),
]


@pytest.mark.parametrize(("options", "method", "said"), UNUSED)
def test_what_has_no_effect_is_said(tiny, options, method, said):
    quick = {**tiny, "epochs": 2, "inject_noise": None, **options}
    notes = ht.finetune(quick, method=method).facts.notes
    assert any(said in note for note in notes), notes


def test_a_run_with_nothing_to_say_says_nothing(tiny):
    run = ht.finetune(tiny, method="robust")
    assert run.facts.notes == []


def test_notes_are_printed_and_kept(tiny, tmp_path):
    options = ["--model", tiny["model"], "--data", tiny["data"], "--image-size", "16", "--epochs", "1"]
    command = ["finetune", *options, "--method", "vanilla", "--radius", "1", "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "Note: method 'vanilla' has no distance constraint: no effect of --radius." in done.output
    kept = json.loads((tmp_path / "run" / "run.json").read_text())
    assert len(kept["notes"]) == 1
    assert "no effect of --radius" in (tmp_path / "run" / "README.md").read_text()


def test_a_matrix_that_the_loss_does_not_use_is_not_called_told(tiny):
    plain = ht.finetune({**tiny, "epochs": 1, "inject_noise": None}, method="vanilla", noise_matrix=0.2)
    assert plain.facts.noise.loss_matrix.startswith("nothing; the validation loss alone: rate 0.2")


# -- methods declare what they take ------------------------------------------------------------


def mixing():
    return [name for name in method_names() if method_class(name).mixes_inputs]


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.csv"
    rows = [f"{word} film number {i},{label}" for i in range(12) for word, label in (("good", 1), ("bad", 0))]
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    return f"csv:{path}"


@pytest.mark.parametrize("method", mixing())
def test_methods_that_mix_inputs_refuse_texts_and_mix_features(method, texts, tiny_bert):
    told = {"data": texts, "model": f"hf:{tiny_bert}", "epochs": 2, "warmup_epochs": 1}
    with pytest.raises(ConfigError, match="texts cannot be mixed; use it on images, or with --train head"):
        ht.finetune(told, method=method)
    assert ht.finetune(told, method=method, train="head").result["epochs"] == 2


def test_a_comparison_of_all_methods_leaves_out_those_that_do_not_take_texts(texts, tiny_bert, tmp_path):
    from hesstune.study.compare import plan_of

    told = {"data": texts, "model": f"hf:{tiny_bert}", "seeds": 1, "noise_matrix": "symmetric:0.1"}
    plan, _ = plan_of({**told, "methods": "all"})
    assert set(mixing()) <= set(plan.left_out)
    assert "texts cannot be mixed" in plan.left_out["mixup"]
    assert "vanilla" in {cell.method for cell in plan.cells}
    with pytest.raises(ConfigError, match="method mixup: method 'mixup' mixes inputs"):
        plan_of({**told, "methods": ["vanilla", "mixup"]})


def test_a_method_of_ones_own_declares_it_likewise(texts, tiny_bert):
    class Blending(Method):
        mixes_inputs = True

    with pytest.raises(ConfigError, match="method 'Blending' mixes inputs"):
        ht.finetune(texts, f"hf:{tiny_bert}", Blending)


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
    """A network whose batch norm sees one number an example and channel."""
    (tmp_path / "pooled_net.py").write_text(POOLED)
    monkeypatch.syspath_prepend(str(tmp_path))
    return {**tiny, "model": "py:pooled_net:pooled", "batch_norm": "adapt", "epochs": 2}


@pytest.mark.parametrize(
    ("limit", "batch", "steps"), [(13, 4, 3), (13, 12, 1), (5, 2, 2), (12, 4, 3), (14, 4, 4)]
)
def test_a_last_batch_of_one_joins_the_one_before(normed, limit, batch, steps):
    seen = []
    options = {**normed, "limit": limit, "batch_size": batch, "val_fraction": 0, "test_fraction": 0.2}
    ht.finetune(options, method="vanilla", progress=lambda done, whole, text: seen.append((done, whole)))
    assert seen[-1] == (2 * steps, 2 * steps)


@pytest.mark.parametrize("wrong", [{"batch_size": 1}, {"limit": 1}])
def test_batch_norm_cannot_adapt_to_one_example(normed, wrong, tmp_path):
    with pytest.raises(ConfigError, match="cannot adapt to batches of one example"):
        ht.finetune({**normed, **wrong}, method="vanilla", out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


@pytest.mark.parametrize("method", ["vanilla", "sam", "nso", "lp_ft", "mixup", "elr"])
def test_statistics_move_once_a_step(normed, method):
    steps = []
    run = ht.finetune(normed, method=method, progress=lambda done, whole, text: steps.append(done))
    assert int(dict(run.model().named_buffers())["4.num_batches_tracked"]) == len(steps)


def test_two_networks_move_their_statistics_once_a_step(normed):
    steps = []
    options = {**normed, "warmup_epochs": 1}
    run = ht.finetune(options, method="divide_mix", progress=lambda done, whole, text: steps.append(done))
    assert int(dict(run.model().named_buffers())["4.num_batches_tracked"]) == len(steps)


def test_a_task_that_is_made_is_refused_likewise(texts, tiny_bert):
    with pytest.raises(ConfigError, match="texts cannot be mixed"):
        ht.finetune(load_task(texts, size=32), f"hf:{tiny_bert}", "mixup")


def test_a_class_that_the_matrix_leaves_empty_is_named(tmp_path, tiny, image_folder):
    F = np.array([[0.5, 0.5], [0.0, 1.0]])
    ht.NoiseMatrix(F).save(tmp_path / "F.json")
    told = {**tiny, "inject_noise": None, "noise_matrix": str(tmp_path / "F.json"), "epochs": 2}
    run = ht.finetune(told, method="robust", class_weights="balanced", split="stratified")
    assert any("class 'light' has hardly an example" in note for note in run.facts.notes)


def test_noise_that_leaves_nothing_to_learn_is_injected_and_said_and_given_to_no_loss(tiny):
    plain = tiny | {"epochs": 1, "train": "head", "method": "vanilla", "noise_matrix": None}
    run = ht.finetune(plain, inject_noise="symmetric:60%")
    assert run.record["noise"]["realised_rate"] > 0.1
    assert any(
        "0.6 is not below that of labels drawn at random (0.5)" in note for note in run.record["notes"]
    )
    for options in ({"inject_noise": "symmetric:0.6"}, {"noise_matrix": "0.6", "inject_noise": None}):
        with pytest.raises(ht.HesstuneError, match="cannot be corrected"):
            ht.finetune(plain | {"method": "robust"} | options)
