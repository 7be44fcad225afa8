"""Kill a fine-tune again and again, at random moments, and see that nothing is lost.

`python tests/runs/kills.py KILLS SEED` prints what happened; the tests run it. Each
attempt is a fork of this process, so that it starts at once, and writes a checkpoint after every step.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator  # noqa: F401 - imported before the forks
from PIL import Image

import hesstune as ht
from hesstune.training import trainer

NET = """
from torch import nn

def small(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout2d(0.1),
        nn.Conv2d(6, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
    )
"""


def options(folder, method):
    """A run of 24 steps, with dropout and augmentation, and a checkpoint after each."""
    return {
        "model": "py:kills_net:small", "data": f"folder:{folder / 'images'}", "inject_noise": "symmetric:0.2",
        "image_size": 16, "epochs": 6, "batch_size": 4, "lr": 1e-2, "head_init": "keep", "method": method,
        "checkpoint_minutes": 1e-9,
    }  # fmt: skip


def prepare(folder):
    """Write the images and the network."""
    draw = random.Random(0)
    for name, level in (("dark", 40), ("light", 200)):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(12):
            image = Image.new("RGB", (20, 20), tuple(level + draw.randrange(-20, 20) for _ in range(3)))
            image.save(folder / "images" / name / f"{i:02d}.png")
    (folder / "kills_net.py").write_text(NET)
    sys.path.insert(0, str(folder))


def attempt(chosen, out, delay):
    """Run in a child; kill it after `delay` seconds. Return whether it was killed before it ended.

    A run whose folder is not there yet is killed as soon as it is: before its first checkpoint.
    """
    new, child = not out.exists(), os.fork()
    if not child:
        try:
            ht.finetune(chosen, out=str(out), resume=True)
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            os._exit(1)
        os._exit(0)
    deadline, done, status = time.monotonic() + delay, 0, 0
    while not done and (not out.exists() if new else time.monotonic() < deadline):
        time.sleep(0.002)
        done, status = os.waitpid(child, os.WNOHANG)
    if not done:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        raise SystemExit(f"an attempt failed with status {status}")
    return os.WIFSIGNALED(status)


def outcome(run):
    """Return the bytes of a run's weights, and its metrics without times."""
    metrics = [{k: v for k, v in m.items() if k != "seconds"} for m in run.metrics]
    return (run.path / "model.safetensors").read_bytes(), metrics


def main(kills, seed):
    """Kill so many times; return what happened."""
    torch.set_num_threads(1)
    trainer.CHECKPOINT_SECONDS = 0.0
    draw, whole, seconds = random.Random(seed), {}, {}
    found = {"kills": 0, "runs": 0, "before_first_checkpoint": 0, "identical": 0, "epochs_once": 0}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for method in ("robust", "elr"):
            started = time.monotonic()
            whole[method] = outcome(ht.finetune(options(folder, method), out=str(folder / method)))
            seconds[method] = time.monotonic() - started
        while found["kills"] < kills:
            method, out = ("robust", "elr")[found["runs"] % 2], folder / f"run{found['runs']}"
            limit = 0.6 * seconds[method]
            while attempt(options(folder, method), out, draw.uniform(0.0, limit)):
                found["kills"] += 1
                limit *= 1.1  # on a slow machine a run gets far enough to end, too
                found["before_first_checkpoint"] += not list(out.glob("checkpoint-*"))
            run = ht.Run.load(out)
            found["runs"] += 1
            found["identical"] += outcome(run) == whole[method]
            found["epochs_once"] += [m["epoch"] for m in run.metrics] == list(range(1, len(run.metrics) + 1))
    return found


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]))))
