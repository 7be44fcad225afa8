"""Heads that methods solve from frozen features, before the first step."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.data.examples import Examples, Task
from hesstune.methods import method_class
from hesstune.methods._heads import HeadMaterial, SolvedHead
from hesstune.methods._losses import balanced_rates
from hesstune.models.load import LoadedModel
from hesstune.noise.estimate import Estimate
from hesstune.noise.matrix import NoiseMatrix
from hesstune.runs.config import FinetuneConfig
from hesstune.runs.records import NoiseMatrixRecord
from hesstune.training.head_features import head_features
from hesstune.weak.vote_models import vote_counts

__all__ = ["found_noise", "solved_head", "votes_given"]


def solved_head(
    config: FinetuneConfig,
    task: Task,
    loaded: LoadedModel,
    device: torch.device,
    noise_matrix: NoiseMatrix | None,
) -> SolvedHead | None:
    """Return the head that the run's method solves; None where the network has none that it could.

    Its details tell the seconds that it took once features were there.

    Args:
        config: The resolved configuration.
        task: With the labels to be trained on.
        loaded: The network at its reference; it is left as it is.
        device: Where features are computed.
        noise_matrix: F where it was told.
    """
    part = task.train
    features = head_features(loaded, part, task.k, device, config.max_length)
    if features is None:
        return None
    assert part.labels is not None
    checked = None
    if part.clean is not None and part.clean.any():
        rows = np.flatnonzero(part.clean)
        checked = (rows, part.labels[rows])
    material = HeadMaterial(
        features.astype(np.float64),
        part.labels if part.given is None else part.given,
        task.k,
        part.soft if config.soft_labels else votes_given(part, task.k),
        checked,
        noise_matrix,
        _weight(config, part.labels, task.k),
        config.budget,
        config.seed,
        part.votes,
    )
    started = time.monotonic()
    found = method_class(config.method).solve_head(material)
    return replace(found, details={**found.details, "seconds": round(time.monotonic() - started, 3)})


def _weight(config: FinetuneConfig, labels: NDArray[np.int64], k: int) -> NDArray[np.float64] | None:
    """Return what a balanced sampler comes to where there are no batches: each class counts alike."""
    if config.sampler != "balanced":
        return None
    return balanced_rates(np.bincount(labels, minlength=k))[labels]


def votes_given(part: Examples, k: int) -> NDArray[np.float64] | None:
    """Return counts of votes, (N, K), where the labels are the majority of votes; else None.

    They say more than the majority does: who was outvoted is seen. An example without votes has its label.
    """
    votes, labels = part.votes, part.labels
    if votes is None or labels is None or votes.k != k:
        return None
    counts, every = votes.counts, np.arange(len(labels))
    heard = counts.sum(axis=1) > 0
    if not heard.any() or (counts[every, labels] < counts.max(axis=1))[heard].any():
        return None
    return np.where(heard[:, None], vote_counts(votes.ballots), np.eye(k)[labels])


def found_noise(solved: SolvedHead, config: FinetuneConfig, n: int) -> NoiseMatrixRecord | None:
    """Return the record of the noise matrix that a head was solved with, where none was told."""
    if solved.noise_matrix is None or config.noise_matrix is not None:
        return None
    found = Estimate(solved.noise_matrix, "em", n, notes=(f"found with the head: {solved.reason}",))
    made_from = {"estimate": "em", "model": config.model, "seed": config.seed, "examples": n}
    return NoiseMatrixRecord(**found.to_dict(), made_from=made_from)
