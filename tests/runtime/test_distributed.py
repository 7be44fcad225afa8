"""Two processes on the CPU do what one does."""

import contextlib
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

import hesstune as ht
from commands import inside
from hesstune.curvature.declared import FORECAST
from hesstune.runtime.distributed import all_reduce_sum, on_main_process, rank, world

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="several processes are started as Linux does")

NET = """
from torch import nn

def small(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
    )

def dropped(num_classes):
    return nn.Sequential(nn.Dropout(0.5), *small(num_classes))

class Stemmed(nn.Module):
    "Layers outside every list and sequence, as most backbones have."

    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2)
        self.blocks = nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x).relu()).mean((2, 3)))
"""


def torchrun(*words, cwd, count=2, program=("-m", "hesstune")):
    """Run the command line, or another program, in so many processes, one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), "--master-port",
               "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", *program]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *map(str, words)], cwd=cwd, capture_output=True, text=True, env=environment, timeout=300,
        check=False,
    )  # fmt: skip


@pytest.fixture
def words(tmp_path, image_folder):
    """The words of a fine-tune; batches of 5 leave one example for two ranks at the end of an epoch."""
    (tmp_path / "ranknets.py").write_text(NET)
    return ["--data", f"folder:{image_folder}", "--inject-noise", "symmetric:0.2", "--image-size", "16",
            "--epochs", "2", "--batch-size", "5", "--lr", "0.01", "--head-init", "keep",
            "--limit", "11"]  # fmt: skip


def command_line(*words, cwd, count):
    """Run the command line in one process or in several, and return its output."""
    if count == 1:
        with contextlib.chdir(cwd):
            return inside(*words)
    done = torchrun(*words, cwd=cwd, count=count)
    assert done.returncode == 0, done.stderr
    return done


def finetuned(words, cwd, name, count, *more):
    out = cwd / name
    command = ["finetune", "--model", "py:ranknets:small", *words, *more, "--out", out, "--json"]
    done = command_line(*command, cwd=cwd, count=count)
    assert json.loads(done.stdout.splitlines()[-1])["path"] == str(out)
    assert done.stdout.count('"path"') == 1  # one process speaks
    return ht.Run.load(out)


METHODS = ["elr --accumulate 2", "l2_sp --mixed-precision bf16", "co_teaching", "sam", "gradual_unfreezing",
           "mixup --optimizer sgd", "certified"]  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [[], *(["--method", *words.split()] for words in METHODS)],
)
@pytest.mark.slow
def test_two_processes_train_and_measure_as_one(words, tmp_path, monkeypatch, more):
    monkeypatch.chdir(tmp_path)
    one, two = (finetuned(words, tmp_path, name, n, *more) for name, n in (("one", 1), ("two", 2)))
    assert {p.name for p in one.path.iterdir()} == {p.name for p in two.path.iterdir()}
    assert one.labels() == two.labels()
    rtol, atol = (5e-2, 5e-3) if "bf16" in more else (1e-4, 1e-5)
    mine, theirs = one.model().state_dict(), two.model().state_dict()
    for name in one.reference().names():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(theirs[name], mine[name], rtol=rtol, atol=atol)
    for mine, theirs in zip(one.metrics, two.metrics, strict=True):
        for key in set(mine) - {"seconds"}:
            assert theirs[key] == pytest.approx(mine[key], rel=max(rtol, 1e-3), abs=max(atol, 1e-4)), key
    same(two.result.get("posterior"), one.result.get("posterior"))
    if more:
        return
    # The same run folder measured by one and by two.
    found, records = [], []
    for count in (1, 2):
        done = command_line("measure", "one", "--stability", "--json", "--quiet", cwd=tmp_path, count=count)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        records.append(json.loads((one.path / "measure.json").read_text()))
    # Each has its share of the examples, so their memory is another.
    notes = [[n for n in r.pop("notes") if not n.startswith(FORECAST)] for r in records]
    assert notes[1] == notes[0]
    assert records[1] == records[0]
    for key in ("layers", "measure", "losses", "examples"):
        same(found[1][key], found[0][key])
    same(found[1]["noise_stability"], found[0]["noise_stability"])


CURVE = """
from hesstune.cli.main import run
from hesstune.training import trainer

