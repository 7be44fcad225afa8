"""Kill `hesstune clean` and `hesstune check` before each of their file operations.

`python tests/runs/killed_commands.py` prints what happened; a test runs it. Each attempt is a fork of this
process. After a kill every file is as before or as a whole command leaves it, and the same command succeeds,
with the same files as one that was not killed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
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


def attempt(arguments, folder, moment=None):
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
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"{arguments[0]} failed with status {os.WEXITSTATUS(status)}")
    return os.WIFSIGNALED(status)


def clean_of(folder):
    """Return the arguments of `clean` that write to a folder."""
    data, out, page = folder.parent / "images", folder / "labels.csv", folder / "page.html"
    return ["clean", "--data", f"folder:{data}", "--model", MODEL["model"], "--image-size", "16",
            "--out", str(out), "--page", str(page), "--overwrite"]  # fmt: skip


def check_of(folder):
    """Return the arguments of `check` for a run."""
    return ["check", str(folder), "--sample", "5"]


def started(folder, before):
    shutil.rmtree(folder, ignore_errors=True)
    if before.is_dir():
        shutil.copytree(before, folder)
    return folder


def killed(arguments, before, whole, moment):
    """Kill a command and run it again; return whether it was killed, and what is wrong with the files."""
    folder = started(whole.with_name("killed"), before)
    then, wanted = contents(before), contents(whole)
    stopped = attempt(arguments(folder), folder, moment)
    now = contents(folder)
    wrong = [
        f"before operation {moment}: {name} is neither as before nor whole"
        for name in {*then, *wanted, *now}
        if now.get(name) not in (then.get(name), wanted.get(name))
    ]
    if not (folder / TO_CHECK).exists():
        attempt(arguments(folder), folder)
    elif sheets(folder) != sheets(whole):  # it may be filled in, so another one is refused
        wrong.append(f"before operation {moment}: a sheet without its entry in the log")
    after = contents(folder)
    if GUARANTEES in after:  # the same draw may be logged twice; it counts once
        after[GUARANTEES] = wanted[GUARANTEES] if sheets(folder) == sheets(whole) else b""
    if after != wanted or any(p.name.endswith(".part") for p in folder.iterdir()):
        wrong.append(f"before operation {moment}: the second command left other files")
    return stopped, wrong


def main():
    """Kill both commands; return how many operations there are, and what was wrong."""
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        prepare(root)
        options = {"data": f"folder:{root / 'images'}", "method": "vanilla", "train": "head", "epochs": 1}
        run = ht.finetune({**MODEL, **options}, test_fraction=0.5, out=str(root / "run"))
        (former := root / "former").mkdir()
        for file in ("labels.csv", "page.html"):
            (former / file).write_text("of another day\n" * 1000)
        for command, arguments, before in (
            ("clean", clean_of, root / "new"),
            ("clean over former files", clean_of, former),
            ("check", check_of, run.path),
        ):
            # The same path, which rows of the table may be relative to.
            whole = started(root / "killed", before)
            attempt(arguments(whole), whole)
            whole = whole.rename(root / f"whole {command}")
            wrong, moments, stopped = [], 0, True
            while stopped:
                stopped, messages = killed(arguments, before, whole, moments)
                wrong, moments = wrong + messages, moments + stopped
            found[command] = {"operations": moments, "wrong": wrong}
    return found


if __name__ == "__main__":
    print(json.dumps(main()))
