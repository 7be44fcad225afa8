"""The noise matrix that a run's loss believes in: as injected, as given, or estimated."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.data.examples import Examples, Task
from hesstune.errors import ConfigError, DataError, RunError
from hesstune.inputs.feature_store import frozen_features
from hesstune.models.load import LoadedModel
from hesstune.noise.estimate import Estimate, estimate_noise, parse_request
from hesstune.noise.linear_probe import cross_fit
from hesstune.noise.matrix import NoiseMatrix
from hesstune.runs.config import FinetuneConfig
from hesstune.runs.records import NoiseMatrixRecord
from hesstune.storage.remembered import remembered
from hesstune.storage.stored import read_record
from hesstune.weak.dependence import dependence_note
from hesstune.weak.label_models import label

__all__ = ["Material", "estimated", "gather", "run_estimate"]


@dataclass(frozen=True)
class Material:
    """What an estimate is made from: never the network that was trained on the noise.

    Attributes:
        features: (N, D) of the reference network.
        labels: (N,) noisy labels, before a person checked any; drawn from the soft labels where those
            are trained on.
        soft: (N, K) the soft labels trained on, or None.
        probs: (N, K) out-of-sample probabilities of the noisy labels, by cross-fitting.
        posterior: P(true | votes, features), (N, K), of the label model, or None without votes.
        clean: (rows, true labels) that a person has checked, or None.
        notes: What a reader should know.
    """

    features: NDArray[np.float64]
    labels: NDArray[np.int64]
    soft: NDArray[np.float64] | None
    probs: NDArray[np.float64]
    posterior: NDArray[np.float64] | None
    clean: tuple[NDArray[np.int64], NDArray[np.int64]] | None
    notes: tuple[str, ...]


def gather(config: FinetuneConfig, task: Task, loaded: LoadedModel, device: torch.device) -> Material:
    """Compute what estimates of the noise matrix are made from.

    Raises:
        ModelError: If the network's head is not its last operation, so that it has no features.
    """
    part, k = task.train, task.k
    features = frozen_features(loaded, part, device, config.max_length).astype(np.float64)
    noisy = part.labels if part.given is None else part.given
    soft = part.soft if part.given_soft is None else part.given_soft
    assert noisy is not None
    soft = soft if config.soft_labels else None
    if soft is not None:
        noisy = _drawn(soft, config.seed)
    clean = None
    if part.clean is not None and part.labels is not None:
        rows = np.flatnonzero(part.clean)
        clean = (rows, part.labels[rows])
    posterior, notes = _posterior(part, features, clean, config.seed)
    probs = remembered(
        f"probabilities, {k} classes, seed {config.seed}",
        {"features": features, "labels": noisy},
        lambda: {"probs": torch.from_numpy(cross_fit(features, noisy, k, seed=config.seed))},
    )["probs"].numpy()
    return Material(features, noisy, soft, probs, posterior, clean, notes)


def _drawn(soft: NDArray[np.float64], seed: int) -> NDArray[np.int64]:
    """Draw a hard label from each soft one: its noise matrix is that of the soft labels."""
    uniform = np.random.default_rng([seed, 0x50F7]).random(len(soft))
    edges = np.cumsum(soft, axis=1)
    edges[:, -1] = 1.0
    return np.asarray((uniform[:, None] >= edges).sum(axis=1), dtype=np.int64)


def _posterior(
    part: Examples,
    features: NDArray[np.float64],
    clean: tuple[NDArray[np.int64], NDArray[np.int64]] | None,
    seed: int,
) -> tuple[NDArray[np.float64] | None, tuple[str, ...]]:
    """Return the label model's posterior, and warnings about the votes."""
    if part.votes is None or not part.votes.given.any():
        return None, ()
    posterior = label(part.votes, "auto", features=features, clean=clean, seed=seed).posterior
    return posterior, dependence_note(part.votes, posterior)


def estimated(method: str, material: Material, seed: int = 0, errors: bool = True) -> Estimate:
    """Make the estimate that was asked for.

    Args:
        method: The estimator's name.
        material: What it is made from.
        seed: Of folds and draws.
        errors: Whether an estimate by EM has its errors beside it, which take as long again.

    Raises:
        ConfigError: If the estimator lacks what it needs.
        NoiseMatrixError: If the estimate is singular even after smoothing.
    """
    from dataclasses import replace

    clean = material.clean
    if method == "holdout" and clean is None:
        raise ConfigError("estimate:holdout needs clean labels of training examples; none were given")
    if method == "labelmodel" and material.posterior is None:
        raise ConfigError(
            "estimate:labelmodel needs votes: columns vote_… of csv data, or --vote-columns NAME,NAME"
        )
    found = estimate_noise(
        material.probs,
        material.labels,
        method,
        features=material.features,
        posterior=material.posterior,
        clean=clean,
        seed=seed,
        errors=errors,
    )
    return replace(found, notes=(*found.notes, *material.notes))


def run_estimate(
    config: FinetuneConfig,
    task: Task,
    loaded: LoadedModel,
    device: torch.device,
    kept: Path | None,
    errors: bool = True,
) -> tuple[NoiseMatrix, NoiseMatrixRecord]:
    """Return the estimated matrix and its record; a resumed run reads both from its folder.

    Args:
        config: The run's.
        task: With the labels to be trained on.
        loaded: The network at the reference; it is left as it is.
        device: Where features are computed.
        kept: The folder's record of an earlier pass, or None.
        errors: As of `estimated`.
    """
    made_from = _fingerprint(config, task)
    record = None
    if kept is not None:
        with contextlib.suppress(RunError):  # a damaged one is made again
            record = read_record(kept, NoiseMatrixRecord)
    if record is not None and record.made_from == made_from:
        return NoiseMatrix(record.matrix, record.origin or "estimated"), record
    if len(task.train) < 2 * task.k:
        raise DataError(
            f"{len(task.train)} training examples are too few to estimate the noise of {task.k} classes"
        )
    material = gather(config, task, loaded, device)
    found = estimated(parse_request(str(config.noise_matrix)), material, config.seed, errors)
    return found.matrix, NoiseMatrixRecord(**found.to_dict(), classes=task.classes, made_from=made_from)


def _fingerprint(config: FinetuneConfig, task: Task) -> dict[str, Any]:
    """Say what an estimate was made from."""
    part = task.train
    digest = hashlib.sha256("\n".join(part.ids).encode())
    for array in (part.labels, part.given, part.clean, part.soft, part.votes and part.votes.table):
        digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
    return {
        "estimate": config.noise_matrix,
        "model": config.model,
        "weights": config.weights,
        "image_size": config.image_size,
        "seed": config.seed,
        "examples": len(part),
        "clean_labels": 0 if part.clean is None else int(part.clean.sum()),
        "labels_and_votes": digest.hexdigest()[:16],
        "network": "the reference: features of the pretrained weights, probes cross-fitted on them",
    }
