"""Soft votes under a local class prior: examples with similar features tend to share a class."""

from __future__ import annotations

from itertools import islice

import numpy as np
from numpy.typing import NDArray

from hesstune.errors import DataError
from hesstune.noise.latent.channel import Checked
from hesstune.weak.label_models import Answer, LabelModel, ModelInputs
from hesstune.weak.label_models.dawid_skene import iterations
from hesstune.weak.votes import Votes

NEIGHBOURS = 20
# How much further apart the features hold two examples than the annotators' soft votes do.
FEATURE_SCALE = 2.0
# Principal components kept of the features before distances are taken.
COMPONENTS = 64
SMOOTHING = 0.1
# A share of uniform in the local prior, so that no neighbourhood rules a class out.
FLOOR = 0.02
# The power of the likelihood: 1/m is right for copies, 1 for independent annotators.
TEMPER = 0.5
# The probe's share of the class prior; the neighbours have the rest.
PROBE_SHARE = 0.5
# How many times a checked example counts in the confusion matrices.
CHECKED_WEIGHT = 5.0
PROBE_COMPONENTS, PROBE_FOLDS, PROBE_DECAY, PROBE_EPOCHS = 128, 3, 0.1, 60
PROBE_RATE, PROBE_STEPS, PROBE_TOLERANCE = 0.05, 15, 1e-3

Array = NDArray[np.float64]


def _components(x: Array, most: int) -> Array:
    """Return at most so many principal components; the features themselves if there are no more."""
    from sklearn.decomposition import PCA

    kept = min(most, len(x) - 1, x.shape[1])
    return x if kept == x.shape[1] else PCA(kept, svd_solver="randomized", random_state=0).fit_transform(x)


def _unit_scale(block: Array) -> Array:
    block = block - block.mean(axis=0)
    return np.asarray(block / max(float(np.sqrt((block**2).sum(axis=1).mean())), 1e-12))


def _neighbours(x: Array, votes: Votes) -> list[NDArray[np.int64]]:
    """Return each example's nearest neighbours, (N, NEIGHBOURS), in features and soft votes, and in features.

    Distances are Euclidean between features scaled to length 1 and reduced to their principal components,
    beside the annotators' centred log-probabilities if the votes are soft; the blocks have root mean square
    norms FEATURE_SCALE and 1.
    """
    from sklearn.neighbors import NearestNeighbors

    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    alone = FEATURE_SCALE * _unit_scale(_components(x, COMPONENTS))
    spaces = [alone, alone]
    if votes.soft is not None:
        logs = np.log(votes.soft + 1e-4)
        logs -= logs.mean(axis=2, keepdims=True)
        spaces[0] = np.concatenate([alone, _unit_scale(logs.reshape(len(votes), -1))], axis=1)
    searches = [NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(x) - 1)).fit(space) for space in spaces]
    return [search.kneighbors(return_distance=False) for search in searches]


def _probe_prior(x: Array, q: Array, fold: NDArray[np.int64]) -> Array:
    """Return a softmax regression's class probabilities, each fold's from the posteriors of the others."""
    import torch

    found = np.empty_like(q)
    # Single precision: the probe is a prior, and most of the time is spent here.
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


def soft_dawid_skene(votes: Votes, features: Array, checked: Checked | None, seed: int) -> Array:
    """Return P(class | votes, features), (N, K): tempered soft votes under a local class prior.

    Annotators trained on other domains err together, and their probabilities are informative. So their
    probabilities stand for their votes, and each annotator's log-likelihood counts by TEMPER. The class prior
    of an example is a mixture of a linear probe fitted to the posteriors of the other folds, and of the mean
    posterior of its neighbours in the features, and in features and soft votes. It starts from the mean vote.
    """
    n, k, given = len(votes), votes.k, votes.onehot if votes.soft is None else votes.soft
    views = given / np.maximum(given.sum(axis=2, keepdims=True), 1e-300)
    near = _neighbours(features, votes)
    probed = _unit_scale(_components(features, PROBE_COMPONENTS)) * np.sqrt(PROBE_COMPONENTS)
    x = np.append(probed, np.ones((n, 1)), axis=1)
    fold = np.random.default_rng([seed, 0x50F7]).permutation(n) % min(PROBE_FOLDS, n)
    # A class without a vote or a checked example is impossible.
    known, weight = views.sum(axis=(0, 1)) > 0, np.ones(n)
    if checked is not None:
        known[checked[1]], weight[checked[0]] = True, CHECKED_WEIGHT
    start = np.where(known, views.sum(axis=1) / np.maximum(votes.per_example, 1)[:, None], 0.0)
    start = start / start.sum(axis=1, keepdims=True)
    if checked is not None:
        start[checked[0]] = np.eye(k)[checked[1]]

    def prior(q: Array) -> Array:
        found = PROBE_SHARE * _probe_prior(x, q, fold)
        found += (1 - PROBE_SHARE) * sum(q[rows].mean(axis=1) for rows in near) / len(near)
        return np.asarray((found + FLOOR) / (1 + k * FLOOR))

    each = [views[:, d] for d in range(votes.m)]
    steps = iterations(
        each, start, prior, 0.0, weight=weight, fixed=checked, known=known, temper=TEMPER, added=SMOOTHING
    )
    for now in islice(steps, PROBE_STEPS):
        if float(np.abs(now.posterior - now.before).max()) < PROBE_TOLERANCE:
            break
    return now.posterior


class SoftFeatures(LabelModel):
    """Tempered soft votes with a class prior from neighbours and a probe."""

    summary = (
        "Tempered soft votes with a class prior from similar examples; gives the noise matrix of `soft`."
    )
    needs_features = True

    @classmethod
    def fit(cls, votes: Votes, inputs: ModelInputs) -> Answer:
        """Return `soft_dawid_skene`; DataError if only one example has votes."""
        assert inputs.features is not None
        if len(votes) < 2:
            raise DataError("the label model soft_features needs votes on two examples at least; got one")
        features = np.asarray(inputs.features, dtype=np.float64)
        return soft_dawid_skene(votes, features, inputs.checked, inputs.seed), {}


LABEL_MODEL = SoftFeatures
