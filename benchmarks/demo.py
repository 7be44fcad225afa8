"""`hesstune demo` on several seeds: the table of the README."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hesstune.study.demo import SETTING, run_demo

KEPT = ("test_accuracy", "train_accuracy", "gap", "distance", "epochs")


def measure(case: dict[str, Any], asked: Any) -> dict[str, Any]:
    """Run the demo."""
    with tempfile.TemporaryDirectory() as folder:
        made = run_demo(Path(folder) / "demo", asked.settings["seeds"])
        runs = []
        for (name, seed), run in made.items():
            kept = {key: run.result[key] for key in KEPT}
            runs.append({"name": name, "seed": seed, "noise": run.record["noise"], **kept})
    return {"setting": SETTING, "runs": runs}
