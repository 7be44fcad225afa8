"""The penalty of a head that is trained alone: by cross-validation on its labels as given."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax

from hesstune.data.examples import Task
from hesstune.methods import method_class
from hesstune.models.load import LoadedModel
from hesstune.noise.latent.em import fold_rows
from hesstune.noise.latent.probe import Reduction, SoftProbe
from hesstune.runs.config import FinetuneConfig
from hesstune.runtime.threads import one_thread_each
from hesstune.storage.remembered import remembered
from hesstune.storage.tensors import Tree
from hesstune.training.head_features import given_targets, head_features

__all__ = ["head_penalty", "penalised_head", "penalised_head_of", "with_head_penalty"]

# Inverse penalties on reduced features, from hardly anything learnt to hardly a penalty.
STRENGTHS = tuple(float(c) for c in np.geomspace(1e-3, 1e1, 9))
FOLDS = 5


def head_penalty(features: NDArray[np.floating], targets: NDArray[np.float64], seed: int = 0) -> float:
    """Return λ of (1/N) Σ cross-entropy + (λ/2)|W|², by the likelihood of labels in held-out fifths.

    Args:
        features: (N, D).
        targets: (N, K) one-hot or soft labels as given: no true label is read.
        seed: Of the folds.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = np.arange(200) % 2
        >>> x = np.eye(2)[y] + 0.5 * rng.normal(size=(200, 2))
        >>> sure, guessed = np.eye(2)[y], np.eye(2)[rng.integers(0, 2, 200)]
        >>> head_penalty(x, sure) < head_penalty(x, guessed)
        True
    """
    return penalised_head(features, targets, seed)[0]


def penalised_head(
    features: NDArray[np.floating], targets: NDArray[np.float64], seed: int = 0
) -> tuple[float, NDArray[np.float64]]:
    """Return λ as `head_penalty` does, and the weight, (D, K), of the head that it leaves of all examples."""

    def make() -> Tree:
        penalty, weight = _fitted(features, targets, seed)
        return {"penalty": penalty, "weight": torch.from_numpy(weight)}

    # The methods of a comparison ask for the same.
    numbers = {"features": features, "targets": targets}
    found = remembered(f"penalised head, seed {seed}", numbers, make)
    return float(found["penalty"]), np.asarray(found["weight"].numpy())


def _fitted(
    features: NDArray[np.floating], targets: NDArray[np.float64], seed: int
) -> tuple[float, NDArray[np.float64]]:
    reduction = Reduction.of(features)
    x, n = reduction.apply(features), len(features)
    folds = fold_rows(n, min(FOLDS, n), seed)

    def scored(rows: NDArray[np.int64]) -> list[float]:
        rest = np.setdiff1d(np.arange(n), rows)
        logits = (SoftProbe(x[rest], one).fit(targets[rest]).logits(x[rows]) for one in STRENGTHS)
        return [float((targets[rows] * log_softmax(found, axis=1)).sum()) for found in logits]

    with one_thread_each(len(folds)) as each:
        scores = np.sum(each(scored, folds), axis=0)
    best = STRENGTHS[int(scores.argmax())]
    scale = float((reduction.axes[:, 0] ** 2).sum())
    weight = reduction.axes @ SoftProbe(x, best).fit(targets).weight
    return 1.0 / (float(best) * scale * n), np.ascontiguousarray(weight)


def penalised_head_of(
    config: FinetuneConfig, task: Task, loaded: LoadedModel, device: torch.device
) -> tuple[float, NDArray[np.float64]] | None:
    """Return the `penalised_head` of a run's training examples; None where it has none that can be fitted."""
    part = task.train
    features = head_features(loaded, part, task.k, device, config.max_length)
    if features is None or len(part) < FOLDS:
        return None
    return penalised_head(features, given_targets(part, task.k, config.soft_labels), config.seed)


def with_head_penalty(
    config: FinetuneConfig, task: Task, loaded: LoadedModel, device: torch.device
) -> tuple[FinetuneConfig, list[str]]:
    """Return the configuration with its weight decay, where none was given, and what its user should know.

    The penalty is one of the loss. adamw would subtract lr·λ·W from the weights instead, whatever the
    gradient; without that decay it is adam, whose weight decay is a penalty of the loss.
    """
    if config.weight_decay is not None:
        return config, []
    found, notes, fitted = 0.0, list[str](), penalised_head_of(config, task, loaded, device)
    if fitted is not None:
        share = method_class(config.method).head_penalty
        found = share * fitted[0]
        part_of = "" if share == 1 else f"{share:g} times what was found for cross-entropy "
        notes.append(
            f"weight decay {found:.2g}, {part_of}by cross-validation on the labels as given; --weight-decay "
            "0 trains the head without a penalty"
        )
    changes: dict[str, object] = {"weight_decay": found}
    if found and config.optimizer == "adamw":
        changes["optimizer"] = "adam"
        notes.append(
            "the optimizer is adam, not adamw: the weight decay found by cross-validation is a penalty of "
            "the loss, and adamw decays weights apart from the loss; to use adamw give --weight-decay"
        )
    return config.model_copy(update=changes), notes
