"""The demo: counts beside the truth, its folder, its lines of progress, and interruption."""

import json
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import hesstune as ht
from commands import inside
from hesstune.cli import render
from hesstune.errors import RunError
from hesstune.study import demo

SMALL = {"limit": 200, "epochs": 1, "image_size": 32, "train": "head", "inject_noise": "symmetric:0.3"}


@pytest.fixture
def small(monkeypatch):
    plan = demo.Plan({**demo.SHORT.setting, **SMALL}, demo.SHORT.runs)
    monkeypatch.setattr(demo, "SHORT", plan)
    return plan


def test_the_demo_prints_what_its_runs_hold_beside_an_earlier_one(small, tmp_path):
    write_run(tmp_path / "demo")
    done = inside("demo", "--out", tmp_path / "demo", "--json")
    out, err = done.stdout, done.stderr
    record = json.loads(out.splitlines()[-1])
    assert record["path"] == str(tmp_path / "demo-2")
    assert {"find label errors", "fine-tune: auto"} <= set(re.findall(r"s: ([^,\n]*)", err))
    (found,) = record["label_errors"]
    assert 0 < found["right"] <= min(found["suspected"], found["wrong"])
    for row in record["runs"]:
        run = ht.Run.load(row["path"])
        assert run.result["test_accuracy"] == row["test_accuracy"]
        assert f"{100 * row['test_accuracy']:.1f} %" in out
        labels, true = run.task().train.labels, run.task().train.true
        assert found["wrong"] == np.count_nonzero(labels != true)
    assert [row["name"] for row in record["runs"]] == ["plain, stopped", "auto"]


def test_quiet_prints_the_json_alone(small, tmp_path, monkeypatch):
    auto = {"auto": small.runs["auto"]}
    monkeypatch.setattr(demo, "SHORT", demo.Plan({**small.setting, "limit": 60}, auto))
    done = inside("demo", "--out", tmp_path / "demo", "--json", "--quiet")
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def fail(out, error, inside):
    with demo.demo_folder(out) as folder:
        inside(folder)
        raise error


def write_run(folder):
    (folder / "auto").mkdir(parents=True)
    (folder / "auto" / "run.json").write_text("{}")


@pytest.mark.parametrize("error", [KeyboardInterrupt, RunError, OSError])
def test_a_demo_that_fails_leaves_nothing_behind(tmp_path, error):
    with pytest.raises(error):
        fail(tmp_path / "runs" / "of" / "demo", error, write_run)
    assert list(tmp_path.iterdir()) == []


def test_a_demo_that_fails_keeps_what_others_wrote(tmp_path):
    runs = tmp_path / "runs"
    for name in ("demo", "other"):  # the second is there already
        with pytest.raises(OSError, match="x"):
            fail(runs / name, OSError("x"), lambda folder: (runs / "other").mkdir(exist_ok=True))
        assert [path.name for path in runs.iterdir()] == ["other"]


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file"), demo.demo_folder(tmp_path / "file" / "demo"):
        pass


def test_lines_of_progress_come_without_any_step(monkeypatch, capsys):
    monkeypatch.setattr(render, "LINE_SECONDS", 0.01)
    with render.progress_lines(quiet=False) as progress:
        update = progress("train")
        update(3, 7, "epoch 1")
        deadline = time.monotonic() + 20
        text = ""
        while text.count("train, step 3 of 7, epoch 1") < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
            text += capsys.readouterr().err
    assert text.count("train, step 3 of 7, epoch 1") >= 3
    assert not [t for t in threading.enumerate() if t.daemon and "write_regularly" in t.name]


def test_an_interrupted_demo_leaves_nothing_behind(tmp_path):
    code = (
        "from hesstune.cli import render; render.LINE_SECONDS = 0.1\n"
        f"from hesstune.study import demo; small = {{**demo.SHORT.setting, **{SMALL}, 'epochs': 9999}}\n"
        "demo.SHORT = demo.Plan(small, demo.SHORT.runs)\n"
        "from hesstune.cli.main import run; run(['demo'])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stderr:  # in the middle of training
            if "fine-tune" in line and "step" in line:
                process.send_signal(signal.SIGTERM)
                break
        rest = process.communicate(timeout=120)[1]
    assert process.returncode == 130
    assert "interrupted" in rest.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
