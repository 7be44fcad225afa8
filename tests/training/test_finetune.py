import json

import numpy as np
import pytest
import torch
from torch import nn

import hesstune as ht
from hesstune.errors import ConfigError, DataError, DivergedError, NoiseMatrixError, RunError
from hesstune.inputs.batches import ImageInputs, predict_logits
from hesstune.inputs.features import cached_features
from hesstune.runs.checkpoint import Checkpoints
from hesstune.runs.config import FinetuneConfig, make_config, read_config
from hesstune.runs.folder import locked
from hesstune.storage.tensors import load_tree, save_tree
from hesstune.training.trainer import Trainer, make_schedule


def weights(run):
    return dict(run.model().named_parameters()) | dict(run.model().named_buffers())


def assert_same_weights(one, two):
    one, two = weights(one), weights(two)
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


def test_a_run_leaves_its_whole_record_and_the_random_state(tiny, tmp_path):
    state = torch.get_rng_state()
    run = ht.finetune(tiny, out=str(tmp_path / "a"), method="robust", radius={"head": 0.3, "*": 0.2})
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
    assert all(d <= 0.2 * (1 + 1e-5) for n, d in distances.items() if n != "8.weight")
    assert distances["8.weight"] <= 0.3 * (1 + 1e-5)
    rows = loaded.labels()
    assert len(rows) == 24
    train = [r for r in rows if r["part"] == "train"]
    changed = np.mean([r["label"] != r["true_label"] for r in train])
    assert changed == pytest.approx(loaded.record["noise"]["realised_rate"])
    assert all(r["true_label"] == r["id"].split("/")[0] for r in rows)
    assert all(r["label"] == r["true_label"] for r in rows if r["part"] == "test")


@pytest.mark.parametrize("method", ["vanilla", "consistent", "constraint", "robust"])
def test_same_seed_same_weights(tiny, tmp_path, method):
    runs = [ht.finetune(tiny, out=str(tmp_path / name), method=method, epochs=3) for name in "ab"]
    assert_same_weights(*runs)
    assert runs[0].result["distance"] == runs[1].result["distance"]
    other = ht.finetune(tiny, out=str(tmp_path / "c"), method=method, epochs=3, seed=1)
    assert other.labels() != runs[0].labels()


@pytest.mark.parametrize("options", [{}, {"select": "best", "optimizer": "sgd"}, {"train": "head"}])
def test_resumed_equals_uninterrupted_weight_for_weight(tiny, tmp_path, monkeypatch, options):
    monkeypatch.setattr("hesstune.training.trainer.CHECKPOINT_SECONDS", 0)
    whole = ht.finetune(tiny, **options, out=str(tmp_path / "whole"))

    class Stop(Exception):
        pass

    def stop(done, total, text):
        if done > total * 0.6:
            raise Stop

    out = str(tmp_path / "parts")
    with pytest.raises(Stop):
        ht.finetune(tiny, **options, out=out, progress=stop)
    assert not ht.Run.load(out).finished
    assert 0 < len(ht.Run.load(out).metrics) < 4
    resumed = ht.finetune(tiny, **options, out=out, resume=True)
    assert_same_weights(whole, resumed)
    assert [m["epoch"] for m in resumed.metrics] == [1, 2, 3, 4]
    untimed = [[{k: v for k, v in m.items() if k != "seconds"} for m in r.metrics] for r in (whole, resumed)]
    assert untimed[0] == untimed[1]


@pytest.mark.parametrize("recorded", [True, False])
def test_a_resumed_run_still_tells_what_its_examples_settled(tiny, tmp_path, monkeypatch, recorded):
    """The folder's own options, which the command takes up, hold a penalty that nobody asked for."""
    monkeypatch.setattr("hesstune.training.trainer.CHECKPOINT_SECONDS", 0)

    class Stop(Exception):
        pass

    def stop(done, total, text):
        if done > total * 0.6:
            raise Stop

    out = tmp_path / "a"
    with pytest.raises(Stop):
        ht.finetune(tiny, method="vanilla", train="head", out=str(out), progress=stop)
    assert read_config(out / "config.yaml").weight_decay is not None
    if not recorded:  # killed between its two first files
        (out / "run.json").unlink()
    resumed = ht.finetune(read_config(out / "config.yaml").to_dict(), resume=True)
    assert resumed.facts.chosen_options == ["patience", "weight_decay"]


