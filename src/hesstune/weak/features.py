"""Dawid–Skene with a local class prior: examples whose features are near tend to share a class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hesstune.errors import DataError
from hesstune.weak.dawid_skene import iterations
from hesstune.weak.votes import Votes

__all__ = ["LatentClasses", "feature_dawid_skene", "latent_classes", "nearest", "soft_dawid_skene"]

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


@dataclass(frozen=True)
class LatentClasses:
    """A fitted latent-class model.

    Attributes:
        posterior: P(class | votes, features), (N, K).
        confusion: (m, K, K): P(labeler d votes j | class i).
    """

    posterior: NDArray[np.float64]
    confusion: NDArray[np.float64]


def latent_classes(
    views: Sequence[NDArray[np.float64]],
    start: NDArray[np.float64],
    *,
    prior: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None,
    fixed: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
    fixed_weight: float = 1.0,
    temper: float = 1.0,
    steps: int = 100,
    tolerance: float = 1e-4,
) -> LatentClasses:
    """Fit P(class) Π_d P(vote d | class) by expectation maximisation; see `dawid_skene.iterations`.

    Args:
        views: (N, K) one-hot or soft votes of each labeler; a row of zeros is an abstention.
        start: The posterior to start from, (N, K).
        prior: P(class) of each example from all posteriors, (N, K), not yet floored; None takes one prior
            for all, the mean posterior.
        fixed: (rows, true classes) whose posterior is known.
        fixed_weight: How many times each of those counts in the confusion matrices.
        temper: The power of the likelihood.
        steps: At most so many iterations.
        tolerance: Stop when no posterior moves more.
    """
    q, k = start.copy(), start.shape[1]
    # A class that nobody votes for and nobody has checked would be a name for anything.
    known = sum(view.sum(axis=0) for view in views) > 0
    weight = np.ones(len(q))
    if fixed is not None:
        known[fixed[1]] = True
        weight[fixed[0]] = fixed_weight
    q = np.where(known, q, 0.0) / np.where(known, q, 0.0).sum(axis=1, keepdims=True)
    if fixed is not None:
        q[fixed[0]] = np.eye(k)[fixed[1]]

    def share(q: NDArray[np.float64]) -> NDArray[np.float64]:
        if prior is not None:
            return np.asarray((prior(q) + FLOOR) / (1 + k * FLOOR))
        counted = q * weight[:, None]
        return np.asarray((counted.sum(axis=0) + SMOOTHING) / (counted.sum() + k * SMOOTHING))

    def confusion(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        sums = sums + SMOOTHING
        return np.asarray(sums / sums.sum(axis=2, keepdims=True))

    fitting = iterations(views, q, share, confusion, weight=weight, fixed=fixed, known=known, temper=temper)
    for now in islice(fitting, steps):
        if float(np.abs(now.posterior - now.before).max()) < tolerance:
            break
    return LatentClasses(now.posterior, now.confusion)


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


def feature_dawid_skene(
    votes: Votes,
    features: ArrayLike,
    *,
    clean: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
    clean_weight: float = 5.0,
    neighbours: int = NEIGHBOURS,
) -> LatentClasses:
    """Dawid–Skene in which an example's class prior is the mean posterior of its neighbours.

    A few dependent labelers do not determine their confusion matrices from their votes alone. But
    examples that lie near each other in the features of a pretrained network tend to share a class:
    errors that labelers make together then stand out against the neighbourhood. It is the joint model
    of annotators and classifier of Raykar et al. 2010 with a nearest-neighbour classifier, left one
    out so that no example confirms itself.

    Args:
        votes: Votes, on every example at least one; soft votes also say who is near.
        features: (N, D) frozen features of the examples.
        clean: (rows, true classes) of examples a person has checked.
        clean_weight: How many times each of those counts.
        neighbours: Neighbours of an example.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 2, 200)
        >>> x = np.array([[1, 0], [0, 1]])[y] + 0.1 * rng.normal(size=(200, 2))
        >>> table = np.where(rng.random((200, 2)) < 0.7, y[:, None], 1 - y[:, None])
        >>> found = feature_dawid_skene(Votes(table, 2), x)
        >>> bool((found.posterior.argmax(axis=1) == y).mean() > 0.95)
        True
    """
    _check_rows(votes, features)
    near = nearest(features, votes, neighbours)
    start = (votes.counts + 1e-3) / (votes.counts + 1e-3).sum(axis=1, keepdims=True)
    return latent_classes(
        [votes.onehot[:, d] for d in range(votes.m)],
        start,
        prior=lambda q: q[near].mean(axis=1),
        fixed=clean,
        fixed_weight=clean_weight,
    )


def _check_rows(votes: Votes, features: ArrayLike) -> None:
    if len(votes) != (rows := len(np.asarray(features))):
        raise DataError(f"{rows} rows of features do not match {len(votes)} examples")


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
    _check_rows(votes, features)
    given = votes.onehot if votes.soft is None else votes.soft
    views = given / np.maximum(given.sum(axis=2, keepdims=True), 1e-300)
    near = [nearest(features, votes), nearest(features)]
    x = _scaled_components(features)
    fold = np.random.default_rng([seed, 0x50F7]).permutation(len(x)) % min(PROBE_FOLDS, len(x))

    def prior(q: NDArray[np.float64]) -> NDArray[np.float64]:
        found = np.zeros_like(q)
        if probe_share > 0:
            found += probe_share * _probe_prior(x, q, fold)
        if probe_share < 1:
            found += (1 - probe_share) * sum(q[rows].mean(axis=1) for rows in near) / len(near)
        return found

    return latent_classes(
        [views[:, d] for d in range(votes.m)],
        views.sum(axis=1) / np.maximum(votes.given.sum(axis=1, keepdims=True), 1),
        prior=prior,
        fixed=clean,
        fixed_weight=clean_weight,
        temper=temper,
        steps=PROBE_STEPS,
        tolerance=PROBE_TOLERANCE,
    ).posterior


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
