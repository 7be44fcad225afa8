import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import pytest
import yaml

import hesstune as ht
from hesstune.cli.main import run as cli

NOISY = ["--inject-noise", "symmetric:0.3"]
FAST = ["--train", "head", "--limit", "60", "--epochs", "2", "--image-size", "32"]


def hesstune(*arguments, cwd=None):
    command = [sys.executable, "-m", "hesstune", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300, check=False)


def inside(*arguments):
    """The same in this process: importing torch takes longer than most commands."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
        cli([str(argument) for argument in arguments])
    return SimpleNamespace(returncode=end.value.code, stdout=out.getvalue(), stderr=err.getvalue())


def one_line(done, code=2):
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done.stderr


def test_help_does_not_import_torch():
    code = (
        "import sys; sys.argv = ['hesstune', '--help']\n"
        "from hesstune.cli.main import run\n"
        "try:\n    run()\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "finetune" in done.stdout


def test_finetune_predict_and_everything_wrong_with_them(tmp_path):
    out = tmp_path / "runs" / "a"
    done = hesstune("finetune", "--method", "robust", *NOISY, *FAST, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    assert record["path"] == str(out)
    assert record["noise"]["loss_matrix_rate"] == pytest.approx(0.3)
    assert "Noise matrix of the loss: rate 0.3" in done.stdout
    assert done.stderr == ""  # no progress bar on a pipe
    assert ht.Run.load(out).result["epochs"] == 2

    assert "--overwrite" in one_line(inside("finetune", "--inject-noise", "0.3", *FAST, "--out", out))
    again = inside("finetune", "--out", out, "--resume", "--quiet")
    assert (again.returncode, again.stdout) == (0, "")

    found = tmp_path / "p.csv"
    done = inside("predict", out, "--data", "digits", "--out", found, "--json", "--quiet")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["examples"] == 1797
    assert found.read_text().startswith("id,prediction,label_source,label,p_0,")
    assert "exists" in one_line(inside("predict", out, "--data", "digits", "--out", found))
    assert "does not exist" in one_line(
        inside("predict", tmp_path / "b", "--data", "digits", "--out", tmp_path / "q.csv")
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epoch", "3"], "--epochs"),
        (["--epochs", "x"], "got 'x'"),
        (["--method", "robut"], "did you mean 'robust'"),
        (["--model", "efficientnet"], "efficientnet_lite0"),
        (["--data", "folder:nowhere"], "does not exist"),
        (["--inject-noise", "symetric:0.2"], "did you mean 'symmetric'"),
        (["--config", "nowhere.yaml"], "does not exist"),
        (["--radius", "0"], "above 0"),
        (["--resume", "--overwrite"], "contradict"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(tmp_path, arguments, message):
    out = [] if "--out" in arguments else ["--out", tmp_path / "a"]
    noise = [] if "--inject-noise" in arguments else ["--inject-noise", "symmetric:0.2"]
    done = inside("finetune", *noise, *out, *arguments)
    assert message in one_line(done)
    assert not (tmp_path / "a").exists()


def test_usage_errors_are_one_line():
    assert "frobnicate" in one_line(inside("frobnicate"))
    assert "--out" in one_line(inside("finetune", "--inject-noise", "0.2"))
    assert "--data" in one_line(inside("predict", "runs/a"))


def test_configuration_file_and_dry_run(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("method: robust\ninject-noise: pair:0.2\nbatch-size: 16\nradius: {head: 1.0}\n")
    done = inside("finetune", "--config", path, "--batch-size", "8", "--dry-run")
    assert done.returncode == 0, done.stderr
    resolved = yaml.safe_load(done.stdout)
    assert (resolved["batch_size"], resolved["inject_noise"], resolved["noise_matrix"]) == (
        8,
        "pair:0.2",
        "true",
    )
    assert resolved["radius"] == {"head": 1.0}
    path.write_text("metod: robust\n")
    assert "did you mean 'method'" in one_line(inside("finetune", "--config", path))
    path.write_text("!!python/object/apply:os.system ['touch owned']\n")
    assert "not valid YAML" in one_line(inside("finetune", "--config", path))
    assert not (tmp_path / "owned").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no signal to another process")
def test_interrupted_is_130_with_the_command_that_resumes(tmp_path):
    import os
    import signal
    import time

    out = tmp_path / "a b"
    command = [sys.executable, "-m", "hesstune", "finetune", "--inject-noise", "0.2", "--train", "head",
               "--method", "robust", "--limit", "60", "--image-size", "32", "--epochs", "100000",
               "--out", str(out)]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"hesstune finetune --out '{out}' --resume" in err
    assert not ht.Run.load(out).finished


def test_photos_with_noisy_labels_through_the_command_line(pacs_photo, tmp_path):
    out = tmp_path / "photo"
    done = hesstune(
        "finetune", "--data", f"folder:{pacs_photo}", "--inject-noise", "symmetric:0.4", "--train", "head",
        "--image-size", "96", "--limit", "400", "--epochs", "15", "--out", out, "--json", "--quiet",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)["result"]
    assert result["test_accuracy"] > 0.7
    assert result["train_accuracy"] < 0.8  # 40 % of the labels are wrong: more would be fitting noise


def test_a_comparison_of_which_every_cell_fails_is_an_error(tmp_path):
    few = ["--methods", "lora", "--seeds", "1", *FAST, "--out", tmp_path / "a", "--json"]
    done = inside("compare", *few)
    assert "every cell failed, the first with: " in one_line(done)
    assert json.loads(done.stdout.splitlines()[-1])["cells"][0]["status"] == "failed"
