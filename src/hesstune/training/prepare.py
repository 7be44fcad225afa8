"""Everything a run needs, loaded and checked before anything is written, with notes on the options."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hesstune.constraints.distance import resolve_radii
from hesstune.data.examples import Task
from hesstune.errors import ConfigError
from hesstune.inputs.batches import make_inputs, to_channels_last
from hesstune.methods import method_class
from hesstune.methods._base import SolvedHead, clean_shares
from hesstune.methods.constrained import RADII, Robust, unused_radius_options
from hesstune.methods.robust_losses import Consistent
from hesstune.models.heads import check_learnable, freeze, trains_head_only
from hesstune.models.load import LoadedModel, ModelObject, check_output, load_model
from hesstune.noise.matrix import NoiseMatrix, identifiability_notes
from hesstune.reference import layer_names
from hesstune.runs.config import FinetuneConfig, usual_lr
from hesstune.runs.integrity import DataRecord, content_digests
from hesstune.runs.loading import clean_task, injected_noise, noisy
from hesstune.runs.records import NoiseMatrixRecord
from hesstune.runs.run import Run, SourceObjects
from hesstune.runtime.device import pick_device
from hesstune.runtime.distributed import world
from hesstune.storage.seen_examples import SeenExamples
from hesstune.training.estimates import (
    default_radii,
    found_noise,
    has_default_radii,
    run_estimate,
    solved_head,
    with_head_penalty,
)
from hesstune.training.trainer import BatchOrder

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
        noise_matrix: F, or None.
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
    """Return how many validation and test examples the weights that training starts from have seen."""
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
        unused = changed_options(config, "radius", "radius_scale", "norm")
        found.append((f"method '{config.method}' has no distance constraint", unused))
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


# Options that are chosen from the training examples unless the user gives them.
CHOSEN_FROM_EXAMPLES = ("weight_decay", "patience")
# Epochs without a gain after which deeper layers end where labels are noisy, and nobody said.
PATIENCE = 4


@dataclass(frozen=True)
class Prepared:
    """Everything a run needs, loaded before anything is written.

    Attributes:
        config: The resolved configuration.
        task: The examples, labelled as they are trained on.
        loaded: The network at its start.
        injected: The noise put into the labels, if any.
        noise_matrix: F, known or estimated, or None.
        device: Where to train.
        radius: The constraint radii, if fixed.
        estimate: What an estimated noise matrix was made from.
        given: Data and model, where they were objects.
        notes: What was changed, or had no effect, of what was asked for.
        solved: The head that the method solved from frozen features, or None.
        chosen_options: Options of `config` that were chosen from the examples.
    """

    config: FinetuneConfig
    task: Task
    loaded: LoadedModel
    injected: NoiseMatrix | None
    noise_matrix: NoiseMatrix | None
    device: torch.device
    radius: float | dict[str, float] | None
    estimate: NoiseMatrixRecord | None = None
    given: SourceObjects = field(default_factory=SourceObjects)
    notes: list[str] = field(default_factory=list)
    solved: SolvedHead | None = None
    chosen_options: list[str] = field(default_factory=list)

    def record(self) -> DataRecord:
        """Return the record of the examples, as they are now."""
        return DataRecord.of(self.task, self.config, self.given.data)

    def seen(self) -> SeenExamples:
        """Return the examples that the trained weights will have seen: the run's, and those of its start."""
        own = (content_digests(part, anew=False) for part in (self.task.train, self.task.val))
        return self.loaded.seen | SeenExamples.of(own)

    @classmethod
    def of(cls, run: Run, task: Task, device: torch.device) -> Prepared:
        """Return what a finished run started from, with these examples; see `choose_from_examples`."""
        config = run.config
        injected = injected_noise(config, task)
        loaded = replace(run.loaded(), seen=run.seen_by_start())
        run.reference().restore_(loaded.model)
        to_channels_last(loaded.model, device)
        freeze(loaded.model, config.train, loaded.heads)
        radius = None if isinstance(config.radius, str) else named_radii(config.radius, loaded)
        # What was found with a solved head is of all the run's examples, and not for some of them.
        found = method_class(config.method).solves_head and config.noise_matrix is None
        known = None if found else run.noise_matrix
        return cls(config, task, loaded, injected, known, device, radius, given=run.given)


