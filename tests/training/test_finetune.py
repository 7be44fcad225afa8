"""Runs: their record, seeds, interruption and folders, and every option."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import hesstune as ht
from hesstune.data.examples import Examples
from hesstune.data.images import DecodedImages
from hesstune.errors import ConfigError, DataError, DivergedError, NoiseMatrixError, RunError
from hesstune.inputs.batches import ImageInputs, predict_logits
from hesstune.models.load import LoadedModel
from hesstune.runs.checkpoint import Checkpoints
from hesstune.runs.config import make_config, read_config
from hesstune.storage.tensors import load_tree, save_tree
from hesstune.training.trainer import Trainer, make_schedule


@pytest.fixture
def every_epoch(monkeypatch):
    """Write a checkpoint after every epoch."""
    monkeypatch.setattr("hesstune.training.trainer.CHECKPOINT_SECONDS", 0)


def test_a_run_leaves_its_whole_record_and_the_random_state(tiny, tmp_path):
    state = torch.get_rng_state()
    run = ht.finetune(tiny, out=tmp_path / "a", method="robust", radius={"head": 0.3, "*": 0.2})
    assert torch.equal(torch.get_rng_state(), state)
    assert {p.name for p in run.path.iterdir()} == {
        "config.yaml", "model.safetensors", "reference.safetensors", "data.safetensors", "metrics.jsonl",
        "labels.csv", "noise_matrix.json", "run.json", "README.md", ".lock",
    }  # fmt: skip
    loaded = ht.Run.load(run.path)
    assert loaded.config == run.config
    assert [m["epoch"] for m in loaded.metrics] == [1, 2, 3, 4]
    assert loaded.noise_matrix == ht.NoiseMatrix.symmetric(2, 0.2)
    distances = loaded.reference().distances(loaded.model())
    assert distances == pytest.approx(run.result["distances"])
    assert all(d <= (0.3 if n == "8.weight" else 0.2) * (1 + 1e-5) for n, d in distances.items())
    rows = loaded.labels()
    assert len(rows) == 24
    changed = np.mean([r["label"] != r["true_label"] for r in rows if r["part"] == "train"])
    assert changed == pytest.approx(loaded.record["noise"]["realised_rate"])
    assert all(r["true_label"] == r["id"].split("/")[0] for r in rows)
    assert all(r["label"] == r["true_label"] for r in rows if r["part"] == "test")


def test_same_seed_same_weights(tiny, same_weights):
    one, two, other = (ht.finetune(tiny, epochs=2, seed=seed) for seed in (0, 0, 1))
    same_weights(one, two)
    assert one.result["distance"] == two.result["distance"]
    assert other.labels() != one.labels()


@pytest.mark.parametrize("options", [{}, {"select": "best", "optimizer": "sgd"}, {"train": "head"}])
def test_resumed_equals_uninterrupted(tiny, tmp_path, every_epoch, interrupt, same_weights, options):
    whole = ht.finetune(tiny, **options)
    interrupt(tiny, share=0.6, out=tmp_path / "a", **options)
    assert not ht.Run.load(tmp_path / "a").finished
    assert 0 < len(ht.Run.load(tmp_path / "a").metrics) < 4
    resumed = ht.finetune(tiny, **options, out=tmp_path / "a", resume=True)
    same_weights(whole, resumed)
    assert [m | {"seconds": 0} for m in whole.metrics] == [m | {"seconds": 0} for m in resumed.metrics]


@pytest.mark.parametrize("recorded", [True, False])
def test_a_resumed_run_records_which_options_its_examples_chose(tiny, tmp_path, interrupt, recorded):
    """The folder's own options, which the command reads, hold a penalty that nobody gave."""
    out = tmp_path / "a"
    interrupt(tiny, method="vanilla", train="head", out=out)
    assert read_config(out / "config.yaml").weight_decay is not None
    if not recorded:  # killed between its two first files
        (out / "run.json").unlink()
    resumed = ht.finetune(read_config(out / "config.yaml").to_dict(), resume=True)
    assert resumed.facts.chosen_options == ["patience", "weight_decay"]


def test_resume_starts_over_or_returns_the_finished_run_and_refuses_changes(tiny, tmp_path):
    options = {**tiny, "out": tmp_path / "a", "epochs": 1}
    run = ht.finetune(options, resume=True)
    written = (run.path / "run.json").stat().st_mtime_ns
    assert ht.finetune(options, resume=True).finished
    assert (run.path / "run.json").stat().st_mtime_ns == written
    for name, value in (("epochs", 2), ("data", "digits")):
        with pytest.raises(ConfigError, match=rf"--{name} .*, not {value}"):
            ht.finetune({**options, name: value}, resume=True)


