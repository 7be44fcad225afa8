"""Commands: their help, wrong input in one line, configuration files, and interruption."""

import json
import re
import shlex
import shutil
import sys

import pytest
import typer
import yaml

import hesstune as ht
from commands import inside, refused
from hesstune.cli.main import app
from hesstune.labeling.options import CleanOptions, LabelOptions
from hesstune.methods import method_class, method_names
from hesstune.options import OFF_COMMAND_LINE
from hesstune.runs import options as of_runs
from hesstune.runs.config import FinetuneConfig
from hesstune.study.options import CompareOptions

FAST = ["--data", "digits", "--train", "head", "--limit", "60", "--epochs", "2", "--image-size", "32"]


def sections(*arguments):
    """The options of a command's help, by heading."""
    found, heading = {}, None
    for line in inside(*arguments).stdout.splitlines():
        if re.fullmatch(r"\S.*:", line):
            heading = line.rstrip(":")
        elif heading and (option := re.match(r"  (--[a-z-]+)", line)):
            found.setdefault(heading, []).append(option[1])
    return found


@pytest.mark.parametrize("width", [80, 100])
def test_the_first_screen_of_finetune_has_what_most_users_need(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = inside("finetune", "--help").stdout.splitlines()
    assert max(map(len, lines)) <= width
    for option in ("--data", "--model", "--method", "--noise-matrix", "--out", "--epochs"):
        assert any(line.startswith(f"  {option} ") for line in lines[:24]), option
    first, found = sections("finetune", "--help"), sections("finetune", "--help-all")
    assert list(first) == ["Most used"]
    assert len(first["Most used"]) == 10
    assert list(found) == [
        "Most used", "Data", "Model and method", "Labels and their noise", "Optimisation", "Constraint",
        "Run", "Output",
    ]  # fmt: skip
    assert found["Most used"] == first["Most used"]
    assert found["Constraint"] == ["--radius", "--radius-scale", "--norm"]


@pytest.mark.parametrize(
    ("command", "models"),
    [
        ("finetune", [FinetuneConfig]),
        ("compare", [FinetuneConfig, CompareOptions]),
        ("measure", [of_runs.MeasureOptions]),
        ("certify", [of_runs.CertifyOptions]),
        ("noise", [of_runs.NoiseCheckOptions]),
        ("predict", [of_runs.PredictOptions]),
        ("label", [LabelOptions]),
        ("clean", [CleanOptions]),
        ("report", [of_runs.ReportOptions]),
    ],
)
def test_commands_have_the_options_of_their_models(command, models):
    shown = {option for group in sections(command, "--help-all").values() for option in group}
    for model in models:
        for name, field in model.model_fields.items():
            hidden = OFF_COMMAND_LINE in field.metadata or (command, name) == ("compare", "method")
            assert (f"--{name.replace('_', '-')}" in shown) != hidden, name


def test_methods_lists_every_method_once_in_its_tier():
    done = inside("methods", "--json")
    found = json.loads(done.stdout.splitlines()[-1])
    assert list(found) == ["recommended", "baseline", "research"]
    tiers = {name: tier for tier, names in found.items() for name in names}
    assert tiers == {name: method_class(name).tier for name in method_names()}
    assert "the paper's algorithm" in found["recommended"]["robust"]
    assert all(name in done.stdout for name in method_names())


def test_finetune_predict_and_what_is_refused_then(tmp_path):
    out = tmp_path / "runs" / "a"
    command = ["finetune", "--method", "robust", "--inject-noise", "symmetric:0.3", *FAST, "--out", out]
    done = inside(*command, "--json")
    record = json.loads(done.stdout.splitlines()[-1])
    assert record["path"] == str(out)
    assert record["noise"]["loss_matrix_rate"] == pytest.approx(0.3)
    assert "rate 0.3" in done.stdout
    assert done.stderr == ""  # no progress bar on a pipe
    assert ht.Run.load(out).result["epochs"] == 2
    assert "--overwrite" in refused(*command)
    assert inside("finetune", "--out", out, "--resume", "--quiet").stdout == ""

    predict = ["predict", out, "--data", "digits", "--out", tmp_path / "p.csv"]
    assert json.loads(inside(*predict, "--json", "--quiet").stdout)["examples"] == 1797
    assert (tmp_path / "p.csv").read_text().startswith("id,prediction,label_source,label,p_0,")
    assert "exists" in refused(*predict)
    assert "does not exist" in refused("predict", tmp_path / "b", *predict[2:-1], tmp_path / "q.csv")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frobnicate"], "frobnicate"),
        (["predict", "runs/a"], "--data"),
        (["finetune", "--inject-noise", "0.2"], "--out"),
        (["finetune", "--out", "a"], "folder:PATH"),
        (["clean", "--out", "a.csv"], "hesstune demo"),
        (["compare", "--out", "a"], "--data"),
        (["finetune", "--epoch", "3"], "--epochs"),
        (["finetune", "--batch-size", "x"], "--batch-size must be an integer; got 'x'"),
        (["finetune", "--method", "robut", "--out", "a"], "'robust'"),
        (["finetune", "--data", "digits", "--model", "efficientnet", "--out", "a"], "efficientnet_lite0"),
        (["finetune", "--data", "folder:nowhere", "--out", "a"], "does not exist"),
        (["finetune", "--data", "digits", "--inject-noise", "symetric:0.2", "--out", "a"], "'symmetric'"),
        (["finetune", "--config", "nowhere.yaml", "--out", "a"], "does not exist"),
        (["finetune", "--radius", "0", "--out", "a"], "above 0"),
        (["finetune", "--resume", "--overwrite", "--out", "a"], "contradict"),
        (["measure", "runs/a", "--max-examples", "0"], "--max-examples must be above 0; got '0'"),
        (["measure", "runs/a", "--examples", "al"], "--examples 'al'"),
        (["measure", "runs/a", "--examples", "all", "--mean-sample", "4"], "--examples max"),
        (["certify", "runs/a", "--vouch", "nrmalisation"], "--vouch: "),
        (["noise", "runs/a", "--seed", "x"], "--seed must be an integer; got 'x'"),
        (["label", "--out", "a.csv", "--label-model", "sof"], "--label-model 'sof'"),
        (["label", "--out", "a.csv", "--votes", "v.csv", "--epochs", "3"], "--labeler finetune"),
        (["compare", "--out", "a", "--seeds", "many"], "--seeds must be a count"),
        (["compare", "--out", "a", "--engine", "lokal"], "'local'"),
        (["compare", "--out", "a", "--batch-size", "x"], "--batch-size must be an integer; got 'x'"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(*arguments)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def commands():
    return typer.main.get_command(app).commands


def test_commands_stand_in_the_order_of_the_work(commands):
    assert list(commands) == [
        "demo", "clean", "label", "finetune", "predict", "measure", "certify", "check", "compare", "report",
        "export", "noise", "methods",
    ]  # fmt: skip
    for name, command in commands.items():
        first = command.callback.first
        assert len(first) <= 10
        assert set(first) <= {parameter.name for parameter in command.params}, name
        text = inside(name, "--help-all").stdout
        assert "--json" in text
        assert "[default" not in text


@pytest.fixture(scope="module")
def head_run(tmp_path_factory):
    return ht.finetune(
        "digits", method="robust", train="head", inject_noise="symmetric:0.3", limit=60, epochs=2,
        image_size=32, out=tmp_path_factory.mktemp("runs") / "a",
    )  # fmt: skip


def test_every_command_on_a_run_ends_with_the_next_one(commands, head_run, tmp_path, monkeypatch):
    (tmp_path / "votes.csv").write_text("id,a,b\n1,yes,no\n2,yes,yes\n3,no,no\n4,no,no\n")
    run = tmp_path / "run"
    shutil.copytree(head_run.path, run)
    wanted = {
        ("measure", run, "--max-examples", "16"): "certify",
        ("certify", run, "--draws", "16", "--diagnostic"): "report",
        ("check", run, "--sample", "3"): "certify",
        ("noise", run): "report",
        ("predict", run, "--data", "digits", "--out", tmp_path / "p.csv"): "export",
        ("report", run): "measure",
        ("export", run, tmp_path / "exported"): "report",
        ("methods",): "demo",
        ("finetune", "--data", "digits", "--dry-run"): "finetune",
        ("label", "--votes", tmp_path / "votes.csv", "--out", tmp_path / "l.csv"): "label",
    }
    for words, following in wanted.items():
        monkeypatch.setattr(sys, "argv", ["hesstune", *map(str, words)])
        *_, last = inside(*words).stdout.splitlines()
        mark, _, line = last.partition("Next: ")
        assert mark in ("", "# "), words
        assert shlex.split(line)[:2] == ["hesstune", following]
        if following == "certify":
            commands["certify"].make_context("certify", shlex.split(line)[2:])
    assert "Next" not in inside("methods", "--json").stdout
    assert inside("report", run, "--quiet").stdout == ""


def test_measure_prints_the_sum_in_words_and_the_table_with_more(head_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(head_run.path, run)
    few = inside("measure", run, "--max-examples", "16").stdout
    assert "Mean Hessian distance measure: " in few
    assert re.search(r"100% ± \d+% of the measure comes from 1 of ", few)
    more = inside("measure", run, "--max-examples", "16", "--more").stdout
    assert "share" in more
    assert len(more) > 2 * len(few)


def test_label_writes_its_noise_matrix_by_that_name(voted, tmp_path):
    out, matrix = tmp_path / "labels.csv", tmp_path / "F.json"
    done = inside("label", "--votes", voted, "--out", out, "--noise-matrix", matrix, "--json")
    assert json.loads(done.stdout.splitlines()[-1])["noise_path"] == str(matrix)
    assert matrix.is_file()


def test_configuration_file_and_dry_run(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "data: digits\nmethod: robust\ninject-noise: pair:0.2\nbatch-size: 16\nradius: {head: 1.0}\n"
    )
    command = ["finetune", "--config", path, "--batch-size", "8", "--dry-run"]
    resolved = yaml.safe_load(inside(*command).stdout)
    expected = {"batch_size": 8, "inject_noise": "pair:0.2", "noise_matrix": "true", "radius": {"head": 1.0}}
    assert {name: resolved[name] for name in expected} == expected
    for text, message in (
        ("metod: robust", "'method'"),
        ("batch-size: x", f"{path}: batch_size must be an integer; got 'x'"),
        ("!!python/object/apply:os.system ['touch owned']", "not valid YAML"),
    ):
        path.write_text(text)
        assert message in refused(*command)
    path.write_text("batch-size: x\n")
    assert "got 'x'" in refused("compare", "--config", path, "--data", "digits", "--out", tmp_path / "a")


def test_a_comparison_takes_its_own_options_from_a_file_and_its_first_seed(tmp_path):
    path = tmp_path / "cmp.yaml"
    path.write_text("methods: [vanilla]\nseeds: 2\nstability: true\ndata: digits\nlimit: 40\n")
    command = ["compare", "--config", path, "--seed", "5", "--dry-run"]
    expected = ["digits, vanilla, seed 5", "digits, vanilla, seed 6", "2 cells"]
    assert inside(*command).stdout.splitlines()[:-1] == expected
    path.write_text("methods: [vanilla]\nseeds: [3, 8]\n")
    assert "--seed" in refused(*command)
    noise = ["--inject-noise", "symmetric:0.{seed}", "--methods", "vanilla", "--seeds", "2", "--seed", "1"]
    assert inside("compare", "--data", "digits", *noise, "--dry-run").stdout.splitlines()[-2] == "2 cells"


def test_a_comparison_of_which_every_cell_fails_is_an_error(tmp_path):
    few = ["--methods", "lora", "--seeds", "1", *FAST, "--out", tmp_path / "a", "--json"]
    done = inside("compare", *few, code=2)
    assert "every cell failed, the first with: " in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["cells"][0]["status"] == "failed"
