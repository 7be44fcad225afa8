"""A comparison continues where it stopped, notices changes, and says the same by any number of processes."""

import csv
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import hesstune as ht
from hesstune.analysis.certify import certify_run
from hesstune.analysis.measure import MeasuredNetwork
from hesstune.cli.main import run as cli
from hesstune.errors import ConfigError, DataError, RunError
from hesstune.noise.matrix import NoiseMatrix
from hesstune.reference import Reference
from hesstune.runs.run import Run
from hesstune.study.compare import PLAN, compare


@pytest.fixture
def few(tiny):
    shared = {name: value for name, value in tiny.items() if name != "method"}  # a comparison sets it
    return {**shared, "train": "head", "epochs": 2, "warmup_epochs": 1}


METHODS = ["vanilla", "robust"]


def accuracy(found):
    return {
        (c["task"], c["method"], c["seed"]): (c["metrics"]["test_accuracy"], c["metrics"]["distance"])
        for c in found.results["cells"]
    }


def times(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("cell.json")}


def test_results_hold_what_was_run(few, tmp_path):
    found = compare(few, methods=METHODS, seeds=2, out=tmp_path / "a", stability=True, certify=True)
    cells = found.results["cells"]
    assert [c["status"] for c in cells] == ["done"] * 4
    alone = ht.finetune(few, method="robust", seed=1, out=str(tmp_path / "run"))
    record = next(c for c in cells if (c["method"], c["seed"]) == ("robust", 1))["metrics"]
    assert record["test_accuracy"] == alone.result["test_accuracy"]
    assert record["distance"] == pytest.approx(alone.result["distance"], rel=1e-5)
    from hesstune.analysis.measure import measure_run

    whole = measure_run(alone, part="train", trace=False)
    assert record["measure"] == pytest.approx(
        whole.hessian_distance(alone.record["examples"]["train"]), rel=1e-4
    )
    assert record["certificate"]["empirical"] < record["certificate"]["risk"] <= 1
    assert record["stability_taylor"] > 0
    assert not list((tmp_path / "a").rglob("model.safetensors"))
    rows = list(csv.DictReader((tmp_path / "a" / "results.csv").open()))
    assert float(rows[3]["test_accuracy"]) == cells[3]["metrics"]["test_accuracy"]
    text = (tmp_path / "a" / "README.md").read_text()
    assert "Budget: epochs 2, batch size 4" in text
    assert re.search(r"\| robust \| \d", text)
    assert ht.Comparison.load(tmp_path / "a").results == found.results


def test_the_validation_gap_is_of_the_labels_that_training_saw(few, tmp_path):
    found = compare({**few, "inject_noise": None}, methods=["vanilla"], seeds=1, out=tmp_path / "a")
    seen = found.results["cells"][0]["metrics"]
    assert seen["val_gap"] == pytest.approx(seen["val_loss"] - seen["train_loss"], abs=1e-6)
    assert seen["val_gap"] != seen["gap"]


def test_a_stopped_comparison_continues_and_finished_cells_are_not_run_again(few, tmp_path):
    class Stop(Exception):
        pass

    def stop(done, total, text):
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        compare(few, methods=METHODS, seeds=2, out=tmp_path / "a", progress=stop)
    assert sum(c["status"] == "pending" for c in ht.Comparison.load(tmp_path / "a").results["cells"]) == 2
    before = times(tmp_path / "a")
    whole = compare(few, methods=METHODS, seeds=2, out=tmp_path / "a")
    assert whole.finished
    assert before.items() <= times(tmp_path / "a").items()
    assert accuracy(whole) == accuracy(compare(few, methods=METHODS, seeds=2, out=tmp_path / "b"))


def test_more_methods_and_seeds_may_be_added_and_others_are_kept(few, tmp_path):
    compare(few, methods=METHODS, seeds=1, out=tmp_path / "a")
    before = times(tmp_path / "a")
    more = compare(few, methods=["vanilla", "gce"], seeds=2, out=tmp_path / "a")
    assert before.items() <= times(tmp_path / "a").items()
    assert len(more.results["cells"]) == 5
    assert "robust" in more.results["methods"]


