"""Soft votes under a local class prior: examples with similar features tend to share a class."""

from __future__ import annotations

from itertools import islice

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hesstune.errors import DataError
from hesstune.weak.label_models._base import Answer, LabelModel, ModelInputs
from hesstune.weak.label_models.dawid_skene import iterations
from hesstune.weak.votes import Votes

NEIGHBOURS = 20
# How much further apart the features hold two examples than the labelers' soft votes do.
FEATURE_SCALE = 2.0
# Principal components kept of the features before distances are taken.
COMPONENTS = 64
SMOOTHING = 0.1
# A share of uniform in the local prior, so that no neighbourhood rules a class out.
FLOOR = 0.02
# Between 1/m (copies) and 1 (independent).
TEMPER = 0.5
# The probe's share of the class prior; the neighbours have the rest.
PROBE_SHARE = 0.5
PROBE_COMPONENTS, PROBE_FOLDS, PROBE_DECAY, PROBE_EPOCHS = 128, 3, 0.1, 60
PROBE_RATE, PROBE_STEPS, PROBE_TOLERANCE = 0.05, 15, 1e-3


def nearest(features: ArrayLike, votes: Votes | None = None, count: int = NEIGHBOURS) -> NDArray[np.int64]:
    """Find each example's nearest neighbours, (N, count), itself left out.

    Distances are Euclidean between features scaled to length 1 and reduced to their principal
    components, beside the labelers' centred log-probabilities where the votes are soft; the blocks
    have root mean square norms FEATURE_SCALE and 1.

    Args:
        features: (N, D).
        votes: Votes whose `soft` part joins the features.
        count: At most so many neighbours, and N − 1.
    """
    from sklearn.decomposition import PCA
    from sklearn.neighbors import NearestNeighbors

    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or len(x) < 2 or not np.isfinite(x).all():
        raise DataError(f"features must be finite, (N, D) with N of at least 2; got shape {x.shape}")
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    kept = min(COMPONENTS, len(x) - 1, x.shape[1])
    if kept < x.shape[1]:
        x = PCA(kept, svd_solver="randomized", random_state=0).fit_transform(x)
    blocks = [FEATURE_SCALE * _unit_scale(x)]
    if votes is not None and votes.soft is not None:
        logs = np.log(votes.soft + 1e-4)
        logs -= logs.mean(axis=2, keepdims=True)
        blocks.append(_unit_scale(logs.reshape(len(votes), -1)))
    space = np.concatenate(blocks, axis=1)
    count = min(count, len(x) - 1)
    found = NearestNeighbors(n_neighbors=count).fit(space).kneighbors(return_distance=False)
    return np.asarray(found, dtype=np.int64)


def _unit_scale(block: NDArray[np.float64]) -> NDArray[np.float64]:
    block = block - block.mean(axis=0)
    return np.asarray(block / max(float(np.sqrt((block**2).sum(axis=1).mean())), 1e-12))


