"""From labeling functions to a network: SST-2, examples/sentiment_rules.py, MiniLM's head, all by default.

Labels come from `hesstune.label_data`, the head from `hesstune.finetune` with `train="head"`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import hesstune as ht
import peers  # noqa: F401  # makes sklearn_cv known
from data_files import sentences, write_table
from records import Run


def measure(case: dict[str, Any], run: Run) -> dict[str, Any]:
    """Label, train and test once."""
    with tempfile.TemporaryDirectory() as name:
        folder, lines = Path(name), []
        for part in ("train", "test"):
            found = sentences(run.folder("sst2").parent, "sst2", part)
            names = {"0": "negative", "1": "positive"}
            lines += [(f"{part}-{i}", text, part, names[y]) for i, ((text,), y) in enumerate(found)]
        table = write_table(folder / "texts.csv", ("id", "text", "split", "true_label"), lines)
        labels = case["labels"]
        made = ht.label_data(target=f"csv:{table}", functions="py:sentiment_rules:RULES", label_model=labels)
        made.save(folder / "labels.csv")
        options = {"model": "minilm", "train": "head", "method": case["method"], "seed": run.seed}
        trained = ht.finetune(f"csv:{folder / 'labels.csv'}", **options, out=folder / "run")
        return {"accuracy": trained.outcome.test_accuracy, "labels right": made.accuracy(made.labels)}