def test_a_comparison_continues_from_results_json_alone(few, tmp_path):
    first = compare(few, methods=METHODS, seeds=1, out=tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "results.json").write_text((tmp_path / "a" / "results.json").read_text())
    again = compare(few, methods=METHODS, seeds=1, out=tmp_path / "b")
    assert not list((tmp_path / "b").rglob("run.json"))
    assert again.results["cells"] == first.results["cells"]


def test_a_changed_configuration_or_data_is_noticed(few, tmp_path, image_folder):
    compare(few, methods=METHODS, seeds=1, out=tmp_path / "a")
    with pytest.raises(ConfigError, match="made with --epochs 2, not 3"):
        compare(few, methods=METHODS, seeds=1, out=tmp_path / "a", epochs=3)
    with pytest.raises(ConfigError, match="made with --stability False, not True"):
        compare(few, methods=METHODS, seeds=1, out=tmp_path / "a", stability=True)
    next(image_folder.rglob("*.png")).unlink()
    with pytest.raises(ConfigError, match="made with other data"):
        compare(few, methods=METHODS, seeds=1, out=tmp_path / "a")
    assert compare(few, methods=["vanilla"], seeds=1, out=tmp_path / "a", overwrite=True).finished


def test_processes_agree_with_one(few, tmp_path):
    one = compare(few, methods=METHODS, seeds=2, out=tmp_path / "a", jobs=1)
    two = compare(few, methods=METHODS, seeds=2, out=tmp_path / "b", jobs=2)
    assert accuracy(one) == accuracy(two)


