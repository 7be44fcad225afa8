"""What is estimated from labels and frozen features before training: penalty, head, noise and radii."""

from __future__ import annotations

import contextlib
import hashlib
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax

from hesstune.constraints.distance import weight_norm
from hesstune.data.examples import Examples, Task
from hesstune.errors import ConfigError, DataError, ModelError, RunError
from hesstune.inputs.features import frozen_features
from hesstune.methods import method_class
from hesstune.methods._base import HeadMaterial, SolvedHead, balanced_rates
from hesstune.methods._heads import takes_solution
from hesstune.methods.constrained import RADII
from hesstune.models.load import LoadedModel
from hesstune.noise.estimate import Estimate, estimate_noise, parse_request
from hesstune.noise.latent.em import fold_rows
from hesstune.noise.matrix import NoiseMatrix, draw_classes
from hesstune.noise.probes import Reduction, SoftProbe, cross_fit
from hesstune.reference import Reference
from hesstune.runs.config import FinetuneConfig
from hesstune.runs.records import NoiseMatrixRecord
from hesstune.runtime.device import one_thread_each
from hesstune.storage.remembered import remembered
from hesstune.storage.stored import read_record
from hesstune.storage.tensors import Tree
from hesstune.weak.dependence import dependence_note
from hesstune.weak.label_models import label
from hesstune.weak.vote_models import vote_counts


def head_features(
    loaded: LoadedModel, part: Examples, k: int, device: torch.device, max_length: int
) -> NDArray[np.float32] | None:
    """Return the inputs of the head, (N, D); None where it is no linear layer at the network's end."""
    try:
        features = frozen_features(loaded, part, device, max_length)
    except ModelError:  # the head is not the last operation
        return None
    head = loaded.model.get_submodule(loaded.head)
    if loaded.other_heads:
        return None
    return features if takes_solution(head, k, features.shape[1]) else None


def given_targets(part: Examples, k: int, soft: bool) -> NDArray[np.float64]:
    """Return what a head is fitted to, (N, K): soft labels where they are wanted and there, else one-hot."""
    if soft and part.soft is not None:
        return part.soft
    assert part.labels is not None
    return np.eye(k)[part.labels]


# Inverse penalties on reduced features, from hardly anything learnt to hardly a penalty.
STRENGTHS = tuple(float(c) for c in np.geomspace(1e-3, 1e1, 9))
FOLDS = 5


def head_penalty(features: NDArray[np.floating], targets: NDArray[np.float64], seed: int = 0) -> float:
    """Return λ of (1/N) Σ cross-entropy + (λ/2)|W|², by 5-fold cross-validation.

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


def solved_head(
    config: FinetuneConfig,
    task: Task,
    loaded: LoadedModel,
    device: torch.device,
    noise_matrix: NoiseMatrix | None,
) -> SolvedHead | None:
    """Return the head that the run's method solves; None where the network has none that it could.

    Its details tell the seconds that it took once features were there.
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
    voted = counts.sum(axis=1) > 0
    if not voted.any() or (counts[every, labels] < counts.max(axis=1))[voted].any():
        return None
    return np.where(voted[:, None], vote_counts(votes.ballots), np.eye(k)[labels])


def found_noise(solved: SolvedHead, config: FinetuneConfig, n: int) -> NoiseMatrixRecord | None:
    """Return the record of the noise matrix that a head was solved with, if none was given."""
    if solved.noise_matrix is None or config.noise_matrix is not None:
        return None
    found = Estimate(solved.noise_matrix, "em", n, notes=(f"found with the head: {solved.reason}",))
    made_from = {"estimate": "em", "model": config.model, "seed": config.seed, "examples": n}
    return NoiseMatrixRecord(**found.to_dict(), made_from=made_from)


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
        # A label drawn from each soft one: its noise matrix is that of the soft labels.
        noisy = draw_classes(soft, [config.seed, 0x50F7])
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
    """Return the estimated matrix and its record; a resumed run reads both from its folder."""
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


# A layer of zeros has some room, too; a head that is not linear, or has too few examples, has the second.
LEAST, UNFITTED = 1e-6, 2.0
# What a head has beside other layers, which carry it, too: this part of what it has alone.
BESIDE = 0.25


def has_default_radii(config: FinetuneConfig) -> bool:
    """Return whether a run has distance constraints whose radii are neither given nor to be validated."""
    kind = method_class(config.method)
    return kind.constrained and not kind.solves_head and config.radius is None


def default_radii(
    config: FinetuneConfig, task: Task, loaded: LoadedModel, device: torch.device
) -> dict[str, float]:
    """Return {layer: radius}, the last layer as `head`, in the run's norm.

    Args:
        config: The resolved configuration; the method's options `head_share` and `layer_share` count.
        task: With the labels to be trained on.
        loaded: The network at its reference, frozen but for what trains; it is left as it is.
        device: Where features are computed.
    """
    shares = {name: option.default for name, option in RADII.items()} | (config.method_options or {})
    start = Reference.of(loaded.model)
    trained = {name for name, parameter in loaded.model.named_parameters() if parameter.requires_grad}
    heads = set(loaded.head_layers)
    others = [name for name in start.layers() if name in trained and name not in heads]
    found = {
        name: max(shares["layer_share"] * weight_norm(start[name], config.norm), LEAST) for name in others
    }
    if others and not heads & trained:
        return found
    fitted, radius = penalised_head_of(config, task, loaded, device), UNFITTED
    if fitted is not None:
        weight = torch.from_numpy(fitted[1]).T
        radius = max(shares["head_share"] * weight_norm(weight, config.norm), LEAST)
    return {**found, "head": BESIDE * radius if others else radius}
