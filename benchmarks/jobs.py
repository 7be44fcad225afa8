"""Time and memory of the commands of README.md, each in a process of its own, on the tutorials' data."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from records import ROOT, Run

COMMANDS = {
    "clean": "clean --data {data} --out clean.csv",
    "finetune --train head": "finetune --data {data} --model {model} --train head --out run",
    "finetune": "finetune --data {data} --model {model} {lr} --epochs {epochs} --out run",
}
DATA = {
    "images": {"data": "folder:photos", "model": "efficientnet_lite0", "lr": ""},
    "texts": {"data": "csv:answers.csv", "model": "minilm", "lr": "--lr 5e-5"},
}
MAKE = {"images": "images.py photos", "texts": "texts.py answers"}


def cases(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the data and the commands."""
    yield from ({"data": kind, "command": command} for kind in DATA for command in COMMANDS)


def measure(case: dict[str, Any], run: Run) -> dict[str, Any]:
    """Run a command; return its seconds, processor seconds and peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        script, name = MAKE[case["data"]].split()
        made = [sys.executable, str(ROOT / "examples" / "data" / script), name]
        subprocess.run(made, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        words = COMMANDS[case["command"]].format(**DATA[case["data"]], **run.settings).split()
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "hesstune", *words, "--quiet"], cwd=folder, stdout=subprocess.DEVNULL
        )
        _, status, used = os.wait4(process.pid, 0)
        if status:
            raise RuntimeError(f"{words} failed")
        examples = len(list(Path(folder).glob("photos/train/*/*"))) or 900
    return {
        "examples": examples,
        "wall_seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_mib": round(used.ru_maxrss / 1024),
        "epochs": run.settings["epochs"],
    }
