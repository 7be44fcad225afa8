"""Heads on frozen features: `auto`, other methods of the library, and what users have otherwise.

All heads get the same features, labels and splits; none gets noise information. `auto` and the peers
solve for the head. Peers: scikit-learn's LogisticRegressionCV, cleanlab's CleanLearning and a support
vector machine with an RBF kernel (up to MOST_VECTORS examples) on standardised features; on votes
crowd-kit's Dawid-Skene before LogisticRegressionCV; on texts TF-IDF with LogisticRegressionCV; and
LogisticRegressionCV on 5, 10 or 50 checked examples a class, or on all true labels. The other methods are
trained by `hesstune.finetune` with their defaults; those that use a noise matrix get an estimated one.
Methods that choose by validation hold out 20 % of the training examples, with noisy labels.

`single heads` are all that `auto` weighs, each alone: its record has the test accuracy of each.

Settings: `part` (development, test, or encoders: the test tasks of texts with features of MiniLM and of
all-mpnet-base-v2, whose folder the environment variable MPNET names), `methods`, and `skip`, the tasks that
are left out.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from tasks import DEVELOPMENT, ENCODED, TEST, FieldTask, field_task
from torch import nn

import hesstune as ht
from hesstune.data.examples import Examples, Task
from hesstune.errors import DataError
from hesstune.inputs.batches import ModelInputs
from hesstune.inputs.features import FeatureStore, sharing
from hesstune.methods import method_class
from hesstune.methods._base import HeadMaterial
from hesstune.models.load import LoadedModel
from hesstune.noise.latent.channel import Observed
from hesstune.noise.latent.copies import merge_copies
from hesstune.noise.latent.head import CANDIDATES, Heads, Kind, fit_truth
from hesstune.noise.probes import Reduction
from hesstune.weak.vote_models import vote_counts
from peers import CrossValidated, SupportVectors
from records import Run

SOLVED = ("auto", "sklearn_cv", "cleanlab", "crowd_kit")
VALIDATION = 5
# A support vector machine is fitted to so many examples at most.
MOST_VECTORS = 2400
load_task = lru_cache(maxsize=1)(field_task)


def cases(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the tasks and methods."""
    for task in {"development": DEVELOPMENT, "test": TEST, "encoders": ENCODED}[settings["part"]]:
        if task not in settings.get("skip", []):
            yield from ({"task": task, "method": method} for method in settings["methods"])


def measure(case: dict[str, Any], run: Run) -> dict[str, Any] | None:
    """Fit one head; return None if the method does not apply to the task."""
    warnings.simplefilter("ignore")
    if case["task"].endswith(" mpnet") and not os.environ.get("MPNET"):
        print(
            f"{case}, seed {run.seed}, skipped: MPNET names no folder of all-mpnet-base-v2", file=sys.stderr
        )
        return None
    task, seed, method = load_task(case["task"], run.seed, run.data), run.seed, case["method"]
    facts = {"kind": task.kind, "n": len(task.x), "noise": round(float((task.given != task.true).mean()), 4)}
    if method == "tf_idf":
        made = _tf_idf(task, seed)
    elif method.startswith("clean_"):
        made = _checked_alone(task, int(method.removeprefix("clean_")), seed)
    elif method == "sklearn_cv, true labels":
        made = _cross_validated(task, task.x, task.true, seed)
    elif method == "svm_rbf":
        made = _support_vectors(task, seed)
    elif method == "single heads":
        return {**facts, "accuracies": _single_heads(task, seed)}
    elif method in SOLVED:
        made = _solved(method, task, seed)
    else:
        made = _trained(method, task, seed), ""
    return None if made is None else {**facts, "accuracy": round(made[0], 5), "chosen": made[1]}


def _solved(name: str, task: FieldTask, seed: int) -> tuple[float, str] | None:
    if name == "crowd_kit" and task.votes is None:
        return None
    counts = None if task.votes is None else vote_counts(task.votes)
    material = HeadMaterial(task.x, task.given, task.k, counts, seed=seed, votes=task.votes)
    try:
        found = method_class(name).solve_head(material)
    except DataError as error:  # a user would go back to scikit-learn
        accuracy, _ = _cross_validated(task, task.x, task.given, seed)
        return accuracy, f"sklearn_cv in its place: {error}"
    hits = (task.x_test @ found.weight.T + found.bias).argmax(axis=1) == task.y_test
    return float(hits.mean()), str(found.details.get("chosen", found.name))


