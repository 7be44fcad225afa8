"""A comparison continues where it stopped, notices changes, and its options are checked before it runs."""

import csv
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import hesstune as ht
from hesstune.analysis.certify import certify_run
from hesstune.analysis.measure import MeasuredNetwork, measure_run
from hesstune.cli.main import run as cli
from hesstune.errors import ConfigError, DataError, RunError
from hesstune.noise.matrix import NoiseMatrix
from hesstune.reference import Reference
from hesstune.runs.config import make_config
from hesstune.runs.loading import run_task
from hesstune.runs.run import Run
from hesstune.study import cell as cells
from hesstune.study.compare import PLAN, compare, plan_of

METHODS = ["vanilla", "robust"]


@pytest.fixture
def few(tiny):
    shared = {name: value for name, value in tiny.items() if name != "method"}  # a comparison sets it
    return {**shared, "train": "head", "epochs": 2, "warmup_epochs": 1}


def accuracy(found):
    numbers = ("test_accuracy", "distance")
    return {cell.key: [cell.metrics[name] for name in numbers] for cell in found.results.cells}


def times(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("cell.json")}


def test_results_hold_what_was_run(few, tmp_path):
    found = compare(few, methods=METHODS, seeds=2, out=tmp_path / "a", stability=True, certify=True)
    made = found.results["cells"]
    assert [c["status"] for c in made] == ["done"] * 4
    alone = ht.finetune(few, method="robust", seed=1, out=str(tmp_path / "run"))
    record = next(c for c in made if (c["method"], c["seed"]) == ("robust", 1))["metrics"]
    assert record["test_accuracy"] == alone.result["test_accuracy"]
    assert record["distance"] == pytest.approx(alone.result["distance"], rel=1e-5)
    whole = measure_run(alone, part="train", trace=False).hessian_distance(alone.record["examples"]["train"])
    assert record["measure"] == pytest.approx(whole, rel=1e-4)
    assert record["certificate"]["empirical"] < record["certificate"]["risk"] <= 1
    assert record["stability_taylor"] > 0
    # The gap on the labels of training, which differs from that on true labels.
    assert record["val_gap"] != record["gap"]
    assert not list((tmp_path / "a").rglob("model.safetensors"))
    rows = list(csv.DictReader((tmp_path / "a" / "results.csv").open()))
    assert float(rows[3]["test_accuracy"]) == made[3]["metrics"]["test_accuracy"]
    text = (tmp_path / "a" / "README.md").read_text()
    assert "epochs 2, batch size 4" in text
    assert re.search(r"\| robust \| \d", text)
    assert ht.Comparison.load(tmp_path / "a").results == found.results


def test_the_validation_gap_is_of_the_labels_of_training(few, tmp_path):
    few |= {"inject_noise": None, "epochs": 1, "warmup_epochs": 0}
    seen = compare(few, methods=["vanilla"], seeds=1, out=tmp_path / "a").results.cells[0].metrics
    assert seen["val_gap"] == pytest.approx(seen["val_loss"] - seen["train_loss"], abs=1e-6)


def test_a_comparison_continues_in_its_folder(few, tmp_path, image_folder):
    folder = tmp_path / "a"
    few |= {"measure_examples": 0, "epochs": 1, "warmup_epochs": 0}

    class Stop(Exception):
        pass

    def stop(done, total, text):
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        compare(few, methods=METHODS, seeds=2, out=folder, progress=stop)
    assert sum(c.status == "pending" for c in ht.Comparison.load(folder).results.cells) == 2
    before = times(folder)
    whole = compare(few, methods=METHODS, seeds=2, out=folder)
    assert whole.finished
    assert before.items() <= times(folder).items()
    # Several processes give the same numbers as one.
    assert accuracy(whole) == accuracy(compare(few, methods=METHODS, seeds=2, out=tmp_path / "b", jobs=2))
    # Methods and seeds may be added; the others are kept.
    before = times(folder)
    more = compare(few, methods=["vanilla", "gce"], seeds=2, out=folder)
    assert before.items() <= times(folder).items()
    assert len(more.results.cells) == 6
    # results.json alone is enough.
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "results.json").write_text((folder / "results.json").read_text())
    again = compare(few, methods=METHODS, seeds=2, out=tmp_path / "c")
    assert not list((tmp_path / "c").rglob("run.json"))
    assert accuracy(again) == accuracy(more)
    for change, what in (({"epochs": 3}, "--epochs 1, not 3"), ({"stability": True}, "--stability False")):
        with pytest.raises(ConfigError, match=what):
            compare(few, methods=METHODS, seeds=1, out=folder, **change)
    next(image_folder.rglob("*.png")).unlink()
    with pytest.raises(ConfigError, match="other data"):
        compare(few, methods=METHODS, seeds=1, out=folder)
    assert compare(few, methods=["vanilla"], seeds=1, out=folder, overwrite=True).finished