trainer.MEASURE_SHARE = 1000.0  # few examples leave few passes
run()
"""


@pytest.mark.slow
def test_two_processes_measure_the_epochs_as_one(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "curve.py").write_text(CURVE)
    curves = []
    for count in (1, 2):
        out = tmp_path / f"by{count}"
        command = ["finetune", "--model", "py:ranknets:small", "--method", "vanilla", *words]
        done = torchrun(
            *command, "--measure-every", "1", "--out", out, cwd=tmp_path, count=count, program=["curve.py"]
        )
        assert done.returncode == 0, done.stderr
        curves.append([m["measure"] for m in ht.Run.load(out).metrics])
    assert len(curves[0]) == 2
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)


SHARED = """
import sys
import torch
import hesstune as ht
from hesstune.runtime.distributed import start_ranks, world

start_ranks()
torch.manual_seed(0)
x = torch.randn(45, 6)
data = torch.utils.data.TensorDataset(x, (x.sum(1) > 0).long())
held_out = torch.utils.data.TensorDataset(x + 0.1, (x.sum(1) > 0).long())
for train, blocks in (("all", 4), ("head", 4), ("all", 64), ("head", 64)):
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    ref = ht.Reference.of(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(train == "all" or name.startswith("2."))
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    seen = []
    handle = model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    options = dict(draws=24, block_size=blocks, held_out=held_out)
    alone = ht.certify(model, ref, data, **options)
    counted, seen[:] = sum(seen), []
    shared = ht.certify(model, ref, data, **options, distributed=True)
    assert shared == alone, (train, blocks)
    if blocks == 4:
        assert sum(seen) < 0.7 * counted, "the examples are not shared"
print(f"same {world()}", flush=True)
"""


def test_a_certificate_of_two_processes_is_that_of_one_bit_for_bit(tmp_path):
    (tmp_path / "shared.py").write_text(SHARED)
    done = torchrun(cwd=tmp_path, program=["shared.py"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("same 2") == 2


def certified(run, count, *more):
    """Certify a run on so many processes, and return the certificate."""
    command = ["certify", run.path.name, *more, "--draws", "64", "--json", "--quiet"]
    command += ["--vouch", "normalisation"]
    done = command_line(*command, cwd=run.path.parent, count=count)
    assert done.stdout.count('"path"') == 1
    return json.loads((run.path / "certificate.json").read_text())


@pytest.mark.slow
def test_two_processes_certify_a_run_as_one(words, tmp_path):
    runs = [finetuned([*words, "--val-fraction", "0"], tmp_path, f"run{n}", 1) for n in (1, 2)]
    assert certified(runs[0], 1) == certified(runs[1], 2)


@pytest.mark.slow
def test_two_processes_train_a_prior_and_a_posterior_as_one(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [*words, "--val-fraction", "0"]
    one, two = (finetuned(words, tmp_path, f"run{n}", 1) for n in (1, 2))
    more = ("--prior-fraction", "0.2")
    alone, _ = certified(one, 1, *more), certified(two, 2, *more)
    assert_same_weights(two.path / "prior", one.path / "prior")
    # The head's descent on its bound magnifies the last digits of the prior on so few examples, in one
    # process, too; from the same prior all is the same.
    for name in ("prior", "posterior"):
        shutil.rmtree(two.path / name)
    shutil.copytree(one.path / "prior", two.path / "prior")
    shared = certified(two, 2, *more)
    assert_same_weights(two.path / "posterior", one.path / "posterior")
    assert shared.keys() == alone.keys()
    for key in alone:
        same(shared[key], alone[key], rel=1e-3)


def assert_same_weights(mine, others):
    weights, wanted = (ht.Run.load(path).model().state_dict() for path in (mine, others))
    for key, tensor in wanted.items():
        torch.testing.assert_close(weights[key], tensor, rtol=1e-4, atol=1e-5)


def same(one, two, rel=1e-5):
    """Assert that JSON values are equal, numbers with a fraction to rounding."""
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        one, two = ([own[key] for key in sorted(own)] for own in (one, two))
    if isinstance(one, list):
        for a, b in zip(one, two, strict=True):
            same(a, b, rel)
    elif isinstance(one, float):
        assert one == pytest.approx(two, rel=rel, abs=max(1e-9, 0.01 * rel))
    else:
        assert one == two


def test_wrong_input_is_one_line_in_two_processes(words, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("text")
    done = torchrun(
        "finetune", "--model", "py:ranknets:small", *words, "--out", tmp_path / "out", cwd=tmp_path
    )
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("hesstune:")]
    assert len(said) == 1
    assert "not empty" in said[0]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"thesis.tex"}


def test_one_process_needs_no_others():
    assert (world(), rank()) == (1, 0)
    assert on_main_process(lambda: 3) == 3
    assert torch.equal(all_reduce_sum(torch.ones(2)), torch.ones(2))