def _single_heads(task: FieldTask, seed: int) -> dict[str, float]:
    """Return the test accuracy of each head of each candidate, fitted to all examples."""
    given = task.given if task.votes is None else vote_counts(task.votes)
    merged = merge_copies(task.x, Observed.of(given, task.k))
    labels, reduction = merged.labels, Reduction.of(merged.features)
    x, tested = reduction.apply(merged.features), reduction.apply(task.x_test)
    found = {}
    for one in CANDIDATES:
        heads = Heads.fit(x, labels, one, fit_truth(x, labels, one, seed=seed), seed)
        for kind in get_args(Kind):
            hits = heads.linear(kind).logits(tested).argmax(axis=1) == task.y_test
            found[f"{one.name} {kind}"] = round(float(hits.mean()), 5)
    return found


def _cross_validated(
    task: FieldTask, x: NDArray[np.float64], labels: NDArray[np.int64], seed: int
) -> tuple[float, str]:
    found = CrossValidated(seed).fit(x, labels)
    given = found.pipeline_.predict(task.x_test)
    return float((given == task.y_test).mean()), f"C = {found.strength_:g}"


def _support_vectors(task: FieldTask, seed: int) -> tuple[float, str] | None:
    """Return the accuracy of a support vector machine, which is no linear head; None of many examples."""
    if len(task.x) > MOST_VECTORS:
        return None
    found = SupportVectors(seed).fit(task.x, task.given)
    given = found.pipeline_.predict(task.x_test)
    return float((given == task.y_test).mean()), f"C = {found.strength_:g}"


def _checked_alone(task: FieldTask, each: int, seed: int) -> tuple[float, str] | None:
    x, y = task.clean
    if not (np.bincount(y, minlength=task.k) >= each).all():
        return None
    order = np.random.default_rng([seed, each]).permutation(len(y))
    rows = np.concatenate([order[y[order] == c][:each] for c in range(task.k)])
    return _cross_validated(task, x[rows], y[rows], seed)


def _tf_idf(task: FieldTask, seed: int) -> tuple[float, str] | None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.model_selection import StratifiedKFold

    if task.texts is None:
        return None
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    x = words.fit_transform(task.texts[0])
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    grid = list(np.geomspace(0.01, 100, 5))
    model = LogisticRegressionCV(Cs=grid, cv=folds, max_iter=300, scoring="accuracy").fit(x, task.given)
    return float((model.predict(words.transform(task.texts[1])) == task.y_test).mean()), ""


class _Head(nn.Module):
    """A network that is only a head: its features come from a table."""

    def __init__(self, width: int, k: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, k)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(torch.zeros(len(images), self.head.in_features))
        return found


class _BlackImages:
    """Placeholders for images; their pixels are not used."""

    def batch(self, indices: NDArray[np.int64]) -> torch.Tensor:
        return torch.zeros((len(indices), 3, 8, 8), dtype=torch.uint8)


class _Features(FeatureStore):
    """The features of a task's examples, by row."""

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
        return {name: self.features[torch.from_numpy(parts[name].rows)] for name in feeds}


def _as_task(task: FieldTask, seed: int, validated: bool) -> Task:
    n, source = len(task.x), _BlackImages()
    order = np.random.default_rng([seed, 0x7A1]).permutation(n)
    held = np.sort(order[: n // VALIDATION if validated else 0])
    names = [f"train-{i}" for i in range(n)]
    whole = Examples(source, np.arange(n), names, task.given, votes=task.votes)
    test = np.arange(len(task.x_test))
    tested = Examples(source, n + test, [f"test-{i}" for i in test], task.y_test)
    parts = whole.take(np.setdiff1d(np.arange(n), held)), whole.take(held), tested
    return Task([str(c) for c in range(task.k)], *parts, "given", flip=False)


def _trained(method: str, task: FieldTask, seed: int) -> float:
    """Return the test accuracy of a head that a method of the library trains."""
    kind = method_class(method)
    defaults = kind.defaults(head_only=True)
    validated = defaults.get("radius") == "auto" or "patience" in defaults
    options: dict[str, Any] = {"noise_matrix": "estimate:auto"} if kind.uses_noise() else {}
    torch.manual_seed(seed)
    features = np.concatenate([task.x, task.x_test])
    with tempfile.TemporaryDirectory() as folder, sharing(_Features(features)):
        options |= {"train": "head", "seed": seed, "keep_weights": False, "out": str(Path(folder) / method)}
        data, head = _as_task(task, seed, validated), _Head(task.x.shape[1], task.k)
        run = ht.finetune(data, head, method, **options)
    return run.outcome.test_accuracy or 0.0