def prepare(
    config: FinetuneConfig, kept: Path | None = None, given: SourceObjects | None = None, errors: bool = True
) -> Prepared:
    """Load examples, labels and network, and check all that can be checked before anything is written.

    Args:
        config: The resolved configuration.
        kept: An earlier pass's estimate of the noise matrix, which is taken where it is there.
        given: Examples or network that are made already, instead of those that the configuration names;
            the network is copied.
        errors: Whether an estimate of the noise has its errors beside it, which may take as long again.
    """
    given = given or SourceObjects()
    device = pick_device(config.device)
    if config.mixed_precision == "fp16" and device.type == "cpu":
        raise ConfigError("mixed precision fp16 needs a GPU; use bf16 or no")
    task = clean_task(config, given.data)
    check_automatic(config, len(task.val), world())
    solves = method_class(config.method).solves_head
    if (config.patience or config.select == "best") and not len(task.val) and not solves:
        raise ConfigError("early stopping and --select best need validation examples; there are none")
    injected = injected_noise(config, task)
    noise_matrix = _known_noise_matrix(config, task, injected)
    loaded = _loaded(config, given, task)
    asked, config = config.train, as_trained(config, loaded)
    config.check_trained(task.is_text)
    to_channels_last(loaded.model, device)
    freeze(loaded.model, config.train, loaded.heads)
    radius = None if isinstance(config.radius, str) else named_radii(config.radius, loaded)
    if radius is not None:
        resolve_radii(layer_names(loaded.model), radius)  # refuses a wrong pattern early
    few = np.arange(min(2, len(task.train)))
    probe = make_inputs(task.train.take(few), loaded, device, max_length=config.max_length)
    check_output(loaded.model, probe.inputs(few), task.k)
    check_learnable(loaded.model, loaded.heads, probe.inputs(few))
    task, estimate = noisy(task, injected, config), None
    if (config.noise_matrix or "").startswith("estimate"):
        noise_matrix, estimate = run_estimate(config, task, loaded, device, kept, errors)
    labels = task.train.labels
    assert labels is not None
    counts = np.bincount(labels, minlength=task.k)
    BatchOrder(config, counts, labels)  # refuses what it cannot do before anything is written
    notes = run_notes(config, task, loaded, noise_matrix, counts, injected) + seen_notes(task, loaded.seen)
    if asked != config.train:
        notes.insert(0, f"--train {asked} trains the head alone in this network, as --train head does")
    return choose_from_examples(
        Prepared(config, task, loaded, injected, noise_matrix, device, radius, estimate, given, notes)
    )


def _loaded(config: FinetuneConfig, given: SourceObjects, task: Task) -> LoadedModel:
    """Load the network that a run starts from."""
    return load_model(
        config.model if given.model is None else given.model,
        task.k,
        weights=config.weights,
        head_init=config.head_init,
        mean=tuple(config.mean) if config.mean else None,
        std=tuple(config.std) if config.std else None,
        text=task.is_text,
        head=config.head,
        dtype=config.dtype,
        image_size=config.image_size,
    )


def as_trained(
    config: FinetuneConfig, model: LoadedModel | ModelObject | str, k: int = 2, text: bool = False
) -> FinetuneConfig:
    """Return a resolved configuration whose `train` is `head` if it names the head's parameters alone.

    Defaults depend on which parameters are trained, and only the network tells which `train` names.

    Args:
        config: The resolved configuration.
        model: The network as loaded, or what `load_model` makes it of; its weights are not needed.
        k: Number of classes.
        text: Whether the examples are texts.

    Raises:
        HesstuneError: If the network cannot be loaded, or `train` names none of its parameters.
    """
    if config.head_only:
        return config
    if not isinstance(model, LoadedModel):
        with torch.random.fork_rng(devices=[]):
            model = load_model(
                model,
                k,
                weights=config.weights,
                text=text,
                pretrained=False,
                head=config.head,
                image_size=config.image_size,
            )
    return config.as_head_only() if trains_head_only(model.model, config.train, model.heads) else config


