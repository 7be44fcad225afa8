"""Write the study's tasks: the four PACS targets with weak labels, and three noise matrices for each.

A target's rows are in one order for every seed, so that features are computed once. The matrices are
`estimated` (from the votes and the features, by a label model: no clean label), `oracle` (from true
labels) and `uniform` (symmetric with the oracle's rate, the simplest form), the last two for comparison.
`TASK-SEED-posterior.csv` holds the same examples with the label model's own answer, P(class | votes,
features) in columns p_CLASS and its argmax as the label, for training and validation.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hesstune import NoiseMatrix
from hesstune.noise.estimate import from_posterior
from hesstune.weak.label_models import label
from hesstune.weak.votes import Votes

sys.path.insert(0, str(Path(__file__).parents[1]))
from weak_tasks import PACS, WeakTask, pacs

ROOT = Path(__file__).parents[3] / "shared" / "data" / "pacs128"
# Its parts were chosen by test accuracy on other splits of the same pictures (docs/noise.md); the ridge
# was fixed before any test label was looked at.
ESTIMATOR = "soft_features"
RIDGE = 0.05


def write_task(
    root: Path,
    target: str,
    seed: int,
    folder: Path,
    image_size: int,
    validation: int | None = None,
    estimator: str = ESTIMATOR,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{target}-{seed}"
    if stem.with_name(f"{stem.name}-uniform.json").is_file():
        return
    task = pacs(root, target, seed=seed, image_size=image_size)
    kept = _kept(task, validation)
    weak = {name: task.part(name).weak for name in ("train", "val")}
    _write_csv(task, kept, weak, None, stem.with_name(f"{stem.name}.csv"))
    posterior = _posterior(task, estimator)
    best = {name: q.argmax(axis=1) for name, q in posterior.items()}
    _write_csv(task, kept, best, posterior, stem.with_name(f"{stem.name}-posterior.csv"))
    own = label(task.train.votes, estimator, features=task.train.features, seed=seed).posterior
    estimated = from_posterior(own, task.train.weak).matrix.regularized(RIDGE)
    estimated.save(stem.with_name(f"{stem.name}-estimated.json"))
    task.noise.regularized(RIDGE).save(stem.with_name(f"{stem.name}-oracle.json"))
    NoiseMatrix.symmetric(task.k, task.realised_rate).save(stem.with_name(f"{stem.name}-uniform.json"))


def _posterior(task: WeakTask, estimator: str) -> dict[str, NDArray[np.float64]]:
    """Return P(class | votes, features) of the training and the validation part, fitted on both."""
    parts = [task.train, task.val]
    soft = [part.votes.soft for part in parts if part.votes.soft is not None]
    votes = Votes(
        np.concatenate([part.votes.table for part in parts]),
        task.k,
        task.train.votes.names,
        np.concatenate(soft) if len(soft) == len(parts) else None,
    )
    features = np.concatenate([part.features for part in parts])
    found = label(votes, estimator, features=features, seed=task.seed).posterior
    return {"train": found[: len(task.train)], "val": found[len(task.train) :]}


def _kept(task: WeakTask, validation: int | None) -> dict[str, NDArray[np.int64]]:
    """Return the rows of each part that are written: at most `validation` of the validation part."""
    rows = {name: np.arange(len(task.part(name))) for name in ("train", "val", "test")}
    if validation is not None:
        rows["val"] = np.random.default_rng(task.seed).permutation(len(task.val))[:validation]
    return rows


def _write_csv(
    task: WeakTask,
    kept: dict[str, NDArray[np.int64]],
    given: dict[str, NDArray[np.int64]],
    soft: dict[str, NDArray[np.float64]] | None,
    path: Path,
) -> None:
    """Write the examples with the labels given, and true labels for the test."""
    given = {**given, "test": task.test.true}
    eye, rows = np.eye(task.k), list[list[object]]()
    for name, some in kept.items():
        part = task.part(name)
        for i in some:
            shares: list[float] = []
            if soft is not None:
                shares = list(soft[name][i] if name in soft else eye[part.true[i]])
            rows.append([part.ids[i], part.paths[i].resolve(), task.classes[given[name][i]], name, *shares])
    rows.sort(key=lambda row: str(row[0]))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        columns = [] if soft is None else [f"p_{name}" for name in task.classes]
        writer.writerow(["id", "image", "label", "split", *columns])
        writer.writerows(rows)


def write_all(
    root: Path,
    folder: Path,
    seeds: Iterable[int],
    image_size: int,
    validation: int | None = None,
    estimator: str = ESTIMATOR,
) -> None:
    for target in PACS:
        for seed in seeds:
            write_task(root, target, seed, folder, image_size, validation, estimator)


def write_true(root: Path, domain: str, folder: Path) -> None:
    """Write a domain's images with their true labels; every run draws its own parts."""
    path = folder / f"{domain}.csv"
    if path.is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    images = sorted((root / domain).glob("*/*.jpg"))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "image", "label"])
        writer.writerows([p.relative_to(root).as_posix(), p.resolve(), p.parent.name] for p in images)
