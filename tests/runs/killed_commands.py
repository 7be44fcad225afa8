"""Kill `hesstune clean` and `hesstune check` before each of their file operations, and at random moments.

`python tests/runs/killed_commands.py --random 20` prints what happened; the tests run it. Each attempt is a
fork of this process. After a kill every file is as before or as a whole command leaves it, and the same
command succeeds, with the same files as one that was not killed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from kills import prepare

import hesstune as ht
from hesstune.cli.main import run as command_line
from hesstune.runs.guarantee_log import sheets
from hesstune.runs.records import GUARANTEES, TO_CHECK

MODEL = {"model": "py:kills_net:small", "image_size": 16}
OPERATIONS = {"os.rename", "os.remove", "os.truncate", "os.mkdir"}
WRITING = os.O_WRONLY | os.O_RDWR


def contents(folder):
    """Return the bytes of every file, apart from those that are being written."""
    every = folder.rglob("*") if folder.is_dir() else []
    return {p.name: p.read_bytes() for p in every if p.is_file() and not p.name.startswith(".")}


def kill_before(moment, folder):
    """Kill this process before its file operation of a number, below a folder; syncs of files count."""
    count = 0

    def operation():
        nonlocal count
        if count == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    def hook(event, values):
        opened = event == "open" and isinstance(values[2], int) and values[2] & WRITING
        if (opened or event in OPERATIONS) and str(values[0]).startswith(str(folder)):
            operation()

    sync = os.fsync
    os.fsync = lambda file: (operation(), sync(file))
    sys.addaudithook(hook)


def attempt(arguments, folder, moment=None, delay=None):
    """Run a command in a child, and kill it; return whether it was killed before it ended."""
    child = os.fork()
    if not child:
        if moment is not None:
            kill_before(moment, folder)
        try:
            command_line([*arguments, "--quiet"])
        except SystemExit as error:
            os._exit(error.code or 0)
        os._exit(0)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"{arguments[0]} failed with status {os.WEXITSTATUS(status)}")
    return os.WIFSIGNALED(status)


def clean_of(folder):
    """Return the arguments of `clean` that write to a folder."""
    data, out, page = folder.parent / "images", folder / "labels.csv", folder / "page.html"
    given = {"--data": f"folder:{data}", "--model": MODEL["model"], "--image-size": "16"}
    given |= {"--out": str(out), "--page": str(page)}
    return ["clean", *(text for pair in given.items() for text in pair), "--overwrite"]


def check_of(folder):
    """Return the arguments of `check` for a run."""
    return ["check", str(folder), "--sample", "5"]


def killed(arguments, before, whole, **when):
    """Kill a command and run it again; return whether it was killed, and what is wrong with the files."""
    folder = before.with_name("killed")
    shutil.rmtree(folder, ignore_errors=True)
    if before.is_dir():
        shutil.copytree(before, folder)
    then, wanted = contents(before), contents(whole)
    stopped = attempt(arguments(folder), folder, **when)
    now, wrong = contents(folder), []
    for name in {*then, *wanted, *now}:
        if now.get(name) not in (then.get(name), wanted.get(name)):
            wrong.append(f"{name} is neither as before nor whole")
    if (folder / TO_CHECK).exists():  # it may be filled in, so another one is refused
        if sheets(folder) != sheets(whole):
            wrong.append("a sheet without its entry in the log")
    else:
        attempt(arguments(folder), folder)
    after = contents(folder)
    if GUARANTEES in after:  # the same draw may be logged twice; it counts once
        after[GUARANTEES] = wanted[GUARANTEES] if sheets(folder) == sheets(whole) else b""
    if after != wanted:
        wrong.append("the second command left other files")
    if left := [p.name for p in folder.iterdir() if p.name.endswith(".part")]:
        wrong.append(f"{left[0]} is left")
    return stopped, wrong


def main(count, seed):
    """Kill both commands; return how often, and what was wrong."""
    torch.set_num_threads(1)
    draw, found = random.Random(seed), {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        prepare(root)
        options = {"data": f"folder:{root / 'images'}", "method": "vanilla", "train": "head", "epochs": 1}
        run = ht.finetune({**MODEL, **options}, test_fraction=0.5, out=str(root / "run"))
        former = root / "former"
        former.mkdir()
        for file in ("labels.csv", "page.html"):
            (former / file).write_text("of another day\n" * 1000)
        for command, arguments, before in (
            ("clean", clean_of, root / "new"),
            ("clean over former files", clean_of, former),
            ("check", check_of, run.path),
        ):
            whole = root / "killed"  # the same path, which rows of the table may be relative to
            shutil.rmtree(whole, ignore_errors=True)
            if before.is_dir():
                shutil.copytree(before, whole)
            started = time.monotonic()
            attempt(arguments(whole), whole)
            seconds = time.monotonic() - started
            whole = whole.rename(root / f"whole {command}")
            wrong, moments = [], 0
            while True:
                stopped, messages = killed(arguments, before, whole, moment=moments)
                wrong += [f"before operation {moments}: {text}" for text in messages]
                if not stopped:
                    break
                moments += 1
            kills = 0
            for _ in range(count):
                stopped, messages = killed(arguments, before, whole, delay=draw.uniform(0, seconds))
                kills, wrong = kills + stopped, wrong + messages
            found[command] = {"operations": moments, "random": kills, "wrong": wrong}
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--random", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(json.dumps(main(given.random, given.seed)))
