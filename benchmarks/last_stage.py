"""Training the last stage compared with training all layers: frozen layers run once per image.

EfficientNet-Lite0 at 96 px on 1,000 digits for 10 epochs, one run after the other in one process: all
layers; the last stage with stored activations; the same with four views per image; the same without
stored activations.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import hesstune as ht
from hesstune.inputs.activations import ActivationInputs

STAGE = "from:_blocks.15"
COMMON = {"data": "digits", "image_size": 96, "limit": 1000, "epochs": 10, "method": "vanilla", "seed": 0}
RUNS: dict[str, dict[str, Any]] = {
    "all layers": {"train": "all", "augment": "none"},
    "last stage": {"train": STAGE, "augment": "none"},
    "last stage, four views": {"train": STAGE, "augment": "shift", "augment_views": 4},
    "last stage, nothing stored": {"train": STAGE, "augment": "none", "activations_mib": 0},
}


def measure(case: dict[str, Any], run: object) -> dict[str, Any]:
    """Train all, and compare times and weights."""
    made: list[ActivationInputs] = []
    init = ActivationInputs.__init__

    def counted(self: ActivationInputs, *args: Any) -> None:
        init(self, *args)
        made.append(self)

    ActivationInputs.__init__ = counted  # type: ignore[assignment, method-assign]
    rows: list[dict[str, Any]] = []
    weights: dict[str, dict[str, torch.Tensor]] = {}
    for name, options in RUNS.items():
        made.clear()
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            trained = ht.finetune(COMMON, **options, out=Path(folder) / "run")
            seconds = time.perf_counter() - started
            weights[name] = trained.loaded().model.state_dict()
        computed = sum(feed.computed for feed in made)
        speed = rows[0]["run seconds"] / seconds if rows else 1.0
        accuracy = trained.outcome.test_accuracy
        rows.append({"run": name, "run seconds": seconds, "times faster": speed, "computed": computed})
        rows[-1]["test accuracy"] = accuracy
    stored, fresh = weights["last stage"], weights["last stage, nothing stored"]
    apart = max(float((stored[name] - fresh[name]).abs().max()) for name in stored)
    return {"runs": rows, "largest difference of a weight, stored and not": apart}