def test_resume_starts_over_or_returns_the_finished_run_and_refuses_changes(tiny, tmp_path):
    out = str(tmp_path / "a")
    run = ht.finetune(tiny, out=out, epochs=1, resume=True)
    written = (run.path / "run.json").stat().st_mtime_ns
    assert ht.finetune(tiny, out=out, epochs=1, resume=True).finished
    assert (run.path / "run.json").stat().st_mtime_ns == written
    with pytest.raises(ConfigError, match="started with --epochs 1, not 2"):
        ht.finetune(tiny, out=out, epochs=2, resume=True)
    with pytest.raises(ConfigError, match=r"started with --data .*, not digits"):
        ht.finetune(tiny, data="digits", out=out, epochs=1, resume=True)


def test_existing_folders_are_kept(tiny, tmp_path):
    run = ht.finetune(tiny, out=str(tmp_path / "a"), epochs=1)
    (run.path / "notes.txt").write_text("mine")
    (run.path / "measure.json").write_text("{}")
    with pytest.raises(RunError, match="--overwrite"):
        ht.finetune(tiny, out=str(run.path), epochs=1)
    with pytest.raises(DataError):  # a wrong input found first: the old run is still whole
        ht.finetune(tiny, data="folder:nowhere", out=str(run.path), overwrite=True)
    assert ht.Run.load(run.path).finished
    replaced = ht.finetune(tiny, out=str(run.path), epochs=2, overwrite=True)
    assert replaced.result["epochs"] == 2
    assert (run.path / "notes.txt").read_text() == "mine"
    assert not (run.path / "measure.json").exists()  # it told of the run that was replaced
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("text")
    with pytest.raises(RunError, match="no run"):
        ht.finetune(tiny, out=str(tmp_path / "other"), overwrite=True)
    with pytest.raises(RunError, match="is a file"):
        ht.finetune(tiny, out=str(tmp_path / "other" / "thesis.tex"))


def test_one_writer_at_a_time(tiny, tmp_path):
    run = ht.finetune(tiny, out=str(tmp_path / "a"), epochs=1)
    with locked(run.path), pytest.raises(RunError, match="another process"):
        ht.finetune(tiny, out=str(run.path), epochs=1, overwrite=True)
    assert ht.Run.load(run.path).finished


def test_a_loss_that_is_not_a_number_stops_with_the_last_good_state(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("hesstune.training.trainer.CHECKPOINT_SECONDS", 0)
    original = Trainer._step

    def poisoned(self, group, epoch):
        if epoch == 2:
            self.method.loss = lambda logits, targets, epoch: logits.sum() * float("nan")
        return original(self, group, epoch)

    monkeypatch.setattr(Trainer, "_step", poisoned)
    with pytest.raises(DivergedError, match=r"became nan in epoch 3.*last good checkpoint"):
        ht.finetune(tiny, out=str(tmp_path / "a"))
    kept = Checkpoints(tmp_path / "a").load()
    assert len(kept["metrics"]) == 2
    assert all(torch.isfinite(t).all() for t in kept["net"].values())


def test_head_only_equals_the_whole_forward_pass(tiny, tmp_path):
    """Cached features are what the network computes: the trained head gives the network's logits."""
    run = ht.finetune(tiny, out=str(tmp_path / "a"), train="head", head_init="zero")
    before, after = run.reference(), weights(run)
    moved = [n for n in after if not torch.equal(before[n], after[n])]
    assert moved == ["8.weight", "8.bias"]
    found = ht.predict(run, run.config.data)
    by_id = dict(zip(found.ids, found.predicted, strict=True))
    test = [r for r in run.labels() if r["part"] == "test"]
    assert np.mean([by_id[r["id"]] == r["label"] for r in test]) == run.result["test_accuracy"]


def test_features_are_not_cached_where_the_head_is_not_last():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, x):
            return 2 * self.head(x.mean(dim=(2, 3)))

    class ModelInputs:
        lengths = None

        def __len__(self):
            return 3

        def inputs(self, indices, augment=False):
            return torch.ones(len(indices), 3, 4, 4)

    model = Scaled()
    assert cached_features(model, [model.head], ModelInputs()) is None


