"""Time and memory to read a million votes, one a row, as JSON Lines and as CSV.

Each reading is a process of its own, from the file to `Votes`; the time leaves out the import of hesstune.
The memory is the peak of the process above its size before it reads (Linux).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from label_scale import CLASSES, write_long

READ = f"""
import json, sys, time
from pathlib import Path
from hesstune.labeling.options import LabelOptions
from hesstune.labeling.sources import combined, read_sources

def peak():
    # The peak of this process alone: ru_maxrss begins at that of the process that started it.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024

before, started = peak(), time.perf_counter()
target, sources, _ = read_sources(LabelOptions(votes=sys.argv[1]))
votes, _ = combined(sources, {CLASSES!r}, target)
seconds = time.perf_counter() - started
print(json.dumps({{"seconds": seconds, "mib": peak() - before, "votes": len(votes.vote)}}))
"""


def measure(case: dict[str, Any], run: Any) -> dict[str, Any]:
    """Read both files several times, in turn; return the medians and their ratios."""
    found: dict[str, list[dict[str, float]]] = {"csv": [], "jsonl": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_long(folder / "votes.csv", run.settings["rows"])
        pd.read_csv(folder / "votes.csv").to_json(folder / "votes.jsonl", orient="records", lines=True)
        for _ in range(run.settings["repeats"]):
            for kind, own in found.items():
                command = [sys.executable, "-c", READ, str(folder / f"votes.{kind}")]
                own.append(
                    json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
                )
    csv, lines = (
        {key: round(median(one[key] for one in own), 2) for key in own[0]} for own in found.values()
    )
    return {
        "rows": run.settings["rows"],
        "csv": csv,
        "jsonl": lines,
        "seconds_ratio": round(lines["seconds"] / csv["seconds"], 2),
        "memory_ratio": round(lines["mib"] / csv["mib"], 2),
    }