def test_a_failed_worker_is_reported(few, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(RunError, match="exit code"):
        compare(few, methods=METHODS, seeds=1, out=tmp_path / "a", jobs=2)


def test_tasks_and_variants_have_options_of_their_own(few, tmp_path):
    found = compare(
        {**few, "epochs": 1, "warmup_epochs": 0, "measure_examples": 0},
        methods={"vanilla": {}, "wide": {"method": "robust", "radius": 5.0}, "lora": None},
        tasks={"mild": {"inject_noise": "symmetric:0.1"}, "seeded": {"inject_noise": "symmetric:0.{seed}"}},
        seeds=[2],
        out=tmp_path / "a",
    )
    configs = found.results.configs
    assert configs["mild"]["wide"]["radius"] == 5.0
    assert configs["seeded"]["vanilla"]["inject_noise"] == "symmetric:0.2"
    assert any(r.task is None and r.method == "wide" for r in found.results.differences)
    assert [c.method for c in found.results.cells if c.status == "failed"] == ["lora", "lora"]
    assert "lora, seed 2: " in found.markdown()


def test_all_stands_for_the_methods_that_apply(few):
    plan, _ = plan_of({**few, "methods": ["all"], "class_weights": "balanced", "seeds": 1})
    assert "co_teaching" not in {c.method for c in plan.cells}
    assert "balanced class weights" in plan.left_out["co_teaching"]
    with pytest.raises(ConfigError, match="balanced"):
        plan_of({**few, "methods": ["co_teaching"], "class_weights": "balanced"})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"methods": ["vanila"]}, "did you mean 'vanilla'"),
        ({"methods": ["vanilla", "vanilla"]}, "named twice"),
        ({"methods": {"../a": {}}}, "unknown method"),
        ({"methods": {"../a": {"method": "vanilla"}}}, "may hold letters"),
        ({"tasks": {"..": {}}}, "may hold letters"),
        ({"tasks": {"a": 3}}, "needs options by name"),
        ({"seeds": 0}, "at least one"),
        ({"seeds": "three"}, "a count or a list"),
        ({"baseline": "sam"}, "unknown baseline 'sam'"),
        ({"jobs": 0}, "jobs must be at least 1"),
        ({"measure_examples": -1}, "at least 0"),
        ({"seed": 3}, "use seeds"),
        ({"epoch": 3}, "did you mean 'epochs'"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(few, tmp_path, wrong, message):
    with pytest.raises(ConfigError, match=message):
        compare(few, **{"methods": ["vanilla"], "seeds": 1, **wrong}, out=tmp_path / "a")
    assert not (tmp_path / "a" / PLAN).exists()


def test_folders_of_others_are_left_alone(few, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for more in ({}, {"overwrite": True}):
        with pytest.raises(RunError, match="no comparison"):
            compare(few, methods=["vanilla"], seeds=1, out=tmp_path, **more)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(RunError, match="is a file"):
        compare(few, methods=["vanilla"], seeds=1, out=tmp_path / "notes.txt")


def test_command_line(few, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")  # else a worker's own width, which may be narrow
    options = [f"--{k.replace('_', '-')}={v}" for k, v in few.items()]

    def ended(*words):
        with pytest.raises(SystemExit) as end:
            cli(["compare", *options, *words])
        return end.value.code, capsys.readouterr()

    code, shown = ended("--methods", "vanilla,robust", "--seeds", "1", "--out", f"{tmp_path}/a", "--json")
    assert code == 0
    assert re.search(r"robust +│ +\d", shown.out)
    assert len(json.loads(shown.out.splitlines()[-1])["cells"]) == 2
    for wrong, message in (
        (["--methods", "robsut", "--out", "x"], "did you mean 'robust'"),
        (["--method", "robust", "--out", "x"], "takes --methods"),
        ([], "give --out"),
    ):
        code, shown = ended(*wrong)
        assert code == 2
        assert message in shown.err
    _, shown = ended("--methods", "vanilla", "--seeds", "2", "--seed", "5", "--dry-run")
    assert "vanilla, seed 6\n2 cells" in shown.out


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"inject_noise": None, "noise_matrix": "estimate:confident"}, "estimated"),
        ({"mean": [0.4]}, "normalisation"),
        ({"split": "stratified"}, "uniformly at random"),
        ({"inject_noise": "instance:0.2"}, "depend on the input"),
    ],
)
def test_a_cell_is_not_certified_if_an_assumption_is_known_to_fail(changes, why, tmp_path):
    config = make_config({"inject_noise": "symmetric:0.2", "limit": 64} | changes).resolved()
    task = run_task(config, config.seed)
    run = Run(tmp_path, config, SimpleNamespace(classes=task.classes, possible_groups={}))
    NoiseMatrix.symmetric(task.k, 0.2).save(tmp_path / "noise_matrix.json")
    net = torch.nn.Linear(4, task.k)
    network = MeasuredNetwork(net, Reference.of(net), None, task.train.labels, np.arange(len(task.train)))
    found = cells._certificate(network, task, run)
    assert found["risk"] is None
    assert why in found["why"]