def test_frozen_and_adapted_batch_norm(tiny, tmp_path):
    frozen = ht.finetune(tiny, out=str(tmp_path / "a"), epochs=1)
    adapted = ht.finetune(tiny, out=str(tmp_path / "b"), epochs=1, batch_norm="adapt")
    assert torch.equal(weights(frozen)["1.running_mean"], frozen.reference()["1.running_mean"])
    assert not torch.equal(weights(adapted)["1.running_mean"], adapted.reference()["1.running_mean"])


def test_accumulated_batches_take_the_step_of_one_large_batch(tiny, tmp_path):
    plain = {**tiny, "augment": "none", "method": "constraint", "optimizer": "sgd", "epochs": 1, "limit": 12}
    # Dropout draws per batch, so the network without it: its head.
    large = ht.finetune(plain, train="head", batch_size=12, out=str(tmp_path / "a"))
    small = ht.finetune(plain, train="head", batch_size=4, accumulate=3, out=str(tmp_path / "b"))
    torch.testing.assert_close(weights(large)["8.weight"], weights(small)["8.weight"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"class_weights": "balanced"}, {"sampler": "balanced"}, {"patience": 1, "epochs": 20},
        {"grad_clip": 0.1}, {"schedule": "step", "optimizer": "adamw"}, {"schedule": "constant"},
        {"norm": "mars"}, {"clean_val": True}, {"inject_noise": "pair:0.1"}, {"mixed_precision": "bf16"},
        {"train": "last:2"}, {"train": "8.*"}, {"split": "stratified"}, {"val_fraction": 0.0},
        {"test_fraction": 0.0}, {"cache_mib": 0}, {"inject_noise": None, "noise_matrix": "0.1"},
    ],
)  # fmt: skip
def test_every_option_runs(tiny, tmp_path, options):
    run = ht.finetune({**tiny, "epochs": 2, **options}, out=str(tmp_path / "a"))
    assert run.finished
    if options.get("patience"):
        assert run.result["epochs"] < 20
    if options.get("val_fraction") == 0.0:
        assert run.metrics[-1]["val_loss"] is None
    if options.get("test_fraction") == 0.0:
        assert run.result["test_accuracy"] is None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "robst"}, ConfigError, "did you mean 'robust'"),
        ({"epoch": 3}, ConfigError, "did you mean 'epochs'"),
        ({"epochs": "many"}, ConfigError, "epochs must be an integer; got 'many'"),
        ({"radius": 0}, ConfigError, "above 0"),
        ({"radius": "head=-1"}, ConfigError, "above 0"),
        ({"radius": {"nolayer": 1.0}}, ht.HesstuneError, "layer pattern 'nolayer'"),
        ({"inject_noise": "symmetric:1.5"}, NoiseMatrixError, r"\[0, 1\]"),
        ({"inject_noise": "symmetric:0.5"}, NoiseMatrixError, "singular"),
        ({"inject_noise": None}, ConfigError, "needs a noise matrix"),
        ({"inject_noise": None, "noise_matrix": "true"}, ConfigError, "none was given"),
        ({"device": "cuda:99"}, ConfigError, "not available"),
        ({"device": "toaster"}, ConfigError, "unknown device"),
        ({"mixed_precision": "fp16"}, ConfigError, "needs a GPU"),
        ({"class_weights": "balanced", "sampler": "balanced"}, ConfigError, "choose one"),
        ({"val_fraction": 0.6, "test_fraction": 0.6}, DataError, "below 1"),
    ],
)
def test_wrong_options_are_told_and_nothing_is_written(tiny, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        ht.finetune({**tiny, **options}, out=str(tmp_path / "a"))
    assert not (tmp_path / "a").exists()


def test_a_run_that_cannot_be_prepared_leaves_no_temporary_folder(tiny, tmp_path, monkeypatch):
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    with pytest.raises(NoiseMatrixError):
        ht.finetune({**tiny, "inject_noise": "symmetric:1.5"})
    assert not list(place.iterdir())


def test_the_noise_matrix_file_must_fit(tiny, tmp_path):
    ht.NoiseMatrix.symmetric(3, 0.2).save(tmp_path / "F.json")
    with pytest.raises(NoiseMatrixError, match="3 classes, but the data has 2"):
        ht.finetune(tiny, noise_matrix=str(tmp_path / "F.json"), out=str(tmp_path / "a"))


def test_radius_and_yaml_forms():
    assert make_config({"radius": "head=0.5,*=0.1"}).radius == {"head": 0.5, "*": 0.1}
    assert make_config({"radius": "0.3"}).radius == 0.3
    assert make_config({"noise_matrix": True}).noise_matrix == "true"
    assert make_config({"noise_matrix": 0.4}).noise_matrix == "0.4"
    assert make_config({"mean": "0.1,0.2,0.3"}).mean == [0.1, 0.2, 0.3]


def test_every_option_is_documented():
    assert all(field.description for field in FinetuneConfig.model_fields.values())


@pytest.mark.parametrize("kind", ["cosine", "step", "constant"])
def test_schedules_rise_then_follow_their_shape(kind):
    config = make_config({"schedule": kind, "lr": 1.0, "lr_warmup": 0.1})
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make_schedule(config, optimizer, 100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert {"cosine": rates[-1] < 0.01, "step": rates[60] == 0.1, "constant": rates[-1] == 1.0}[kind]


def test_trees_survive_without_pickling(tmp_path):
    shared = torch.arange(6.0).reshape(2, 3)
    tree = {"a": shared.T, "b": [shared, {3: None, "x": 1.5}], "c": "text", "d": True}
    save_tree(tmp_path / "t.safetensors", tree)
    found = load_tree(tmp_path / "t.safetensors")
    assert torch.equal(found["a"], shared.T)
    assert found["b"][1] == {3: None, "x": 1.5}
    assert (found["c"], found["d"]) == ("text", True)
    (tmp_path / "t.safetensors").write_bytes(b"damaged")
    with pytest.raises(RunError, match="not a readable checkpoint"):
        load_tree(tmp_path / "t.safetensors")


def test_predictions_have_ids_probabilities_and_labels(tiny, tmp_path, image_folder):
    run = ht.finetune(tiny, out=str(tmp_path / "a"))
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
    assert flat.labels is None
    assert flat.accuracy is None


def test_normalisation_is_applied_once():
    from hesstune.data.load import load_task
    from hesstune.models.load import LoadedModel

    task = load_task("digits", size=16)
    identity = LoadedModel(nn.Identity(), "", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    feed = ImageInputs(task.train, identity, torch.device("cpu"))
    rows = np.arange(5)
    expected = (task.train.images(rows).float() / 255 - 0.5) / 0.25
    torch.testing.assert_close(feed.inputs(rows), expected, rtol=1e-5, atol=1e-5)


def test_evaluation_does_not_depend_on_the_batch_size():
    class ModelInputs:
        lengths = None

        def __len__(self):
            return 7

        def inputs(self, indices, augment=False):
            return torch.arange(21.0).reshape(7, 3)[torch.from_numpy(indices)]

    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2))
    assert model.training
    torch.testing.assert_close(
        predict_logits(model, ModelInputs(), 2), predict_logits(model, ModelInputs(), 7)
    )
    assert model.training


def test_damaged_run_folders(tiny, tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        ht.Run.load(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"no run folder: config\.yaml"):
        ht.Run.load(tmp_path / "empty")
    run = ht.finetune(tiny, out=str(tmp_path / "a"), epochs=1)
    record = json.loads((run.path / "run.json").read_text())
    (run.path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(RunError, match="cannot be read"):
        ht.Run.load(run.path).model()
    (run.path / "run.json").write_text(json.dumps({k: v for k, v in record.items() if k != "result"}))
    with pytest.raises(RunError, match="has not finished"):
        ht.predict(run.path, run.config.data)