def test_a_worker_that_fails_is_told(few, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(RunError, match="a worker ended with exit code"):
        compare(few, methods=METHODS, seeds=1, out=tmp_path / "a", jobs=2)


def test_tasks_and_variants_have_options_of_their_own(few, tmp_path):
    found = compare(
        few,
        methods={"vanilla": {}, "wide": {"method": "robust", "radius": 5.0}, "lora": None},
        tasks={"mild": {"inject_noise": "symmetric:0.1"}, "seeded": {"inject_noise": "symmetric:0.{seed}"}},
        seeds=[2],
        out=tmp_path / "a",
    )
    configs = found.results["configs"]
    assert configs["mild"]["wide"]["radius"] == 5.0
    assert configs["seeded"]["vanilla"]["inject_noise"] == "symmetric:0.2"
    assert any(r["task"] is None and r["method"] == "wide" for r in found.results["differences"])
    failed = [c for c in found.results["cells"] if c["status"] == "failed"]
    assert [c["method"] for c in failed] == ["lora", "lora"]
    assert "none of them trains here" in failed[0]["error"]
    assert "lora, seed 2: " in found.markdown()


def test_all_stands_for_the_methods_that_apply(few, tmp_path):
    from hesstune.study.compare import plan_of

    plan, _ = plan_of({**few, "methods": ["all"], "class_weights": "balanced", "seeds": 1})
    assert "co_teaching" not in {c.method for c in plan.cells}
    assert "balanced class weights" in plan.left_out["co_teaching"]
    with pytest.raises(ConfigError, match=r"method co_teaching: .*balanced"):
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
def test_wrong_arguments_are_told_before_anything_is_written(few, tmp_path, wrong, message):
    with pytest.raises(ConfigError, match=message):
        compare(few, **{"methods": ["vanilla"], "seeds": 1, **wrong}, out=tmp_path / "a")
    assert not (tmp_path / "a" / PLAN).exists()


def test_folders_of_others_are_left_alone(few, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for more in ({}, {"overwrite": True}):
        with pytest.raises(RunError, match="holds files but no comparison"):
            compare(few, methods=["vanilla"], seeds=1, out=tmp_path, **more)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(RunError, match="is a file"):
        compare(few, methods=["vanilla"], seeds=1, out=tmp_path / "notes.txt")


def test_search_keeps_the_trial_of_least_validation_loss(few, tmp_path):
    pytest.importorskip("optuna")
    found = compare(few, methods=["gce"], seeds=1, out=tmp_path / "a", search=3)
    cell = found.results["cells"][0]
    losses = [t["val_loss"] for t in cell["search"]["trials"]]
    assert len(losses) == 3
    assert cell["search"]["trials"][0]["options"] == pytest.approx({"lr_factor": 1.0, "q": 0.7})
    assert cell["search"]["chosen"] == losses.index(min(losses))
    assert cell["metrics"]["val_loss"] == pytest.approx(min(losses))
    plain = compare(few, methods=["gce"], seeds=1, out=tmp_path / "b")
    assert plain.results["cells"][0]["metrics"]["val_loss"] == pytest.approx(losses[0])


def test_no_prior_is_trained_with_options_that_a_search_chose_on_the_bounds_examples(few, tmp_path):
    pytest.importorskip("optuna")
    compare(few, methods=["gce"], seeds=1, out=tmp_path / "a", search=2, keep_runs=True)
    (folder,) = (tmp_path / "a").glob("cells/*/gce/seed-0/run")
    run = ht.Run.load(folder)
    assert run.facts.searched == ["lr_factor", "q"]
    with pytest.raises(DataError, match=r"a search chose lr_factor, q on all of the run's examples"):
        certify_run(run, prior_fraction=0.5, diagnostic=True)
    assert certify_run(run, draws=32, diagnostic=True)  # around the pretrained weights: any posterior will do


def test_command_line(few, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")  # else a worker's own width, which may be narrow
    options = [f"--{k.replace('_', '-')}={v}" for k, v in few.items()]
    with pytest.raises(SystemExit) as end:
        cli(
            [
                "compare",
                *options,
                "--methods",
                "vanilla,robust",
                "--seeds",
                "1",
                "--out",
                f"{tmp_path}/a",
                "--json",
            ]
        )
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert re.search(r"robust +│ +\d", out)
    assert len(json.loads(out.splitlines()[-1])["cells"]) == 2
    for wrong, message in (
        (["--methods", "robsut", "--out", "x"], "did you mean 'robust'"),
        (["--method", "robust", "--out", "x"], "takes --methods"),
        ([], "give --out"),
    ):
        with pytest.raises(SystemExit) as end:
            cli(["compare", *options, *wrong])
        assert end.value.code == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        cli(["compare", *options, "--methods", "vanilla", "--seeds", "2", "--seed", "5", "--dry-run"])
    assert "vanilla, seed 6\n2 cells" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"inject_noise": None, "noise_matrix": "estimate:confident"}, "estimated"),
        ({"mean": [0.4]}, "normalisation"),
        ({"split": "stratified"}, "uniformly at random"),
        ({"inject_noise": "instance:0.2"}, "depend on the input"),
    ],
)
def test_a_cell_is_not_certified_where_an_assumption_is_known_to_fail(changes, why, tmp_path):
    from hesstune.runs.config import make_config
    from hesstune.runs.loading import run_task
    from hesstune.study.cell import _certificate

    told = {"inject_noise": "symmetric:0.2", "limit": 64} | changes
    config = make_config(told).resolved()
    task = run_task(config)
    run = Run(tmp_path, config, SimpleNamespace(classes=task.classes, possible_groups={}))
    NoiseMatrix.symmetric(task.k, 0.2).save(tmp_path / "noise_matrix.json")
    net = torch.nn.Linear(4, task.k)
    subject = MeasuredNetwork(net, Reference.of(net), None, task.train.labels, np.arange(len(task.train)))
    found = _certificate(subject, task, run)
    assert found["risk"] is None
    assert why in found["why"]


def test_what_was_left_out_of_the_data_is_said(few, image_folder, tmp_path):
    for i in range(5):
        (image_folder / "dark" / f"{i}.heic").write_bytes(b"x")
    (image_folder / "light" / "00.png").write_bytes(b"no image")
    options = {**few, "skip_bad_images": True, "epochs": 1}
    found = compare(options, methods=["vanilla"], seeds=1, out=tmp_path / "cmp", measure_examples=0, jobs=1)
    told = "Data: 24 of 29 files read; 5 .heic left out"
    assert told in found.results.header
    assert told in (tmp_path / "cmp" / "README.md").read_text()
    again = compare(options, methods=["vanilla"], seeds=1, out=tmp_path / "cmp", measure_examples=0, jobs=1)
    assert again.results.header == found.results.header
