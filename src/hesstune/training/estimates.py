"""Estimates from labels and frozen features before training: a penalised head, and the noise matrix."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax

from hesstune.data.examples import Examples
from hesstune.errors import ConfigError, ModelError
from hesstune.inputs.features import frozen_features
from hesstune.methods._heads import takes_solution
from hesstune.models.load import LoadedModel
from hesstune.noise.estimate import Estimate, estimate_noise
from hesstune.noise.latent.copies import example_groups, group_means
from hesstune.noise.latent.em import fold_rows
from hesstune.noise.matrix import draw_classes
from hesstune.noise.probes import Reduction, SoftProbes, cross_fit
from hesstune.runtime.device import one_thread_each
from hesstune.storage.remembered import remembered
from hesstune.storage.tensors import Tree
from hesstune.weak.dependence import dependence_note
from hesstune.weak.label_models import label
from hesstune.weak.vote_models import vote_counts

# Inverse penalties on reduced features, from almost no fit to almost no penalty.
STRENGTHS = tuple(float(c) for c in np.geomspace(1e-3, 1e1, 9))
FOLDS = 5


def head_features(
    loaded: LoadedModel, part: Examples, k: int, device: torch.device, max_length: int
) -> NDArray[np.float32] | None:
    """Return the inputs of the head, (N, D); None if it is not one linear layer at the end of the network."""
    try:
        features = frozen_features(loaded, part, device, max_length)
    except ModelError:  # the head is not the last operation
        return None
    head = loaded.model.get_submodule(loaded.head)
    return features if not loaded.other_heads and takes_solution(head, k, features.shape[1]) else None


def penalised_head(
    features: NDArray[np.floating],
    targets: NDArray[np.float64],
    seed: int = 0,
    copies: NDArray[np.int64] | None = None,
) -> tuple[float, NDArray[np.float64]]:
    """Return λ of (1/N) Σ cross-entropy + (λ/2)|W|², by 5-fold cross-validation, and W, (D, K), on all rows.

    Args:
        features: (N, D).
        targets: (N, K) one-hot or soft labels as given; true labels are not used.
        seed: Of the folds.
        copies: (N,) group of each example: copies of an example are in one fold; None: groups of features.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = np.arange(200) % 2
        >>> x = np.eye(2)[y] + 0.5 * rng.normal(size=(200, 2))
        >>> correct, random = np.eye(2)[y], np.eye(2)[rng.integers(0, 2, 200)]
        >>> penalised_head(x, correct)[0] < penalised_head(x, random)[0]
        True
    """
    groups = example_groups(features, copies)

    def make() -> Tree:
        penalty, weight = _fit_penalised_head(features, targets, seed, groups)
        return {"penalty": penalty, "weight": torch.from_numpy(weight)}

    # The methods of a comparison need the same head.
    numbers = {"features": features, "targets": targets, "groups": groups}
    found = remembered(f"penalised head, seed {seed}", numbers, make)
    return float(found["penalty"]), np.asarray(found["weight"].numpy())


def _fit_penalised_head(
    features: NDArray[np.floating], targets: NDArray[np.float64], seed: int, groups: NDArray[np.int64]
) -> tuple[float, NDArray[np.float64]]:
    reduction = Reduction.of(features)
    x, n = reduction.apply(features), len(features)
    units = int(groups.max()) + 1
    folds = fold_rows(n, min(FOLDS, units), seed, groups)

    def log_likelihood(strength: float) -> float:
        probes = SoftProbes(x, strength, held_out=folds)
        probes.fit(targets)
        return float((targets * log_softmax(probes.held_out_logits(), axis=1)).sum())

    with one_thread_each(len(STRENGTHS)) as each:
        best = STRENGTHS[int(np.argmax(each(log_likelihood, STRENGTHS)))]
    scale = float((reduction.axes[:, 0] ** 2).sum())
    (fitted,) = SoftProbes(x, best).fit(targets)
    weight = reduction.axes @ fitted.weight
    return 1.0 / (best * scale * n), np.ascontiguousarray(weight)


def votes_given(part: Examples, k: int) -> NDArray[np.float64] | None:
    """Return counts of votes, (N, K), if the labels are their majority; else None.

    The counts hold the votes of the minority, too. An example without votes has its label.
    """
    votes, labels = part.votes, part.labels
    if votes is None or labels is None or votes.k != k:
        return None
    counts, every = votes.counts, np.arange(len(labels))
    voted = counts.sum(axis=1) > 0
    if not voted.any() or (counts[every, labels] < counts.max(axis=1))[voted].any():
        return None
    return np.where(voted[:, None], vote_counts(votes), np.eye(k)[labels])


Checked = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Rows, and the labels that a person gave them."""


