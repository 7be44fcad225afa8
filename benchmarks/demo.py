"""`hesstune demo --full` on several seeds: the table of the README."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hesstune.study.demo import FULL, train_runs

KEPT = ("test_accuracy", "train_accuracy", "gap", "distance", "epochs")


def measure(case: dict[str, Any], asked: Any) -> dict[str, Any]:
    """Run the demo."""
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(asked.settings["seeds"]):
            for name, run in train_runs(FULL, seed, Path(folder), many=True).items():
                kept = {key: run.result[key] for key in KEPT}
                runs.append({"name": name, "seed": seed, "noise": run.record["noise"], **kept})
    return {"setting": dict(FULL.setting), "runs": runs}