def test_the_header_says_what_was_left_out_of_the_data(few, image_folder, tmp_path):
    for i in range(5):
        (image_folder / "dark" / f"{i}.heic").write_bytes(b"x")
    (image_folder / "light" / "00.png").write_bytes(b"no image")
    few |= {"skip_bad_images": True, "epochs": 1, "warmup_epochs": 0, "measure_examples": 0}
    found = compare(few, methods=["vanilla"], seeds=1, out=tmp_path / "cmp", jobs=1)
    note = "Data: 24 of 29 files read; 5 .heic left out"
    assert note in found.results.header
    assert note in (tmp_path / "cmp" / "README.md").read_text()
    again = compare(few, methods=["vanilla"], seeds=1, out=tmp_path / "cmp", jobs=1)
    assert again.results.header == found.results.header


# Hyperparameter search


@pytest.fixture
def searched(few):
    pytest.importorskip("optuna")
    return {**few, "inject_noise": None, "epochs": 1, "warmup_epochs": 0, "measure_examples": 0}


def counted(monkeypatch, fail_at=None, error=KeyboardInterrupt):
    """Count the runs of trials; let one fail."""
    calls, plain = [], cells.finetune

    def finetune(data, *, config, **more):
        calls.append(config["out"])
        if len(calls) - 1 == fail_at:
            raise error
        return plain(data, config=config, **more)

    monkeypatch.setattr(cells, "finetune", finetune)
    return calls


def search(options, out, trials=3, **more):
    (cell,) = compare(options, methods=["gce"], seeds=1, out=out, search=trials, jobs=1, **more).results.cells
    return cell


def test_a_search_keeps_the_trial_of_least_validation_loss_and_continues(searched, tmp_path, monkeypatch):
    whole = search(searched, tmp_path / "whole")
    losses = [trial.val_loss for trial in whole.search.trials]
    assert len(losses) == 3
    assert whole.search.trials[0].options == pytest.approx({"lr_factor": 1.0, "q": 0.7})
    assert whole.search.chosen == losses.index(min(losses))
    assert whole.metrics["val_loss"] == pytest.approx(min(losses))
    plain = search(searched, tmp_path / "plain", trials=0)
    assert plain.metrics["val_loss"] == pytest.approx(losses[0])
    for stopped in (2, 3):  # in the last trial, and in the run of the cell
        out = tmp_path / str(stopped)
        with monkeypatch.context() as patch:
            calls = counted(patch, fail_at=stopped)
            with pytest.raises(KeyboardInterrupt):
                search(searched, out)
        assert len(calls) == stopped + 1
        with monkeypatch.context() as patch:
            calls = counted(patch)
            again = search(searched, out)
        assert len(calls) == 4 - stopped
        assert again.search == whole.search
        assert again.metrics["test_accuracy"] == whole.metrics["test_accuracy"]
        assert not list(out.rglob("search"))


def test_no_prior_is_trained_with_options_that_a_search_chose_on_the_bounds_examples(searched, tmp_path):
    search({**searched, "inject_noise": "symmetric:0.2"}, tmp_path / "a", trials=2, keep_runs=True)
    (folder,) = (tmp_path / "a").glob("cells/*/gce/seed-0/run")
    run = ht.Run.load(folder)
    assert run.facts.searched == ["lr_factor", "q"]
    with pytest.raises(DataError, match="lr_factor, q"):
        certify_run(run, prior_fraction=0.5, diagnostic=True)
    assert certify_run(run, draws=32, diagnostic=True)  # around the pretrained weights: any posterior will do


def test_a_failed_trial_is_kept_and_a_search_without_any_other_fails(searched, tmp_path, monkeypatch):
    del searched["measure_examples"]
    config = make_config({**searched, "method": "gce"}).resolved()
    calls = counted(monkeypatch, fail_at=0, error=RunError("no"))
    _, found = cells.search_cell(config, 2, tmp_path / "s")
    assert [row.error for row in found.trials] == ["no", None]
    assert cells.search_cell(config, 2, tmp_path / "s")[1] == found
    assert len(calls) == 2
    counted(monkeypatch, fail_at=0, error=ConfigError("never"))
    with pytest.raises(RunError, match="never"):
        cells.search_cell(config, 1, tmp_path / "t")


@pytest.mark.parametrize(
    ("method", "select"),
    [("vanilla", "best"), ("vanilla", "last"), ("auto", "best"), ("auto", "last"), ("wise_ft", "last")],
)
def test_the_epoch_kept_has_the_loss_of_the_weights(tiny, method, select):
    from hesstune.inputs.batches import predict_logits
    from hesstune.training.metrics import Validation

    seen = {}

    def observe(trained):
        judge, part = Validation(None, tempered=method == "auto"), trained.task.val
        logits = predict_logits(trained.net, trained.feeds["val"])
        seen["loss"] = float(judge.losses(logits, part.labels, part.clean).mean())

    options = {**tiny, "method": method, "select": select, "epochs": 2, "lr": 0.05, "inject_noise": None}
    found = ht.finetune(options, observe=observe)
    kept = found.records.kept_epoch
    assert kept.epoch == found.outcome.kept_epoch
    if found.noise_matrix is None and method != "wise_ft":
        assert kept.val_loss == pytest.approx(seen["loss"], rel=1e-6)
    if select == "last" and method != "auto":
        assert kept.epoch == 2