def checked_rows(part: Examples) -> Checked | None:
    """Return the rows whose labels a person has checked, with these labels; None if nobody checked any."""
    if part.clean is None or part.labels is None or not part.clean.any():
        return None
    rows = np.flatnonzero(part.clean)
    return rows, part.labels[rows]


@dataclass(frozen=True)
class Material:
    """What a noise matrix is estimated from: features of the reference network, which saw no noise."""

    features: NDArray[np.float64]  # (N, D); copies have the mean of their group
    labels: NDArray[np.int64]  # (N,) as given, or drawn from soft labels if those are trained on
    probs: NDArray[np.float64]  # (N, K) out-of-sample probabilities of these labels, by cross-fitting
    posterior: NDArray[np.float64] | None  # P(true | votes, features), (N, K), of the label model
    clean: Checked | None  # Rows and labels that a person has checked, if they are a random sample
    notes: tuple[str, ...]  # Warnings about the votes


def gather(
    part: Examples,
    k: int,
    loaded: LoadedModel,
    device: torch.device,
    *,
    max_length: int,
    soft_labels: bool,
    seed: int,
) -> Material:
    """Compute what a noise matrix is estimated from.

    Raises:
        ModelError: If the network's head is not its last operation, so that it has no features.
    """
    features = frozen_features(loaded, part, device, max_length).astype(np.float64)
    groups = example_groups(features, part.copies)
    features = group_means(features, groups)
    noisy = part.labels if part.given is None else part.given
    assert noisy is not None
    soft = part.soft if part.given_soft is None else part.given_soft
    if soft_labels and soft is not None:  # labels drawn from soft ones have their noise matrix
        noisy = draw_classes(soft, [seed, 0x50F7])
    checked = checked_rows(part)
    posterior, notes = _posterior(part, features, checked, seed)
    probs = remembered(
        f"probabilities, {k} classes, seed {seed}",
        {"features": features, "labels": noisy, "groups": groups},
        lambda: {"probs": torch.from_numpy(cross_fit(features, noisy, k, seed=seed, groups=groups))},
    )["probs"].numpy()
    return Material(features, noisy, probs, posterior, checked if part.clean_by_chance else None, notes)


def _posterior(
    part: Examples, features: NDArray[np.float64], checked: Checked | None, seed: int
) -> tuple[NDArray[np.float64] | None, tuple[str, ...]]:
    """Return the label model's posterior, and warnings about the votes."""
    if part.votes is None or not part.votes.given.any():
        return None, ()
    posterior = label(part.votes, "auto", features=features, clean=checked, seed=seed).posterior
    return posterior, dependence_note(part.votes, posterior)


def estimated(method: str, material: Material, seed: int = 0, errors: bool = True) -> Estimate:
    """Estimate the noise matrix by the estimator named, and the `errors` of an estimate by EM.

    Raises:
        ConfigError: If the estimator lacks what it needs.
        NoiseMatrixError: If the estimate is singular even after smoothing.
    """
    if method == "holdout" and material.clean is None:
        raise ConfigError(
            "estimate:holdout needs checked labels of training examples drawn at random; none were given"
        )
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
        clean=material.clean,
        seed=seed,
        errors=errors,
    )
    return replace(found, notes=(*found.notes, *material.notes))
