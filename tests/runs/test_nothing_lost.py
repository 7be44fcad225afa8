import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.storage.test_full_disk import full_disk

import hesstune as ht
from hesstune.errors import HesstuneError, HesstuneWarning, RunError
from hesstune.runs.checkpoint import Checkpoints
from hesstune.runtime.signals import stoppable
from hesstune.storage.tensors import load_tree, save_tree

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="no fork, no signal to another process")


@pytest.fixture
def every_step(monkeypatch):
    """A checkpoint after every step."""
    monkeypatch.setattr("hesstune.training.trainer.CHECKPOINT_SECONDS", 0)
    return {"checkpoint_minutes": 1e-9}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def same_run(same_weights):
    def compare(one, two):
        same_weights(one, two)
        assert [m | {"seconds": 0} for m in one.metrics] == [m | {"seconds": 0} for m in two.metrics]

    return compare


@pytest.mark.parametrize(
    ("options", "at"),
    [
        ({}, 0.65), ({"method": "elr"}, 0.4), ({"method": "divide_mix", "noise_matrix": None}, 0.65),
        ({"method": "wise_ft"}, 0.4), ({"method": "gradual_unfreezing"}, 0.65),
        ({"method": "co_teaching"}, 0.4), ({"method": "mixup"}, 0.65),
        ({"accumulate": 2, "select": "best"}, 0.4), ({"method": "nso", "optimizer": "sgd"}, 0.65),
    ],
)  # fmt: skip
def test_resumed_within_an_epoch_equals_uninterrupted(
    tiny, tmp_path, every_step, interrupt, same_run, options, at
):
    chosen = {**tiny, **every_step, "batch_size": 3, **options}
    whole = ht.finetune(chosen, out=str(tmp_path / "whole"))
    interrupt(chosen, share=at, out=tmp_path / "parts")
    kept = Checkpoints(tmp_path / "parts")
    assert kept.load()["partial"] is not None
    assert len(kept.files()) == 2
    same_run(whole, ht.finetune(chosen, out=str(tmp_path / "parts"), resume=True))
    assert not kept.files()


DAMAGE = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "header": lambda content: content[:40] + bytes([content[40] ^ 1]) + content[41:],
    "altered": lambda content: content[:-5] + bytes([content[-5] ^ 1]) + content[-4:],
}


def test_a_damaged_checkpoint_is_replaced_by_the_one_before(tiny, tmp_path, every_step, interrupt, same_run):
    chosen = {**tiny, **every_step}
    whole = ht.finetune(chosen, out=str(tmp_path / "whole"))
    interrupt(chosen, share=0.6, out=tmp_path / "a")
    for name, damaged in DAMAGE.items():
        shutil.copytree(tmp_path / "a", tmp_path / name)
        last, before = Checkpoints(tmp_path / name).files()
        last.write_bytes(damaged(last.read_bytes()))
        with pytest.warns(HesstuneWarning, match=f"not a readable checkpoint.*going on from {before.name}"):
            kept = Checkpoints(tmp_path / name).load()
        assert kept is not None
        assert Checkpoints(tmp_path / name).files() == [before]
    same_run(whole, ht.finetune(chosen, out=str(tmp_path / name), resume=True))
    for path in Checkpoints(tmp_path / "a").files():
        path.write_bytes(b"x")
    with pytest.raises(RunError, match="start over with --overwrite"):
        ht.finetune(chosen, out=str(tmp_path / "a"), resume=True)
    assert len(Checkpoints(tmp_path / "a").files()) == 2


def test_any_flipped_bit_of_a_checkpoint_is_found(tmp_path):
    path = tmp_path / "t.safetensors"
    save_tree(path, {"a": torch.arange(3.0), "b": [1, "two", None], "c": torch.tensor([True])})
    content = path.read_bytes()
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << (at % 8)
        path.write_bytes(damaged)
        with pytest.raises(RunError):
            load_tree(path)


def test_resume_refuses_other_data_or_weights_by_name(tiny, tmp_path, every_step, interrupt, image_folder):
    chosen = {**tiny, **every_step}
    interrupt(chosen, share=0.6, out=tmp_path / "a")
    before = contents(tmp_path / "a")

    def refused(named):
        with pytest.raises(RunError, match=named):
            ht.finetune(chosen, out=str(tmp_path / "a"), resume=True)
        assert before == contents(tmp_path / "a")

    path = image_folder / "dark" / "03.png"
    content = path.read_bytes()
    Image.new("RGB", (20, 20), "red").save(path)
    refused(r"contents of 1 of 24 examples changed \(dark/03.png\)")
    path.write_bytes(content)
    for other in ("light", "dark"):
        path.rename(image_folder / other / "03b.png")
        refused(rf"1 of 24 examples missing \(dark/03.png\); 1 new \({other}/03b.png\)")
        (image_folder / other / "03b.png").rename(path)
    source = Path(sys.modules["tinynets"].__file__)
    changed = source.read_text().replace("nn.Linear(8, num_classes)", "Moved(8, num_classes)") + MOVED
    source.write_text(changed)
    del sys.modules["tinynets"]
    refused("the weights that training starts from of --model py:tinynets:small")


MOVED = """

class Moved(nn.Linear):
    def reset_parameters(self):
        super().reset_parameters()
        self.bias.data.add_(1.0)
"""


