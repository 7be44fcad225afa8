"""Options of commands: grouped in the help, named in errors as they were written."""

import json
import re

import pytest

from hesstune.cli.main import run as cli
from hesstune.labeling.options import LabelOptions
from hesstune.options import OFF_COMMAND_LINE
from hesstune.runs.config import FinetuneConfig
from hesstune.runs.options import (
    CertifyOptions,
    MeasureOptions,
    NoiseCheckOptions,
    PredictOptions,
    ReportOptions,
)
from hesstune.study.options import CompareOptions


def hesstune(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        cli([str(a) for a in arguments])
    found = capsys.readouterr()
    return end.value.code, found.out, found.err


def refused(capsys, *arguments):
    code, _, err = hesstune(capsys, *arguments)
    assert code == 2
    assert len(err.splitlines()) == 1
    return err


def sections(text):
    """The options of a command's help, by heading."""
    found, heading = {}, None
    for line in text.splitlines():
        if re.fullmatch(r"\S.*:", line):
            heading = line.rstrip(":")
        elif heading and (option := re.match(r"  (--[a-z-]+)", line)):
            found.setdefault(heading, []).append(option[1])
    return found


@pytest.mark.parametrize("width", [80, 100])
def test_the_first_screen_of_finetune_has_what_most_users_need(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, _ = hesstune(capsys, "finetune", "--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= width
    screen = "\n".join(out.splitlines()[:24])
    for option in ("--data", "--model", "--method", "--noise-matrix", "--out", "--epochs"):
        assert re.search(rf"^  {option} ", screen, flags=re.M), option
    assert list(sections(out)) == ["Most used"]
    assert len(sections(out)["Most used"]) == 10
    found = sections(hesstune(capsys, "finetune", "--help-all")[1])
    assert list(found) == [
        "Most used", "Data", "Model and method", "Labels and their noise", "Optimisation", "Constraint",
        "Run", "Output",
    ]  # fmt: skip
    assert found["Most used"] == sections(out)["Most used"]
    assert found["Constraint"] == ["--radius", "--radius-scale", "--norm"]


@pytest.mark.parametrize(
    ("command", "models"),
    [
        ("finetune", [FinetuneConfig]),
        ("compare", [FinetuneConfig, CompareOptions]),
        ("measure", [MeasureOptions]),
        ("certify", [CertifyOptions]),
        ("noise", [NoiseCheckOptions]),
        ("predict", [PredictOptions]),
        ("label", [LabelOptions]),
        ("report", [ReportOptions]),
    ],
)
def test_commands_have_the_options_of_their_models(capsys, monkeypatch, command, models):
    monkeypatch.setenv("COLUMNS", "100")
    _, out, _ = hesstune(capsys, command, "--help-all")
    shown_options = {option for group in sections(out).values() for option in group}
    for model in models:
        for name, field in model.model_fields.items():
            hidden = OFF_COMMAND_LINE in field.metadata or (command, name) == ("compare", "method")
            assert (f"--{name.replace('_', '-')}" in shown_options) != hidden, name


def test_label_writes_its_noise_matrix_by_that_name(capsys, voted, tmp_path):
    out, matrix = tmp_path / "labels.csv", tmp_path / "F.json"
    words = ["label", "--votes", voted, "--out", out]
    code, said, err = hesstune(capsys, *words, "--noise-matrix", matrix, "--json")
    assert code == 0, err
    assert json.loads(said.splitlines()[-1])["noise_path"] == str(matrix)
    assert matrix.is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["measure", "runs/a", "--max-examples", "0"], "--max-examples must be above 0; got '0'"),
        (["measure", "runs/a", "--examples", "al"], "--examples 'al'; did you mean 'all'"),
        (["measure", "runs/a", "--examples", "all", "--mean-sample", "4"], "is for --examples max"),
        (["certify", "runs/a", "--delta", "2"], "--delta must be below 1; got '2'"),
        (["certify", "runs/a", "--vouch", "nrmalisation"], "--vouch: unknown choice to vouch for"),
        (["noise", "runs/a", "--seed", "x"], "--seed must be an integer; got 'x'"),
        (["label", "--out", "a.csv", "--label-model", "sof"], "--label-model 'sof'; did you mean"),
        (["label", "--out", "a.csv", "--votes", "v.csv", "--epochs", "3"], "is for --labeler finetune"),
        (["compare", "--out", "a", "--jobs", "0"], "--jobs must be at least 1; got '0'"),
        (["compare", "--out", "a", "--seeds", "many"], "--seeds must be a count"),
        (["compare", "--out", "a", "--engine", "lokal"], "did you mean 'local'"),
        (["compare", "--out", "a", "--batch-size", "x"], "--batch-size must be an integer; got 'x'"),
        (["finetune", "--out", "a", "--batch-size", "x"], "--batch-size must be an integer; got 'x'"),
    ],
)  # fmt: skip
def test_a_wrong_value_names_its_option_as_it_was_written(capsys, arguments, message):
    assert message in refused(capsys, *arguments)


def test_what_is_wrong_in_a_file_names_the_file(capsys, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("batch-size: x\n")
    err = refused(capsys, "finetune", "--config", path, "--out", tmp_path / "a")
    assert f"{path}: batch_size must be an integer; got 'x'" in err
    err = refused(capsys, "compare", "--config", path, "--methods", "all", "--out", tmp_path / "a")
    assert "batch_size must be an integer; got 'x'" in err


def test_a_comparison_takes_its_own_options_from_a_file_and_its_first_seed(capsys, tmp_path):
    path = tmp_path / "cmp.yaml"
    path.write_text("methods: [vanilla]\nseeds: 2\nstability: true\ntrain: head\nlimit: 40\n")
    code, out, err = hesstune(capsys, "compare", "--config", path, "--seed", "5", "--dry-run")
    assert code == 0, err
    assert out.splitlines() == ["digits, vanilla, seed 5", "digits, vanilla, seed 6", "2 cells"]
    path.write_text("methods: [vanilla]\nseeds: [3, 8]\n")
    assert "says which they are" in refused(capsys, "compare", "--config", path, "--seed", "5", "--dry-run")
    _, out, _ = hesstune(capsys, "compare", "--data", "digits", "--inject-noise", "symmetric:0.{seed}",
                         "--methods", "vanilla", "--seeds", "2", "--seed", "1", "--dry-run")  # fmt: skip
    assert out.splitlines()[-1] == "2 cells"
