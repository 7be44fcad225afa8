"""What `hesstune compare` costs: six heads beside one, how often an image is decoded, how busy the cores are.

python benchmarks/compare_speed.py

Writes benchmarks/results/compare_speed.json: a ratio of processor time, both sides measured in this run, and
the share of two cores' time that two processes used on whole networks (on a machine that is otherwise idle).
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sklearn.datasets import load_digits

import hesstune as ht
from hesstune.data import images
from records import write_record

HEADS: dict[str, Any] = {
    "data": "digits",
    "inject_noise": "symmetric:0.4",
    "train": "head",
    "limit": 1000,
}
METHODS = ["vanilla", "robust"]


def processor_seconds(call: Callable[[], Any]) -> float:
    """Return the processor seconds of a call and its children: they hardly depend on the machine's load."""
    before = os.times()
    call()
    after = os.times()
    return sum(after[i] - before[i] for i in range(4))


def busy(folder: Path) -> float:
    """Return processor seconds by wall seconds by cores, of four runs on all layers in two processes."""
    start = time.perf_counter()
    spent = processor_seconds(
        lambda: ht.compare(
            {"data": "digits", "inject_noise": "symmetric:0.2", "image_size": 64, "epochs": 4, "limit": 400},
            methods=METHODS, seeds=2, jobs=2, measure_examples=0, out=folder / "busy",
        )
    )  # fmt: skip
    return spent / (time.perf_counter() - start) / 2


def decodes(folder: Path) -> float:
    """Return how often an image file is decoded in a comparison of four runs of three epochs."""
    from PIL import Image

    for number, (image, label) in enumerate(zip(*load_digits(return_X_y=True), strict=True)):
        if number >= 100:
            break
        place = folder / "images" / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image.reshape(8, 8) * 15).astype("uint8")).resize((32, 32)).save(
            place / f"{number}.png"
        )
    count, original = 0, images.decode_seen

    def counting(*given: Any) -> Any:
        nonlocal count
        count += 1
        return original(*given)

    images.decode_seen = counting  # type: ignore[assignment]
    try:
        ht.compare(
            {"data": f"folder:{folder / 'images'}", "image_size": 32, "epochs": 3,
             "inject_noise": "symmetric:0.2"},
            methods=METHODS, seeds=2, jobs=1, measure_examples=0, out=folder / "counted",
        )  # fmt: skip
    finally:
        images.decode_seen = original
    return count / 100


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sides = {
            key: processor_seconds(
                partial(
                    ht.compare,
                    HEADS,
                    methods=methods,
                    seeds=seeds,
                    jobs=1,
                    measure_examples=0,
                    out=folder / key,
                )
            )
            for key, methods, seeds in (
                ("warm", ["vanilla"], 1),
                ("one", ["vanilla"], 1),
                ("six", METHODS, 3),
            )
        }
        record = {
            "command": "python benchmarks/compare_speed.py",
            "heads": {**HEADS, "methods": METHODS, "seeds": 3},
            "six_heads_over_one": round(sides["six"] / sides["one"], 2),
            "six_heads_under_thirty_processor_seconds": sides["six"] < 30.0,
            "two_cores_busy": round(busy(folder), 3),
            "decodes_an_image_in_four_runs_of_three_epochs": decodes(folder),
        }
    write_record("compare_speed", record)
    print(json.dumps(record), {key: round(value, 1) for key, value in sides.items()})


if __name__ == "__main__":
    main()