def test_a_resumed_run_after_its_reference_was_damaged_and_its_data_away(
    tiny, tmp_path, every_step, interrupt, same_run, image_folder
):
    chosen = {**tiny, **every_step}
    whole = ht.finetune(chosen, out=str(tmp_path / "whole"))
    interrupt(chosen, share=0.5, out=tmp_path / "a")
    image_folder.rename(tmp_path / "moved")
    with pytest.raises(HesstuneError, match="does not exist"):
        ht.finetune(chosen, out=str(tmp_path / "a"), resume=True)
    (tmp_path / "moved").rename(image_folder)
    (tmp_path / "a" / "reference.safetensors").write_bytes(b"gone")
    with pytest.warns(HesstuneWarning, match="was damaged"):
        resumed = ht.finetune(chosen, out=str(tmp_path / "a"), resume=True)
    same_run(whole, resumed)
    assert resumed.reference().distances(resumed.model()) == whole.reference().distances(whole.model())
    images = {**chosen, "cache_mib": 0}  # decoded batch by batch: the data goes while it trains

    def remove(done, total, text):
        if image_folder.exists():
            image_folder.rename(tmp_path / "moved")

    with pytest.raises(HesstuneError, match="cannot decode the image"):
        ht.finetune(images, out=str(tmp_path / "b"), progress=remove)
    (tmp_path / "moved").rename(image_folder)
    assert ht.finetune(images, out=str(tmp_path / "b"), resume=True).finished


def test_a_kill_while_a_run_is_moved_aside_or_a_full_disk_loses_nothing(tiny, tmp_path, monkeypatch):
    run = ht.finetune(tiny, out=str(tmp_path / "a"), epochs=1)
    (run.path / "measure.json").write_text("{}")
    before = contents(run.path)
    (run.path / ".replacing").mkdir()
    (run.path / "run.json").rename(run.path / ".replacing" / "run.json")
    (run.path / ".model.safetensors.part").write_bytes(b"half")
    assert ht.finetune(tiny, out=str(run.path), epochs=1, resume=True).finished
    assert before == contents(run.path)

    def full(*_):
        raise RunError("cannot write: No space left on device")

    monkeypatch.setattr(Checkpoints, "save", full)
    with pytest.raises(RunError, match="No space left"):
        ht.finetune(tiny, out=str(run.path), epochs=2, overwrite=True)
    assert before == contents(run.path)


def test_signals_wait_for_the_step_and_go_on_to_the_handler_before():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("mine"))
    try:
        with stoppable() as stop:
            assert not stop
            signal.raise_signal(signal.SIGTERM)
            assert stop
            assert seen == []
            with pytest.raises(KeyboardInterrupt):
                stop.deliver()
        assert seen == ["mine"]
        with stoppable():
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):  # the second does not wait
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)
    with ThreadPoolExecutor(1) as pool:  # in a thread there is nothing to wait for
        assert pool.submit(stoppable().__enter__).result() is not None


@posix_only
@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_ctrl_c_and_sigterm_write_a_checkpoint_and_say_how_to_go_on(tmp_path, number):
    out = tmp_path / "a b"
    command = [sys.executable, "-m", "hesstune", "finetune", "--data", "digits", "--inject-noise", "0.2",
               "--train", "head", "--method", "robust", "--limit", "60", "--image-size", "32",
               "--epochs", "100000", "--out", str(out)]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert len(err.strip().splitlines()) == 1
    assert f"continue with: hesstune finetune --out '{out}' --resume" in err
    tree = Checkpoints(out).load()
    done = len(tree["metrics"])
    # The step ends, and nothing after it is lost: metrics.jsonl has what the checkpoint has.
    assert done == len(ht.Run.load(out).metrics)
    assert done >= 1


def printed_by(script, *arguments):
    """Run a script of this folder, and return what it prints."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@posix_only
@pytest.mark.parametrize(("count", "seed"), [(8, 0), pytest.param(100, 1, marks=pytest.mark.slow)])
def test_kill_9_at_random_moments_loses_nothing(count, seed):
    found = printed_by("kills.py", count, seed)
    assert found["kills"] >= count
    assert found["runs"] == found["identical"] == found["epochs_once"] > 0
    assert count < 100 or found["before_first_checkpoint"] > 0


@posix_only
@pytest.mark.slow
def test_clean_and_check_are_killed_before_each_of_their_file_operations():
    found = printed_by("killed_commands.py")
    assert set(found) == {"clean", "clean over former files", "check"}
    for command in found.values():
        assert command["wrong"] == []
        assert command["operations"] >= 4


@posix_only
def test_a_disk_that_fills_up_is_one_clear_line_and_the_run_resumes(tiny, tmp_path, every_step):
    chosen = {**tiny, **every_step, "out": str(tmp_path / "a")}
    with contextlib.ExitStack() as stack:

        def fill(done, total, text):
            if done == 6:
                stack.enter_context(full_disk())

        with pytest.raises(RunError, match="cannot write"):
            ht.finetune(chosen, progress=fill)
    assert Checkpoints(tmp_path / "a").load() is not None
    assert [m["epoch"] for m in ht.finetune(chosen, resume=True).metrics] == [1, 2, 3, 4]
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write to --out"):
        ht.finetune(tiny, out=str(tmp_path / "file" / "below"))


def test_two_processes_cannot_write_one_folder(tiny, tmp_path, monkeypatch):
    """Held by another process, the folder is refused; once that process is killed, it is free."""
    out = tmp_path / "a"
    code = (
        "import sys, time, pathlib\nfrom hesstune.runs.folder import locked\n"
        f"out = pathlib.Path({str(out)!r}); out.mkdir()\n"
        "with locked(out):\n    print('held', flush=True)\n    time.sleep(600)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline().strip() == "held"
    try:
        with pytest.raises(RunError, match="another process is writing"):
            ht.finetune(tiny, out=str(out), epochs=1)
    finally:
        holder.kill()
        holder.wait()
    assert ht.finetune(tiny, out=str(out), epochs=1).finished
    with (out / "labels.csv").open() as file:
        assert len(list(csv.reader(file))) == 25
