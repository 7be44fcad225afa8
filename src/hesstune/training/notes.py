"""What a run says of its options: which were changed, and which have no effect on it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import nn

from hesstune.data.examples import Task
from hesstune.methods import method_class
from hesstune.methods._losses import clean_shares
from hesstune.methods.constrained import RADII, Robust, unused_radius_options
from hesstune.methods.robust_losses import Consistent
from hesstune.models.load import LoadedModel
from hesstune.noise.matrix import NoiseMatrix, identifiability_notes
from hesstune.runs.config import FinetuneConfig
from hesstune.runs.data_record import content_digests
from hesstune.storage.seen_examples import SeenExamples

__all__ = ["OF_STEPS", "changed_options", "run_notes", "seen_notes", "written"]

# Options that say how steps are taken.
OF_STEPS = (
    "epochs", "batch_size", "optimizer", "weight_decay", "momentum", "schedule", "lr_warmup",
    "accumulate", "grad_clip", "mixed_precision", "augment", "augment_views", "radius", "radius_scale",
    "norm",
)  # fmt: skip


def run_notes(
    config: FinetuneConfig,
    task: Task,
    loaded: LoadedModel,
    noise_matrix: NoiseMatrix | None,
    counts: NDArray[np.int64],
    injected: NoiseMatrix | None = None,
) -> list[str]:
    """Return what a user of these options should know: no option is changed or left unused in silence.

    Args:
        config: The resolved configuration.
        task: The examples.
        loaded: The network.
        noise_matrix: What is believed about the labels.
        counts: (K,) how many training examples carry each label.
        injected: The noise matrix of the noise that was injected.
    """
    kind, notes = method_class(config.method), list(loaded.notes)
    if injected is not None:
        weak = identifiability_notes(injected.array, task.classes)
        notes += [f"the injected noise: {note}" for note in weak]
    usual = FinetuneConfig.model_fields["warmup_epochs"].default
    if kind.warms_up and config.warmup_epochs == config.epochs - 1 and config.epochs <= usual:
        notes.append(
            f"the warm-up takes {config.warmup_epochs} of {config.epochs} epoch"
            f"{'s' * (config.epochs > 1)}: the usual {usual} would leave none to the method's own loss"
        )
    balanced = "balanced" in (config.class_weights, config.sampler)
    if balanced and issubclass(kind, Consistent | Robust) and noise_matrix is not None:
        _, raised = clean_shares(noise_matrix, counts)
        notes += [
            f"by its labels and the noise matrix, class '{task.classes[k]}' has hardly an example; its "
            "weight is bounded by the standard error of its share"
            for k in raised
        ]
    notes += [
        f"{why}: no effect of {written(names)}" for why, names in _unused(config, task, loaded) if names
    ]
    if kind.constrained and not kind.solves_head:
        given = config.method_options or {}
        own = [n for n in unused_radius_options(config.radius, config.head_only) if n in kind.own_options]
        own = [n for n in own if given.get(n, RADII[n].default) != RADII[n].default]
        why = "the head alone is trained" if config.radius is None else "radii are given"
        if own:
            notes.append(f"{why}: no effect of the method options {', '.join(own)}")
    if config.patience is not None and config.patience >= config.epochs and not kind.solves_head:
        notes.append(f"a patience of {config.patience} cannot end {config.epochs} epochs early")
    return notes


def seen_notes(task: Task, seen: SeenExamples) -> list[str]:
    """Return how many validation and test examples the weights that training starts from have seen.

    Args:
        task: The examples.
        seen: Those that the weights have seen.
    """
    if not seen.count:
        return []
    notes = []
    for name, part in (("validation", task.val), ("test", task.test)):
        if count := int(seen.contain(content_digests(part, anew=False)).sum()):
            notes.append(
                f"the weights that training starts from have seen {count} of the {len(part)} {name} "
                f"examples: {name} accuracy is too high"
            )
    return notes


def written(names: list[str]) -> str:
    """Return options as the command line writes them."""
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def changed_options(config: FinetuneConfig, *names: str) -> list[str]:
    """Return those of some options that are not at their defaults, or at what stands for none."""
    return [
        n for n in names if (getattr(config, n) or None) != (FinetuneConfig.model_fields[n].default or None)
    ]


def _unused(config: FinetuneConfig, task: Task, loaded: LoadedModel) -> list[tuple[str, list[str]]]:
    kind = method_class(config.method)
    found: list[tuple[str, list[str]]] = []
    if not kind.constrained:
        balls = changed_options(config, "radius", "radius_scale", "norm")
        found.append((f"method '{config.method}' holds no layer in a ball", balls))
    if not kind.warms_up:
        found.append((f"method '{config.method}' has no warm-up", changed_options(config, "warmup_epochs")))
    if config.optimizer != "sgd":
        found.append((f"the optimizer is {config.optimizer}", changed_options(config, "momentum")))
    if config.inject_noise is None:
        found.append(("no noise is injected", changed_options(config, "clean_val")))
    if task.is_text:
        of_images = changed_options(config, "augment", "augment_views", "mean", "std", "skip_bad_images")
        found.append(("the examples are texts", of_images))
    else:
        found.append(("the examples are images", changed_options(config, "max_length")))
        if config.head_alone or config.augment in ("none", "flip"):
            found.append(("images are not shifted", changed_options(config, "augment_views")))
    if task.train.votes is None:
        found.append(("the labels come from no votes", changed_options(config, "label_model")))
    if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in loaded.model.modules()):
        found.append(("the network has no batch norm", changed_options(config, "batch_norm")))
    return found