def test_existing_folders_are_kept(tiny, tmp_path):
    run = ht.finetune(tiny, out=tmp_path / "a", epochs=1)
    (run.path / "notes.txt").write_text("mine")
    (run.path / "measure.json").write_text("{}")
    with pytest.raises(RunError, match="--overwrite"):
        ht.finetune(tiny, out=run.path, epochs=1)
    with pytest.raises(DataError):  # a wrong input is found first: the old run stays whole
        ht.finetune(tiny, data="folder:nowhere", out=run.path, overwrite=True)
    assert ht.Run.load(run.path).finished
    assert ht.finetune(tiny, out=run.path, epochs=2, overwrite=True).result["epochs"] == 2
    assert (run.path / "notes.txt").read_text() == "mine"
    assert not (run.path / "measure.json").exists()  # it was of the run that was replaced
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("text")
    with pytest.raises(RunError, match="no run"):
        ht.finetune(tiny, out=tmp_path / "other", overwrite=True)
    with pytest.raises(RunError, match="is a file"):
        ht.finetune(tiny, out=tmp_path / "other" / "thesis.tex")


def test_a_loss_that_is_not_a_number_stops_with_the_last_good_state(tiny, tmp_path, every_epoch, monkeypatch):
    original = Trainer._step

    def poisoned(self, group, epoch):
        if epoch == 2:
            self.method.loss = lambda logits, targets, epoch: logits.sum() * float("nan")
        return original(self, group, epoch)

    monkeypatch.setattr(Trainer, "_step", poisoned)
    with pytest.raises(DivergedError, match=r"nan in epoch 3"):
        ht.finetune(tiny, out=tmp_path / "a")
    kept = Checkpoints(tmp_path / "a").load()
    assert len(kept["metrics"]) == 2
    assert all(torch.isfinite(t).all() for t in kept["net"].values())


def test_head_only_equals_the_whole_forward_pass(tiny):
    """Cached features are what the network computes: the trained head gives the network's logits."""
    run = ht.finetune(tiny, train="head", head_init="zero")
    before, after = run.reference(), run.model().state_dict()
    moved = [n for n in after if n in before.names() and not torch.equal(before[n], after[n])]
    assert moved == ["8.weight", "8.bias"]
    found = ht.predict(run, run.config.data)
    by_id = dict(zip(found.ids, found.predicted, strict=True))
    test = [r for r in run.labels() if r["part"] == "test"]
    assert np.mean([by_id[r["id"]] == r["label"] for r in test]) == run.result["test_accuracy"]


def test_frozen_and_adapted_batch_norm(tiny):
    for batch_norm in ("frozen", "adapt"):
        run = ht.finetune(tiny, epochs=1, batch_norm=batch_norm)
        mean = run.model().state_dict()["1.running_mean"]
        assert torch.equal(mean, run.reference()["1.running_mean"]) == (batch_norm == "frozen")


def test_accumulated_batches_take_the_step_of_one_large_batch(tiny):
    plain = {**tiny, "augment": "none", "method": "constraint", "optimizer": "sgd", "epochs": 1, "limit": 12}
    # Dropout draws per batch, so the network without it: its head.
    large = ht.finetune(plain, train="head", batch_size=12).model()[8].weight
    small = ht.finetune(plain, train="head", batch_size=4, accumulate=3).model()[8].weight
    torch.testing.assert_close(large, small, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"class_weights": "balanced", "grad_clip": 0.1, "norm": "mars", "cache_mib": 0},
        {"sampler": "balanced", "schedule": "step", "optimizer": "adamw", "clean_val": True},
        {"patience": 1, "epochs": 20, "split": "stratified", "inject_noise": "pair:0.1"},
        {"mixed_precision": "bf16", "train": "last:2", "schedule": "constant"},
        {"train": "8.*", "val_fraction": 0.0, "inject_noise": None, "noise_matrix": "0.1"},
        {"test_fraction": 0.0},
    ],
)
def test_every_option_runs(tiny, options):
    run = ht.finetune({**tiny, "epochs": 2, **options})
    assert run.finished
    assert run.result["epochs"] < 20
    assert (run.metrics[-1]["val_loss"] is None) == (options.get("val_fraction") == 0.0)
    assert (run.result["test_accuracy"] is None) == (options.get("test_fraction") == 0.0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "robst"}, ConfigError, "'robust'"),
        ({"epoch": 3}, ConfigError, "'epochs'"),
        ({"epochs": "many"}, ConfigError, "epochs .*'many'"),
        ({"radius": 0}, ConfigError, "above 0"),
        ({"radius": "head=-1"}, ConfigError, "above 0"),
        ({"radius": {"nolayer": 1.0}}, ht.HesstuneError, "'nolayer'"),
        ({"inject_noise": "symmetric:1.5"}, NoiseMatrixError, r"\[0, 1\]"),
        ({"inject_noise": "symmetric:0.5"}, NoiseMatrixError, "singular"),
        ({"inject_noise": None}, ConfigError, "needs a noise matrix"),
        ({"inject_noise": None, "noise_matrix": "true"}, ConfigError, "none was given"),
        ({"noise_matrix": "F.json"}, NoiseMatrixError, "3 classes, but the data has 2"),
        ({"device": "cuda:99"}, ConfigError, "not available"),
        ({"device": "toaster"}, ConfigError, "unknown device"),
        ({"mixed_precision": "fp16"}, ConfigError, "needs a GPU"),
        ({"class_weights": "balanced", "sampler": "balanced"}, ConfigError, "choose one"),
        ({"val_fraction": 0.6, "test_fraction": 0.6}, DataError, "below 1"),
    ],
)
def test_wrong_options_are_errors_and_nothing_is_written(
    tiny, tmp_path, monkeypatch, options, error, message
):
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    ht.NoiseMatrix.symmetric(3, 0.2).save(tmp_path / "F.json")
    for out in ({}, {"out": tmp_path / "a"}):
        with pytest.raises(error, match=message):
            ht.finetune({**tiny, **options}, **out)
    assert not (tmp_path / "a").exists()
    assert not list(place.iterdir())


