"""`hesstune demo` on several seeds: the table of the README."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hesstune.study.demo import SETTING, run_demo

KEPT = ("test_accuracy", "train_accuracy", "gap", "distance", "epochs")


def cases(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the one case."""
    yield {}


def measure(case: dict[str, Any], asked: Any) -> dict[str, Any]:
    """Run the demo."""
    with tempfile.TemporaryDirectory() as folder:
        made = run_demo(Path(folder) / "demo", asked.settings["seeds"])
        runs = [
            {
                "name": name,
                "seed": seed,
                "noise": run.record["noise"],
                **{key: run.result[key] for key in KEPT},
            }
            for (name, seed), run in made.items()
        ]
    return {"setting": SETTING, "runs": runs}
