"""What to train on after `clean`: heads on frozen features, by four forms of the training labels.

`given` is the labels as given; `soft` the posteriors of `clean` as soft labels; `corrected` the most probable
class in place of suspected label errors; `pruned` the labels as given without them. `auto` and `vanilla`
train on each, without noise information. The test labels are true. Settings: `tasks` (of `field/tasks.py`).
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tasks import FieldTask, field_task

import hesstune as ht
from heads import _as_task, _Features, _Head
from hesstune.inputs.features import sharing
from hesstune.methods import method_class
from hesstune.methods._base import HeadMaterial
from records import Run

FORMS = ("given", "soft", "corrected", "pruned")
METHODS = ("auto", "vanilla")


@lru_cache(maxsize=1)
def _cleaned(name: str, seed: int, data: Path) -> tuple[FieldTask, Any]:
    task = field_task(name, seed, data)
    return task, ht.clean(features=task.x, labels=task.given, seed=seed)


def cases(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield tasks, forms of the labels, and methods."""
    for task in settings["tasks"]:
        yield from ({"task": task, "labels": form, "method": m} for form in FORMS for m in METHODS)


def measure(case: dict[str, Any], run: Run) -> dict[str, Any]:
    """Fit one head and return its test accuracy on true labels."""
    warnings.simplefilter("ignore")
    task, found = _cleaned(case["task"], run.seed, run.data)
    form, soft, kept = case["labels"], None, np.arange(len(task.x))
    labels = found.labels("corrected") if form == "corrected" else task.given
    if form == "soft":
        soft = found.posterior
    elif form == "pruned":
        kept = np.setdiff1d(kept, found.issues)
    x = task.x[kept]
    if case["method"] == "auto":
        material = HeadMaterial(x, labels[kept], task.k, soft=soft, seed=run.seed)
        head = method_class("auto").solve_head(material)
        predicted = (task.x_test @ head.weight.T + head.bias).argmax(axis=1)
        accuracy = float((predicted == task.y_test).mean())
    else:
        accuracy = _plain(replace(task, x=x, given=labels[kept]), soft, run.seed)
    noise = float((task.given != task.true).mean())
    return {"n": len(x), "noise": round(noise, 4), "accuracy": round(accuracy, 5)}


def _plain(task: FieldTask, soft: Any, seed: int) -> float:
    """Return the test accuracy of plain fine-tuning of the head."""
    data, head = _as_task(task, seed, validated=False), _Head(task.x.shape[1], task.k)
    data = replace(data, train=replace(data.train, soft=soft))
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder, sharing(_Features(np.concatenate([task.x, task.x_test]))):
        options: dict[str, Any] = {
            "train": "head",
            "seed": seed,
            "keep_weights": False,
            "out": str(Path(folder) / "run"),
        }
        run = ht.finetune(data, head, "vanilla", soft_labels=soft is not None, **options)
    return run.outcome.test_accuracy or 0.0
