"""What `auto`'s head costs beside one penalised head, and five methods beside one, features apart.

python benchmarks/auto_cost.py --data DATA

DATA holds cifar10n/. Processor time hardly depends on the machine's load; the comparison's wall time wants a
machine that is otherwise idle. Writes benchmarks/results/auto_cost.json.
"""

from __future__ import annotations

import csv
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hesstune as ht
from compare_speed import processor_seconds
from hesstune.methods import method_class
from hesstune.methods._heads import HeadMaterial
from hesstune.training.penalty import penalised_head
from kept_features import cache_folder, image_features
from peers import PEERS, CrossValidated
from records import arguments, write_record

IMAGES, TURNS = 4000, 3
METHODS: list[Any] = ["auto", "vanilla", "elr", *(PEERS[name] for name in ("sklearn_cv", "cleanlab"))]
SEEDS, GOAL = 3, 60.0


def ratios(data: Path, lines: list[dict[str, str]], n: int) -> dict[str, Any]:
    """Return processor time of auto's head over that of penalised heads, the median of some turns."""
    features = image_features([data / "cifar10n" / line["image"] for line in lines], cache=cache_folder())
    classes = sorted({line["worse"] for line in lines})
    labels = np.array([classes.index(line["worse"]) for line in lines])[:n]
    material = HeadMaterial(features[:n].astype(np.float64), labels, len(classes))
    sides: dict[str, Callable[[], Any]] = {
        "auto": partial(method_class("auto").solve_head, material),
        "own": partial(penalised_head, material.features, np.eye(len(classes))[labels]),
        "scikit-learn": partial(CrossValidated().fit, material.features, labels),
    }
    for side in sides.values():
        side()
    spent = [{name: processor_seconds(side) for name, side in sides.items()} for _ in range(TURNS)]
    return {
        "n": n,
        **{
            f"auto_over_{name}": round(float(np.median([turn["auto"] / turn[name] for turn in spent])), 2)
            for name in ("own", "scikit-learn")
        },
    }


def comparisons(data: Path, lines: list[dict[str, str]], folder: Path) -> dict[str, Any]:
    """Return the seconds of a comparison of heads less those of one cell, which pay for the features."""
    table = folder / "table.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["id", "image", "label"])
        out.writerows([line["id"], data / "cifar10n" / line["image"], line["worse"]] for line in lines)
    seconds = {}
    one = METHODS[1:2]
    for name, methods, seeds in (("warm", one, 1), ("one", one, 1), ("all", METHODS, SEEDS)):
        started = time.perf_counter()
        options = {"data": f"csv:{table}", "train": "head", "image_size": 96}
        ht.compare(options, methods=methods, seeds=seeds, measure_examples=0, out=folder / name)
        seconds[name] = time.perf_counter() - started
    beyond = seconds["all"] - seconds["one"]
    print(seconds)
    return {
        "methods": [str(getattr(each, "__name__", each)) for each in METHODS],
        "seeds": SEEDS,
        "images": len(lines),
        "threads": torch.get_num_threads(),
        "seconds_beyond_one_cell": round(beyond, 1),
        "goal_reached": beyond < GOAL,
    }


def main() -> None:
    data = arguments(__doc__, "cifar10n/").parse_args().data
    with (data / "cifar10n" / "labels.csv").open(newline="", encoding="utf-8") as file:
        lines = [line for line in csv.DictReader(file) if line["split"] == "train"][:IMAGES]
    record: dict[str, Any] = {
        "command": "python benchmarks/auto_cost.py --data DATA",
        "heads": [ratios(data, lines, n) for n in (1000, IMAGES)],
    }
    with tempfile.TemporaryDirectory() as folder:
        record["comparison"] = comparisons(data, lines, Path(folder))
    write_record("auto_cost", record)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
