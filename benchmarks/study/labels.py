"""Write the study's tasks: the four PACS targets with weak labels, and three noise matrices for each.

A target's rows are in one order for every seed, so that features are computed once. The matrices are
`estimated` (from the votes and the features, by a label model: no clean label), `oracle` (from true
labels) and `uniform` (symmetric with the oracle's rate, the simplest form), the last two for comparison.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from hesstune import NoiseMatrix
from hesstune.noise.estimate import from_posterior
from hesstune.study.tasks import PACS, WeakTask, pacs
from hesstune.weak.label_models import label

ROOT = Path(__file__).parents[3] / "shared" / "data" / "pacs128"
# Fixed before any test label was looked at.
ESTIMATOR = "soft_features"
RIDGE = 0.05


def write_task(
    root: Path, target: str, seed: int, folder: Path, image_size: int, validation: int | None = None
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{target}-{seed}"
    if stem.with_name(f"{stem.name}-uniform.json").is_file():
        return
    task = pacs(root, target, seed=seed, image_size=image_size)
    _write_csv(task, stem.with_name(f"{stem.name}.csv"), validation)
    posterior = label(task.train.votes, ESTIMATOR, features=task.train.features, seed=seed).posterior
    estimated = from_posterior(posterior, task.train.weak).matrix.regularized(RIDGE)
    estimated.save(stem.with_name(f"{stem.name}-estimated.json"))
    task.noise.regularized(RIDGE).save(stem.with_name(f"{stem.name}-oracle.json"))
    NoiseMatrix.symmetric(task.k, task.realised_rate).save(stem.with_name(f"{stem.name}-uniform.json"))


def _write_csv(task: WeakTask, path: Path, validation: int | None) -> None:
    """Write the examples; at most `validation` of the validation part, which was drawn at random."""
    rows: list[tuple[str, str, str, str]] = []
    for name in ("train", "val", "test"):
        part = task.part(name)
        given = part.true if name == "test" else part.weak
        made = [
            (i, str(p.resolve()), task.classes[y], name)
            for i, p, y in zip(part.ids, part.paths, given, strict=True)
        ]
        if name == "val" and validation is not None:
            kept = np.random.default_rng(task.seed).permutation(len(made))[:validation]
            made = [made[i] for i in kept]
        rows += made
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "image", "label", "split"])
        writer.writerows(sorted(rows))


def write_all(
    root: Path, folder: Path, seeds: Iterable[int], image_size: int, validation: int | None = None
) -> None:
    for target in PACS:
        for seed in seeds:
            write_task(root, target, seed, folder, image_size, validation)
