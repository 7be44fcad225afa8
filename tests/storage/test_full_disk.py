"""On a full disk nothing is half written: one line says so, and the former files are still there."""

import contextlib
import errno
import os
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import hesstune as ht
from hesstune.analysis.certify import check_run
from hesstune.analysis.export import export_run
from hesstune.analysis.measure import stability_of_run
from hesstune.errors import HesstuneError
from hesstune.runs.integrity import DataRecord
from hesstune.runs.records import CERTIFICATE, DATA
from hesstune.storage.files import replace_files, text_writer, write_text

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")


@contextlib.contextmanager
def full_disk():
    """Let no file grow, as on a full disk, and restore the limit."""
    import resource
    import signal

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    sys.stdout.flush()
    sys.stderr.flush()
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, former)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )


def images():
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    return np.clip(rng.normal(60 + 120 * labels[:, None, None, None], 20, (40, 12, 12, 3)), 0, 255).astype(
        np.uint8
    ), labels


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with all that commands write about it."""
    out = tmp_path_factory.mktemp("runs") / "run"
    found = ht.finetune(images(), network(), "vanilla", epochs=1, image_size=12, out=str(out))
    found.measure()
    found.certify(draws=4)
    found.report()
    found.noise()
    return found


def again(run):
    """Return the run, read anew, with its objects."""
    return ht.Run.load(run.path, data=images(), model=network())


def issues():
    rng, y = np.random.default_rng(0), np.arange(80) % 2
    return ht.clean(features=np.eye(2)[y] + 0.1 * rng.normal(size=(80, 2)), labels=y)


def labelled(folder):
    rows = [f"{at},{'yes' if at % 2 else 'no'},{'yes' if at % 3 else 'no'},yes" for at in range(40)]
    (folder / "votes.csv").write_text("\n".join(["id,vote_a,vote_b,vote_c", *rows]) + "\n")
    return ht.label_data(votes=str(folder / "votes.csv"))


SAVES = {
    "Measure": lambda run, at: partial(ht.Measure.load(run.path).save, at, n=3, part="val"),
    "Certificate": lambda run, at: partial(run.records.certificate.save, at / CERTIFICATE),
    "Reference": lambda run, at: partial(run.reference().save, at / "reference.safetensors"),
    "NoiseMatrix": lambda run, at: partial(ht.NoiseMatrix.symmetric(2, 0.1).save, at / "f.json", ["a", "b"]),
    "LabelIssues": lambda run, at: partial(issues().save, at / "issues.csv", overwrite=True),
    "Labelling": lambda run, at: partial(labelled(at).save, at / "labels.csv", overwrite=True),
    "DataRecord": lambda run, at: partial(DataRecord.load(run.path / DATA).save, at / DATA),
    "Predictions": lambda run, at: partial(
        again(run).predict(images()[0]).save, at / "p.csv", overwrite=True
    ),
    "write_text": lambda run, at: partial(write_text, at / "t.txt", "text"),
    "export_run": lambda run, at: partial(export_run, run, at / "export", overwrite=True),
}


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused_on_a_full_disk(save, folder):
    before = files(folder)
    assert before
    with full_disk(), pytest.raises(HesstuneError) as error:
        save()
    assert len(str(error.value).splitlines()) == 1
    assert str(folder) in str(error.value)
    assert files(folder) == before


@pytest.mark.parametrize("made", SAVES.values(), ids=SAVES)
def test_saving_on_a_full_disk_keeps_the_former_file(made, run, tmp_path):
    save = made(run, tmp_path)
    save()
    refused_on_a_full_disk(save, tmp_path)


COMMANDS = {
    "measure": lambda run: run.measure(part="train"),
    "stability": lambda run: stability_of_run(run, sigmas=(0.01,), samples=2),
    "certify": lambda run: run.certify(draws=4),
    "check": lambda run: check_run(run, sample=2),
    "noise": lambda run: run.noise(),
    "report": lambda run: run.report(),
    "write_metrics": lambda run: run.write_metrics(run.records.epochs),
    "finetune": lambda run: ht.finetune(
        images(), network(), "vanilla", epochs=1, image_size=12, out=str(run.path), overwrite=True
    ),
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_commands_on_a_full_disk_keep_the_records(command, run):
    refused_on_a_full_disk(lambda: command(again(run)), run.path)


def test_a_folder_that_cannot_be_made_is_an_error(run, tmp_path):
    (tmp_path / "file").write_text("x")
    below = tmp_path / "file" / "below"
    predicted = again(run).predict(images()[0])
    for save in (
        lambda: ht.Measure.load(run.path).save(below),
        lambda: predicted.save(below / "p.csv"),
        lambda: export_run(run, below / "export"),
    ):
        with pytest.raises(HesstuneError, match="cannot write"):
            save()


def test_of_several_files_none_is_replaced_if_one_fails(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("former")

    def fails(part):
        part.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(HesstuneError, match=f"{two}: No space left"):
        replace_files({one: text_writer("new"), two: fails})
    assert files(tmp_path) == {one.relative_to(tmp_path): b"former"}


@pytest.mark.parametrize("renames", [0, 1])
def test_a_kill_while_a_measurement_is_written_is_found_out(run, monkeypatch, tmp_path, renames):
    """After a kill before or between the renames no part is guessed, and no other rows are read."""
    shutil.copytree(run.path, tmp_path / "run")
    copied = ht.Run.load(tmp_path / "run", data=images(), model=network())
    former = copied.records.measure.part
    original, done = Path.replace, []

    def replace(self, target):
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(target)
        return original(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        copied.measure(part="train" if former == "val" else "val", max_examples=5)
    monkeypatch.undo()
    assert copied.records.measure.part == former
    if renames:
        with pytest.raises(HesstuneError, match="another measurement"):
            _ = copied.records.quadratic
    else:
        assert copied.records.quadratic is not None


def test_a_measurement_of_no_run_is_none_of_the_training_part(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    ht.Measure.load(run.path).save(tmp_path / "run")
    with pytest.raises(HesstuneError, match=r"measure\.json cannot be read .*part"):
        _ = ht.Run.load(tmp_path / "run").records.measure


def test_an_export_by_transformers_is_an_error_of_one_line(tiny_bert, tmp_path):
    """Its writers raise errors of their own kinds."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from hesstune.models.load import LoadedModel, export_model

    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    loaded = LoadedModel(model, "classifier", (0.0,) * 3, (1.0,) * 3, tokenizer)
    save = partial(export_model, loaded, tmp_path, {"model": "hf:x", "classes": ["a", "b"], "image_size": 8})
    save()
    with full_disk(), pytest.raises(HesstuneError) as error:
        save()
    assert len(str(error.value).splitlines()) == 1
