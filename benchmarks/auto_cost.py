"""Processor time of the head of `auto` compared with heads with a cross-validated penalty."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sources import image_features

from data_files import cifar10n_lines
from hesstune.methods import method_class
from hesstune.methods._base import HeadMaterial
from hesstune.training.estimates import penalised_head
from peers import CrossValidated
from records import Run

IMAGES, TURNS = 4000, 3


def processor_seconds(call: Callable[[], Any]) -> float:
    """Return the processor seconds of a call and its children."""
    before = os.times()
    call()
    return sum(after - start for after, start in zip(os.times()[:4], before[:4], strict=True))


def measure(case: dict[str, Any], run: Run) -> dict[str, Any]:
    """Measure one case."""
    lines = [line for line in cifar10n_lines(run.folder("cifar10n")) if line["split"] == "train"][:IMAGES]
    n, classes = case["examples"], sorted({line["worse"] for line in lines})
    features = image_features([Path(line["image"]) for line in lines])[:n].astype(np.float64)
    labels = np.array([classes.index(line["worse"]) for line in lines])[:n]
    sides: dict[str, Callable[[], Any]] = {
        "auto": partial(method_class("auto").solve_head, HeadMaterial(features, labels, len(classes))),
        "own": partial(penalised_head, features, np.eye(len(classes))[labels]),
        "scikit-learn": partial(CrossValidated().fit, features, labels),
    }
    for side in sides.values():
        side()
    spent = [{name: processor_seconds(side) for name, side in sides.items()} for _ in range(TURNS)]
    return {
        f"auto_over_{name}": round(float(np.median([turn["auto"] / turn[name] for turn in spent])), 2)
        for name in ("own", "scikit-learn")
    }
