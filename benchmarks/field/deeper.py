"""Deeper layers: `auto`, told nothing, beside its own head and plain fine-tuning, stopped and not.

EfficientNet-Lite0 at 64 pixels, 500 training images, every layer trained for 12 epochs with the defaults;
noise injected. None of these was looked at while `auto` was made: its share, patience and running mean were
settled on the demo's digits. Continues where it stopped.

    python benchmarks/field/deeper.py --data DATA [--seeds N]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import hesstune as ht
from records import RESULTS, add_row, arguments, read_rows

PATH = RESULTS / "field_deeper.csv"
COLUMNS = ("task", "seed", "method", "accuracy", "epochs")
TASKS = {
    "photo symmetric:0.4": ("photo", "symmetric:0.4"),
    "art_painting pair:0.4": ("art_painting", "pair:0.4"),
    "sketch symmetric:0.2": ("sketch", "symmetric:0.2"),
    "cartoon clean": ("cartoon", None),
}
BUDGET: dict[str, Any] = {"image_size": 64, "limit": 500, "epochs": 12, "train": "all"}
METHODS: dict[str, dict[str, Any]] = {
    "plain": {"method": "vanilla"},
    "plain, stopped": {"method": "vanilla", "patience": 3, "select": "best"},
    "auto, head": {"method": "auto", "budget": "fast"},
    "auto": {"method": "auto"},
}


def main() -> None:
    parser = arguments(__doc__, "pacs128/")
    parser.add_argument("--seeds", type=int, default=1)
    asked = parser.parse_args()
    done = {(row["task"], int(row["seed"]), row["method"]) for row in read_rows(PATH)}
    for seed in range(asked.seeds):
        for task, (domain, noise) in TASKS.items():
            for method, options in METHODS.items():
                if (task, seed, method) in done:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    run = ht.finetune(
                        {**BUDGET, **options},
                        data=f"folder:{asked.data / 'pacs128' / domain}",
                        inject_noise=noise,
                        seed=seed,
                        out=f"{folder}/run",
                        keep_weights=False,
                    )
                    found = run.outcome
                row = [task, seed, method, round(found.test_accuracy or 0.0, 5), found.epochs]
                add_row(PATH, COLUMNS, row)


if __name__ == "__main__":
    main()