def choose_from_examples(prepared: Prepared) -> Prepared:
    """Return the same with what is chosen from its training examples: penalty, radii, and a solved head.

    Options that are chosen already stay.
    """
    task, loaded, device, radius = prepared.task, prepared.loaded, prepared.device, prepared.radius
    opened = {name for name in CHOSEN_FROM_EXAMPLES if getattr(prepared.config, name) is None}
    config, more = with_head_penalty(prepared.config, task, loaded, device)
    if radius is None and has_default_radii(config):
        radius = named_radii(default_radii(config, task, loaded, device), loaded)
    found = replace(
        prepared,
        config=config,
        radius=radius,
        notes=[*prepared.notes, *more],
        chosen_options=sorted({*prepared.chosen_options, *opened}),
    )
    return _with_solved_head(found) if method_class(config.method).solves_head else found


def _known_noise_matrix(
    config: FinetuneConfig, task: Task, injected: NoiseMatrix | None
) -> NoiseMatrix | None:
    """Return the known noise matrix of a run; an estimated one comes later."""
    wanted = config.noise_matrix or ""
    if wanted == "true":
        return None if injected is None else injected.check_identifiable(task.classes)
    if not wanted or wanted.startswith("estimate"):
        return None
    return NoiseMatrix.parse(wanted, task.k, task.classes)


def _with_solved_head(prepared: Prepared) -> Prepared:
    """Return the same with the head that the run's method solves, and the noise that was found with it."""
    config, task, noise_matrix = prepared.config, prepared.task, prepared.noise_matrix
    solved = solved_head(config, task, prepared.loaded, prepared.device, noise_matrix)
    config, more = _with_validation_rule(config, task, solved)
    changed: dict[str, Any] = {"config": config, "notes": [*prepared.notes, *more], "solved": solved}
    if solved is not None and noise_matrix is None:
        changed["noise_matrix"] = solved.noise_matrix
        changed["estimate"] = found_noise(solved, config, len(task.train))
    return replace(prepared, **changed)


def _with_validation_rule(
    config: FinetuneConfig, task: Task, solved: SolvedHead | None
) -> tuple[FinetuneConfig, list[str]]:
    """Return the configuration of a run from a solved head, and what its user should know."""
    notes: list[str] = []
    deeper = not config.head_alone
    goes_on = solved is None or (deeper and config.budget != "fast" and bool(len(task.val)))
    if solved is None:
        notes.append(
            "the head is not a linear layer on the network's own features, so none was solved: plain "
            "fine-tuning, the best epoch on validation kept"
        )
    elif deeper and config.budget == "fast":
        notes.append("the budget is fast: the head alone was fitted")
    elif deeper and not len(task.val):
        notes.append("there are no validation examples for deeper layers: the head alone was fitted")
    unused = changed_options(config, *OF_STEPS)
    unused += ["lr"] if config.lr != usual_lr(config.head_only) else []
    if unused and not goes_on:
        notes.append(f"a head that is solved takes no steps: no effect of {written(unused)}")
    if not len(task.val):
        config = config.model_copy(update={"select": "last", "patience": None})
    elif goes_on and config.patience is None and config.select == "best":
        if solved is None or solved.noise_matrix is not None:
            config = config.model_copy(update={"patience": PATIENCE})
        else:
            notes.append("no noise was found in the labels: deeper layers are trained to the last epoch")
    return config, notes


def check_automatic(config: FinetuneConfig, validation: int, processes: int) -> None:
    """Raise ConfigError if the radii are to be chosen where they cannot be."""
    if config.radius != "auto":
        return
    if not validation:
        raise ConfigError("--radius auto needs validation examples; there are none: give --radius NUMBER")
    if processes > 1:
        raise ConfigError("--radius auto runs in one process; choose first, then give --radius its result")


def named_radii(
    radius: float | dict[str, float] | None, loaded: LoadedModel
) -> float | dict[str, float] | None:
    """Return the radii with the word `head` replaced by the head's layer name."""
    if not isinstance(radius, dict):
        return radius
    found: dict[str, float] = {}
    for name, value in radius.items():
        found |= dict.fromkeys(loaded.head_layers if name == "head" else [name], value)
    return found