def test_texts_of_options_are_read():
    for name, text, value in (
        ("radius", "head=0.5,*=0.1", {"head": 0.5, "*": 0.1}),
        ("radius", "0.3", 0.3),
        ("noise_matrix", True, "true"),
        ("noise_matrix", 0.4, "0.4"),
        ("mean", "0.1,0.2,0.3", [0.1, 0.2, 0.3]),
    ):
        assert getattr(make_config({name: text}), name) == value


@pytest.mark.parametrize("kind", ["cosine", "step", "constant"])
def test_schedules_rise_then_follow_their_shape(kind):
    options = make_config({"schedule": kind, "lr_warmup": 0.1})
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    factor = make_schedule(options, optimizer, 100).lr_lambdas[0]
    rates = [factor(step) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert {"cosine": rates[-1] < 0.01, "step": rates[60] == 0.1, "constant": rates[-1] == 1.0}[kind]


def test_trees_survive_without_pickling(tmp_path):
    shared = torch.arange(6.0).reshape(2, 3)
    tree = {"a": shared.T, "b": [shared, {3: None, "x": 1.5}], "c": "text", "d": True}
    save_tree(tmp_path / "t.safetensors", tree)
    found = load_tree(tmp_path / "t.safetensors")
    assert torch.equal(found["a"], shared.T)
    assert torch.equal(found["b"][0], shared)
    assert (found["b"][1], found["c"], found["d"]) == ({3: None, "x": 1.5}, "text", True)
    (tmp_path / "t.safetensors").write_bytes(b"damaged")
    with pytest.raises(RunError, match=r"t\.safetensors"):
        load_tree(tmp_path / "t.safetensors")


def test_predictions_have_ids_probabilities_and_labels(tiny, tmp_path, image_folder):
    run = ht.finetune(tiny, epochs=1)
    found = ht.predict(run.path, f"folder:{image_folder}")
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, atol=1e-9)
    found.save(tmp_path / "p.csv")
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert lines[0] == "id,prediction,label_source,label,p_dark,p_light"
    assert len(lines) == 25
    assert lines[1].startswith("dark/00.png,")
    with pytest.raises(RunError, match="exists"):
        found.save(tmp_path / "p.csv")
    flat = ht.predict(run, f"folder:{image_folder / 'light'}")
    assert (flat.labels, flat.accuracy) == (None, None)


def test_images_are_normalised_once():
    images = torch.randint(0, 255, (5, 3, 8, 8), dtype=torch.uint8)
    part = Examples(DecodedImages(images), np.arange(5), list("abcde"), np.zeros(5, np.int64))
    identity = LoadedModel(nn.Identity(), "", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    found = ImageInputs(part, identity, torch.device("cpu")).inputs(np.arange(5))
    torch.testing.assert_close(found, (images.float() / 255 - 0.5) / 0.25, rtol=1e-5, atol=1e-5)


def test_evaluation_does_not_depend_on_the_batch_size():
    class Feed:
        lengths = None

        def __len__(self):
            return 7

        def inputs(self, indices, augment=False):
            return torch.arange(21.0).reshape(7, 3)[torch.from_numpy(indices)]

    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2))
    torch.testing.assert_close(predict_logits(model, Feed(), 2), predict_logits(model, Feed(), 7))
    assert model.training


def test_damaged_run_folders(tiny, tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        ht.Run.load(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"config\.yaml"):
        ht.Run.load(tmp_path / "empty")
    run = ht.finetune(tiny, epochs=1)
    record = json.loads((run.path / "run.json").read_text())
    (run.path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(RunError, match=r"model\.safetensors"):
        ht.Run.load(run.path).model()
    (run.path / "run.json").write_text(json.dumps({k: v for k, v in record.items() if k != "result"}))
    with pytest.raises(RunError, match="has not finished"):
        ht.predict(run.path, run.config.data)