def soft_dawid_skene(
    votes: Votes,
    features: ArrayLike,
    *,
    clean: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
    clean_weight: float = 5.0,
    temper: float = TEMPER,
    probe_share: float = PROBE_SHARE,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Return P(class | votes, features), (N, K): tempered soft votes under a local class prior.

    Labelers trained on other domains err together and know how sure they are, so their probabilities
    stand for their votes, and each labeler's log-likelihood counts by `temper`: were the labelers copies
    of one another, 1/m would be right, were they independent, 1. The class prior of an example is a
    mixture of a linear probe fitted to the posteriors of the other folds, and of the mean posterior of
    its neighbours in the features, and in features and soft votes. It starts from the mean vote.

    Args:
        votes: Votes, on every example at least one; hard ones where there are no soft ones.
        features: (N, D) frozen features.
        clean: (rows, true classes) of examples a person has checked.
        clean_weight: How many times each of those counts in the confusion matrices.
        temper: See above.
        probe_share: The probe's share of the mixture, in [0, 1].
        seed: Of the probe's folds.
    """
    if len(votes) != (rows := len(np.asarray(features))):
        raise DataError(f"{rows} rows of features do not match {len(votes)} examples")
    k, given = votes.k, votes.onehot if votes.soft is None else votes.soft
    views = given / np.maximum(given.sum(axis=2, keepdims=True), 1e-300)
    near = [nearest(features, votes), nearest(features)]
    x = _scaled_components(features)
    fold = np.random.default_rng([seed, 0x50F7]).permutation(len(x)) % min(PROBE_FOLDS, len(x))
    # A class without a vote or a checked example is impossible.
    known, weight = views.sum(axis=(0, 1)) > 0, np.ones(len(x))
    start = views.sum(axis=1) / np.maximum(votes.given.sum(axis=1, keepdims=True), 1)
    if clean is not None:
        known[clean[1]], weight[clean[0]] = True, clean_weight
    start = np.where(known, start, 0.0) / np.where(known, start, 0.0).sum(axis=1, keepdims=True)
    if clean is not None:
        start[clean[0]] = np.eye(k)[clean[1]]

    def prior(q: NDArray[np.float64]) -> NDArray[np.float64]:
        found = np.zeros_like(q)
        if probe_share > 0:
            found += probe_share * _probe_prior(x, q, fold)
        if probe_share < 1:
            found += (1 - probe_share) * sum(q[rows].mean(axis=1) for rows in near) / len(near)
        return np.asarray((found + FLOOR) / (1 + k * FLOOR))

    def confusion(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((sums + SMOOTHING) / (sums + SMOOTHING).sum(axis=2, keepdims=True))

    each = [views[:, d] for d in range(votes.m)]
    steps = iterations(each, start, prior, confusion, weight=weight, fixed=clean, known=known, temper=temper)
    for now in islice(steps, PROBE_STEPS):
        if float(np.abs(now.posterior - now.before).max()) < PROBE_TOLERANCE:
            break
    return now.posterior


def _scaled_components(features: ArrayLike) -> NDArray[np.float64]:
    from sklearn.decomposition import PCA

    x = np.asarray(features, dtype=np.float64)
    kept = min(PROBE_COMPONENTS, len(x) - 1, x.shape[1])
    if kept < x.shape[1]:
        x = PCA(kept, svd_solver="randomized", random_state=0).fit_transform(x)
    return np.append(_unit_scale(x) * np.sqrt(PROBE_COMPONENTS), np.ones((len(x), 1)), axis=1)


def _probe_prior(
    x: NDArray[np.float64], q: NDArray[np.float64], fold: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return a softmax regression's class probabilities, each fold's from the posteriors of the others."""
    import torch

    found = np.empty_like(q)
    # Single precision: the probe is a prior, and this is where the time goes.
    inputs, aims = torch.from_numpy(x).float(), torch.from_numpy(q).float()
    for part in np.unique(fold):
        held = torch.from_numpy(fold == part)
        own, targets = inputs[~held], aims[~held]
        w = torch.zeros(x.shape[1], q.shape[1])
        optimizer = torch.optim.Adam([w], betas=(0.9, 0.99))
        for step in range(1, PROBE_EPOCHS + 1):  # full batch
            # The gradient of the cross-entropy with soft targets, and of a penalty on all but the bias.
            w.grad = own.T @ (torch.softmax(own @ w, dim=1) - targets) / len(own)
            w.grad[:-1] += PROBE_DECAY * w[:-1]
            optimizer.param_groups[0]["lr"] = PROBE_RATE * (1 - step / (PROBE_EPOCHS + 1))
            optimizer.step()
        found[held.numpy()] = torch.softmax((inputs[held] @ w).double(), dim=1).numpy()
    return found


class SoftFeatures(LabelModel):
    """Tempered soft votes whose class prior comes from neighbours and a probe."""

    summary = (
        "Tempered soft votes with a class prior from similar examples; gives the noise matrix of `soft`."
    )
    needs_features = True

    @classmethod
    def fit(cls, votes: Votes, inputs: ModelInputs) -> Answer:
        """Return `soft_dawid_skene`."""
        assert inputs.features is not None
        return soft_dawid_skene(votes, inputs.features, clean=inputs.checked, seed=inputs.seed), {}


LABEL_MODEL = SoftFeatures
