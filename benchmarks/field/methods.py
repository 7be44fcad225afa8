"""The field benchmark of heads, the library's own methods: each with its defaults, told nothing.

The same features, labels and splits as heads.py, whose rows stand beside these. Methods that use a noise
matrix are given one estimated from the labels as given (`estimate:auto`), once a task. Methods that choose
by validation keep a fifth of the training examples for it, as noisy as the rest. Every method was run once
on the test tasks. Continues where it stopped.

    python benchmarks/field/methods.py --data DATA [--part development|test] [--seeds N] [--only TEXT]
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from tasks import DEVELOPMENT, DEVELOPMENT_SEEDS, TEST, TEST_SEEDS, FieldTask, field_task

import hesstune as ht
from hesstune.data.examples import Examples, Task
from hesstune.inputs.batches import ModelInputs
from hesstune.inputs.feature_store import FeatureStore, sharing
from hesstune.methods import method_class
from hesstune.models.load import LoadedModel
from records import RESULTS, add_row, arguments, read_rows

COLUMNS = ("task", "seed", "method", "accuracy", "seconds")
METHODS = (
    "robust",
    "robust_plus",
    "forward",
    "elr",
    "gce",
    "co_teaching",
    "divide_mix",
    "mixup",
    "sam",
    "vanilla",
)
# All images of CIFAR-10N are for heads that are solved: a method that takes steps takes an hour there.
LARGE = ("cifar10n worse", "cifar10n random1", "cifar10n aggregate")
VALIDATION = 5


def record_path(part: str) -> Path:
    """Return where a part's rows are kept."""
    return RESULTS / f"field_methods_{part}.csv"


class Frozen(nn.Module):
    """A network of which the head alone is there: its features are in a table."""

    def __init__(self, width: int, k: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, k)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits of features that are all zero: the right shape, for checks alone."""
        found: torch.Tensor = self.head(torch.zeros(len(images), self.head.in_features))
        return found


class Blank:
    """Images that nobody looks at."""

    def batch(self, indices: NDArray[np.int64]) -> torch.Tensor:
        """Return black images."""
        return torch.zeros((len(indices), 3, 8, 8), dtype=torch.uint8)


class Table(FeatureStore):
    """The features of a task's examples, by their rows."""

    def __init__(self, features: NDArray[np.float64]) -> None:
        super().__init__()
        self.features = torch.from_numpy(features).float()

    def rows(
        self,
        loaded: LoadedModel,
        parts: Mapping[str, Examples],
        feeds: Mapping[str, ModelInputs],
        max_length: int,
    ) -> dict[str, torch.Tensor] | None:
        """Return the features of each part."""
        return {name: self.features[torch.from_numpy(parts[name].rows)] for name in feeds}


def as_task(task: FieldTask, seed: int, validated: bool) -> Task:
    """Return the same task as `finetune` takes it, a fifth of the training part held out where asked."""
    n, source = len(task.x), Blank()
    order = np.random.default_rng([seed, 0x7A1]).permutation(n)
    held = np.sort(order[: n // VALIDATION if validated else 0])
    train = np.setdiff1d(np.arange(n), held)
    whole = Examples(source, np.arange(n), [f"train-{i}" for i in range(n)], task.given, votes=task.votes)
    test = np.arange(len(task.x_test))
    return Task(
        [str(c) for c in range(task.k)],
        whole.take(train),
        whole.take(held),
        Examples(source, n + test, [f"test-{i}" for i in test], task.y_test),
        "given",
        flip=False,
    )


def accuracy(task: FieldTask, method: str, seed: int, told: Path, **options: Any) -> float:
    """Fit one head; return its accuracy on the test part. F is written to `told`, and read from there."""
    kind = method_class(method)
    asked = {**kind.defaults(head_only=True), **options}
    validated = asked.get("radius") == "auto" or "patience" in asked
    if kind.uses_noise():
        options["noise_matrix"] = str(told) if told.is_file() else "estimate:auto"
    torch.manual_seed(seed)
    network = Frozen(task.x.shape[1], task.k)
    with sharing(Table(np.concatenate([task.x, task.x_test]))):
        run = ht.finetune(
            as_task(task, seed, validated),
            network,
            method,
            train="head",
            seed=seed,
            keep_weights=False,
            out=str(told.parent / method),
            overwrite=True,
            **options,
        )
    if kind.uses_noise() and not told.is_file() and run.noise_matrix is not None:
        run.noise_matrix.save(told)
    return run.outcome.test_accuracy or 0.0


def main() -> None:
    parser = arguments(__doc__, "pacs128/, cifar10n/, wrench/, amazon_isbook/, sst2/ and mrpc/")
    parser.add_argument("--part", choices=("development", "test"), default="development")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="tasks whose name has this in it")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    asked = parser.parse_args()
    names, seeds = (DEVELOPMENT, DEVELOPMENT_SEEDS) if asked.part == "development" else (TEST, TEST_SEEDS)
    path = record_path(asked.part)
    done = {(row["task"], int(row["seed"]), row["method"]) for row in read_rows(path)}
    for seed in seeds[: asked.seeds]:
        for name in (name for name in names if asked.only in name and name not in LARGE):
            todo = [method for method in asked.methods if (name, seed, method) not in done]
            if todo:
                _run(field_task(name, seed, asked.data), seed, path, todo)


def _run(task: FieldTask, seed: int, path: Path, methods: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for method in methods:
            started = time.monotonic()
            found = accuracy(task, method, seed, Path(folder) / "noise.npz")
            spent = round(time.monotonic() - started, 2)
            add_row(path, COLUMNS, [task.name, seed, method, round(found, 5), spent])


if __name__ == "__main__":
    main()
