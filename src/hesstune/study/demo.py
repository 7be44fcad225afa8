"""The demo: label errors, then fine-tuning by several methods, on real digits with noisy labels."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hesstune.inputs.features import frozen_features
from hesstune.labeling.clean import clean
from hesstune.models.load import load_model
from hesstune.runs.config import make_config
from hesstune.runs.loading import run_task
from hesstune.runs.run import Run
from hesstune.runtime.device import pick_device
from hesstune.runtime.signals import Progress
from hesstune.storage.files import writing

ProgressFor = Callable[[str], Progress]


@dataclass(frozen=True)
class Plan:
    """What a demo trains: options of all runs, and {name: options} of each."""

    setting: Mapping[str, Any]
    runs: Mapping[str, Mapping[str, Any]]


# 600 training images, 40 % of the labels changed at random, every layer trained.
_DATA: dict[str, Any] = {
    "model": "efficientnet_lite0",
    "data": "digits",
    "inject_noise": "symmetric:0.4",
    "train": "all",
    "image_size": 64,
    "limit": 600,
}
# Plain for all epochs; plain, stopped by noisy validation labels; the paper's method with the known noise
# matrix; and auto, without noise information.
_RUNS: dict[str, dict[str, Any]] = {
    "plain": {"method": "vanilla"},
    "plain, stopped": {"method": "vanilla", "patience": 3, "select": "best"},
    "robust": {"method": "robust"},
    "auto": {"method": "auto"},
}
# Fewer images and epochs, with a learning rate that falls: about two minutes on two cores.
SHORT = Plan(
    {**_DATA, "limit": 400, "epochs": 6, "lr": 3e-4, "augment": "none"},
    {name: _RUNS[name] for name in ("plain, stopped", "auto")},
)
# Long enough for the plain run to fit the noise, without augmentation and with a constant learning rate.
FULL = Plan({**_DATA, "epochs": 20, "lr": 3e-4, "schedule": "constant", "augment": "none"}, _RUNS)


@dataclass(frozen=True)
class FoundErrors:
    """Suspected label errors beside the known truth: `right` of the `suspected` labels are wrong."""

    examples: int
    classes: int
    wrong: int
    suspected: int
    right: int

    @property
    def precision(self) -> float:
        """The share of the suspected labels that are wrong."""
        return self.right / max(self.suspected, 1)

    @property
    def recall(self) -> float:
        """The share of the wrong labels that are suspected."""
        return self.right / max(self.wrong, 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the counts and shares, JSON-ready."""
        return {**asdict(self), "precision": self.precision, "recall": self.recall}


@contextlib.contextmanager
def demo_folder(out: Path) -> Iterator[Path]:
    """Create the first free folder of out, out-2, …; if the block fails, remove it and parents it needed."""
    missing = [folder for folder in out.absolute().parents if not folder.exists()]
    folder, number = out, 2
    with writing(out):
        while True:
            try:
                folder.mkdir(parents=True)
                break
            except FileExistsError:
                folder, number = out.with_name(f"{out.name}-{number}"), number + 1
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in missing:
            with contextlib.suppress(OSError):  # others use it by now
                parent.rmdir()
        raise


def find_errors(plan: Plan, seed: int) -> FoundErrors:
    """Find label errors in the training examples of a plan as `hesstune.clean` does; count the hits."""
    config = make_config({**plan.setting, "seed": seed}).resolved()
    task = run_task(config, seed)
    labels, true = task.train.labels, task.train.true
    assert labels is not None
    assert true is not None
    features = frozen_features(load_model(config.model, task.k), task.train, pick_device(config.device))
    suspected = clean(features=features, labels=labels, seed=seed).suspected
    wrong = labels != true
    counts = (int(np.count_nonzero(rows)) for rows in (wrong, suspected, wrong & suspected))
    return FoundErrors(len(labels), task.k, *counts)


def train_runs(
    plan: Plan, seed: int, folder: Path, progress: ProgressFor | None = None, many: bool = False
) -> dict[str, Run]:
    """Fine-tune by each method of a plan on the same noisy labels; return the runs by the plan's names.

    With `many`, the folders of the runs name the seed.
    """
    from hesstune.training.finetune import finetune

    runs = {}
    for name, options in plan.runs.items():
        stem = name.replace(", ", "-") + (f"-seed{seed}" if many else "")
        shown = progress(f"fine-tune: {name}") if progress else None
        given = {**plan.setting, **options, "seed": seed, "out": str(folder / stem)}
        runs[name] = finetune(given, progress=shown)
    return runs
