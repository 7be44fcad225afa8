"""What training the last stage costs beside training all layers: frozen layers run once.

EfficientNet-Lite0 at 96 px on 1,000 handwritten digits, 10 epochs, one run after the other in one process:
all layers; the last stage (from the first of the widest blocks on), its activations kept; the same with
four views an image; the same with every activation computed anew. The same code runs all of them.

    python benchmarks/last_stage.py
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import hesstune as ht
from hesstune.inputs.activations import ActivationInputs
from records import arguments, machine, write_record

STAGE = "from:_blocks.15"
COMMON = {
    "data": "digits", "image_size": 96, "limit": 1000, "epochs": 10, "method": "vanilla", "seed": 0,
}  # fmt: skip
ROWS: dict[str, dict[str, Any]] = {
    "all layers": {"train": "all", "augment": "none"},
    "last stage": {"train": STAGE, "augment": "none"},
    "last stage, four views": {"train": STAGE, "augment": "shift", "augment_views": 4},
    "last stage, computed anew": {"train": STAGE, "augment": "none", "activations_mib": 0},
}


def main() -> None:
    """Run all, and write the record."""
    arguments(__doc__).parse_args()
    made: list[ActivationInputs] = []
    init = ActivationInputs.__init__

    def counted(self: ActivationInputs, *args: Any) -> None:
        init(self, *args)
        made.append(self)

    ActivationInputs.__init__ = counted  # type: ignore[assignment, method-assign]
    rows: list[dict[str, Any]] = []
    weights: dict[str, dict[str, torch.Tensor]] = {}
    for name, options in ROWS.items():
        made.clear()
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            run = ht.finetune(COMMON, **options, out=Path(folder) / "run")
            seconds = time.perf_counter() - started
            weights[name] = run.loaded().model.state_dict()
        computed = sum(feed.computed for feed in made)
        accuracy = run.outcome.test_accuracy
        rows.append({"run": name, "seconds": seconds, "computed": computed, "test accuracy": accuracy})
        print(rows[-1], flush=True)
    kept, anew = weights["last stage"], weights["last stage, computed anew"]
    apart = max(float((kept[name] - anew[name]).abs().max()) for name in kept)
    base = rows[0]["seconds"]
    record = {
        "setting": {**COMMON, "stage": STAGE},
        "command": "python benchmarks/last_stage.py",
        "machine": machine(torch.get_num_threads()),
        "rows": [{**row, "times faster": base / row.pop("seconds")} for row in rows],
        "largest difference of a weight, kept and anew": apart,
    }
    write_record("last_stage", record)


if __name__ == "__main__":
    main()
