"""Weights are trained in float32 whatever type a checkpoint has, unless --dtype says otherwise."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import hesstune as ht
from hesstune.analysis.export import export_run
from hesstune.cli.main import run as run_command
from hesstune.errors import ConfigError
from hesstune.models.load import checkpoint_dtype, load_model

TEXTS = ["good film", "bad film", "a good one", "a bad one", "very good", "very bad"] * 4
LABELS = [1, 0] * 12
PLAIN = {"method": "vanilla", "epochs": 1}


def network(k=2):
    torch.manual_seed(1)
    pooled = (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), *pooled, nn.Linear(4, k))


def types(model):
    return {t.dtype for t in [*model.parameters(), *model.buffers()] if t.is_floating_point()}


@pytest.fixture
def stored(tiny_bert, tmp_path):
    """Return the folder of a tiny BERT stored in some type."""
    import transformers

    def save(dtype, config=None):
        folder = tmp_path / f"{dtype}"
        model = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_bert)
        model.to(getattr(torch, dtype)).save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
        if config is not None:
            values = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(values | {"dtype": config, "torch_dtype": config}))
        return folder

    return save


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_checkpoint_in_half_precision_is_trained_in_float32(stored, dtype, tmp_path):
    folder = stored(dtype)
    loaded = load_model(f"hf:{folder}", 2, text=True, head_init="keep")
    assert types(loaded.model) == {torch.float32}
    own, kept = dict(loaded.model.named_parameters()), load_file(folder / "model.safetensors")
    for name, tensor in kept.items():
        assert torch.equal(own[name], tensor.float()), name
    run = ht.finetune((TEXTS, LABELS), model=f"hf:{folder}", lr=1e-2, out=str(tmp_path / "run"), **PLAIN)
    assert (run.facts.stored_dtype, run.config.dtype) == (dtype, "float32")
    assert any(dtype in note and "float32" in note for note in run.record["notes"])
    assert types(ht.Run.load(run.path).model()) == {torch.float32}
    assert {t.dtype for t in load_file(run.path / "model.safetensors").values() if t.is_floating_point()} == {
        torch.float32
    }


def test_a_configuration_that_names_half_precision_does_not_round_weights(stored):
    folder = stored("float32", config="float16")
    assert checkpoint_dtype(str(folder)) == "float32"
    loaded = load_model(f"hf:{folder}", 2, text=True, head_init="keep")
    kept = load_file(folder / "model.safetensors")
    assert all(torch.equal(p, kept[name]) for name, p in loaded.model.named_parameters())
    assert not loaded.notes


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_modules_and_weights_files_are_used_in_float32(dtype, tmp_path, image_folder):
    net = network().to(dtype)
    loaded = load_model(net, 2, head_init="keep")
    assert types(loaded.model) == {torch.float32}
    assert types(net) == {dtype}
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    again = load_model(network(), 2, weights=tmp_path / "w.safetensors", head_init="keep")
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, loaded.model.state_dict()[name])
    name = str(dtype).removeprefix("torch.")
    assert (loaded.stored_dtype, again.stored_dtype) == (name, name)
    assert [name in " ".join(made.notes) for made in (loaded, again)] == [True, True]
    run = ht.finetune(f"folder:{image_folder}", model=net, image_size=16, out=str(tmp_path / "run"), **PLAIN)
    assert types(run.model()) == {torch.float32}


def test_dtype_trains_saves_and_exports_in_that_type(tmp_path, image_folder):
    options = {"image_size": 16, "dtype": "bfloat16", "lr": 0.1, "train": "all", **PLAIN}
    run = ht.finetune(f"folder:{image_folder}", model=network(), out=str(tmp_path / "run"), **options)
    assert any("bfloat16" in note for note in run.facts.notes)
    assert run.outcome.distance > 0
    assert types(run.model()) == {torch.bfloat16}
    line = export_run(run, tmp_path / "out")
    assert "dtype='bfloat16'" in line
    kept = load_file(tmp_path / "out" / "model.safetensors")
    made = load_model(
        network(), 2, weights=tmp_path / "out" / "model.safetensors", head_init="keep", dtype="bfloat16"
    )
    assert types(made.model) == {torch.bfloat16}
    assert all(torch.equal(kept[name], p) for name, p in made.model.named_parameters())


@pytest.mark.parametrize("dtype", ["float16", "float8"])
def test_other_types_are_refused(dtype, tmp_path, capsys):
    with pytest.raises(ConfigError, match=r"dtype.*float32"):
        ht.finetune("digits", dtype=dtype, out=str(tmp_path / "run"))
    with pytest.raises(ConfigError, match=f"'{dtype}'.*float32"):
        load_model(network(), 2, dtype=dtype)
    with pytest.raises(SystemExit) as ended:
        run_command(["finetune", "--data", "digits", "--dtype", dtype, "--out", str(tmp_path / "run")])
    assert ended.value.code == 2
    assert "--dtype" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
