"""Everything a run needs, loaded and checked before anything is written, with notes on the options."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hesstune.constraints.distance import resolve_radii, weight_norm
from hesstune.data.examples import Task
from hesstune.errors import ConfigError, DataError, ModelError, RunError
from hesstune.inputs.batches import make_inputs, to_channels_last
from hesstune.methods import Method
from hesstune.methods._base import HeadMaterial, SolvedHead, balanced_rates, clean_shares
from hesstune.methods.constrained import RADII, Robust, unused_radius_options
from hesstune.methods.robust_losses import Consistent
from hesstune.models.adapters import LoraSize, check_adapters
from hesstune.models.heads import check_learnable, freeze, trains_head_only
from hesstune.models.load import LoadedModel, ModelObject, check_output, load_model, spec_parts
from hesstune.models.networks import LINEAR
from hesstune.noise.estimate import Estimate, parse_request
from hesstune.noise.latent.copies import example_groups
from hesstune.noise.matrix import NoiseMatrix, identifiability_notes
from hesstune.options import Options
from hesstune.reference import Reference, layer_names
from hesstune.runs.config import FinetuneConfig, usual_lr
from hesstune.runs.integrity import DataRecord, content_digests
from hesstune.runs.loading import clean_task, injected_noise, noisy
from hesstune.runs.records import NoiseMatrixRecord
from hesstune.runs.run import Run, SourceObjects
from hesstune.runtime.device import pick_device
from hesstune.runtime.distributed import world
from hesstune.storage.seen_examples import SeenExamples
from hesstune.storage.stored import read_record
from hesstune.training import estimates
from hesstune.training.trainer import BatchOrder

# Options that are chosen from the training examples unless the user gives them.
CHOSEN_FROM_EXAMPLES = ("weight_decay", "patience")
# Epochs without improvement after which training of deeper layers stops if labels are noisy, by default.
PATIENCE = 4
# The least radius of a layer, and the radius of a head that cannot be fitted.
LEAST_RADIUS, UNFITTED_RADIUS = 1e-6, 2.0
# The radius of a head that is trained with other layers, as a share of that of a head alone.
BESIDE = 0.25
# Options of optimizer steps.
OF_STEPS = (
    "epochs", "batch_size", "optimizer", "lora", "weight_decay", "momentum", "schedule", "lr_warmup",
    "accumulate", "grad_clip", "mixed_precision", "augment", "augment_views", "radius", "radius_scale",
    "norm",
)  # fmt: skip
Radius = float | dict[str, float] | None


@dataclass(frozen=True)
class Prepared:
    """Everything a run needs, loaded before anything is written."""

    config: FinetuneConfig  # Resolved
    task: Task  # With the labels that are trained on
    loaded: LoadedModel  # The network at its start
    injected: NoiseMatrix | None  # The noise injected into the labels
    noise_matrix: NoiseMatrix | None  # F, known or estimated
    device: torch.device
    radius: Radius  # The constraint radii, if fixed
    given: SourceObjects = field(default_factory=SourceObjects)
    estimate: NoiseMatrixRecord | None = None  # The record of an estimated noise matrix
    notes: list[str] = field(default_factory=list)  # Options that were changed or have no effect
    solved: SolvedHead | None = None  # The head that the method solved from frozen features
    chosen_options: list[str] = field(default_factory=list)  # Options that were chosen from the examples

    @property
    def kind(self) -> type[Method]:
        """The class of the method."""
        return self.config.kind

    @property
    def adapter_size(self) -> LoraSize | None:
        """The size of the adapters that are trained in place of layers, or None."""
        return self.kind.adapter_size(self.config.lora, self.config.method_options)

    def record(self) -> DataRecord:
        """Return the record of the examples, as they are now."""
        return DataRecord.of(self.task, bool(self.config.inject_noise), self.given.data)

    def seen(self) -> SeenExamples:
        """Return the examples that the trained weights will have seen: the run's, and those of its start."""
        own = (content_digests(part, anew=False) for part in (self.task.train, self.task.val))
        return self.loaded.seen | SeenExamples.of(own)

    @classmethod
    def of(cls, run: Run, task: Task, device: torch.device) -> Prepared:
        """Return what a finished run started from, with these examples; see `choose_from_examples`."""
        config = run.config
        loaded = replace(run.loaded(), seen=run.seen_by_start())
        run.reference().restore_(loaded.model)
        to_channels_last(loaded.model, device)
        freeze(loaded.model, config.train, loaded.heads)
        # A matrix found with a solved head is of all the run's examples, not of some of them.
        known = None if config.kind.solves_head and config.noise_matrix is None else run.noise_matrix
        injected = injected_noise(task, config, config.seed)
        return cls(
            config, task, loaded, injected, known, device, named_radii(config.radius, loaded), run.given
        )

    def features(self) -> NDArray[np.float32] | None:
        """Return the head's inputs for the training examples, (N, D); None if it is no linear head."""
        part, k = self.task.train, self.task.k
        return estimates.head_features(self.loaded, part, k, self.device, self.config.max_length)

    def penalised_head(self) -> tuple[float, NDArray[np.float64]] | None:
        """Return the `penalised_head` of the training examples; None if none can be fitted."""
        features, part = self.features(), self.task.train
        if features is None or len(part) < estimates.FOLDS:
            return None
        assert part.labels is not None
        soft = part.soft if self.config.soft_labels else None
        targets = np.eye(self.task.k)[part.labels] if soft is None else soft
        return estimates.penalised_head(features, targets, self.config.seed, part.copies)

    def default_radii(self) -> dict[str, float]:
        """Return {layer: radius}, the last layer as `head`, in the run's norm.

        The method's options `head_share`, `layer_share` and `stopped_factor` count.
        """
        norm = self.config.norm
        shares = {name: one.default for name, one in RADII.items()} | (self.config.method_options or {})
        factor = shares.get("stopped_factor", 1.0) if self.config.select == "best" else 1.0
        start = Reference.of(self.loaded.model)
        trained = {name for name, p in self.loaded.model.named_parameters() if p.requires_grad}
        heads = set(self.loaded.head_layers)
        others = [name for name in start.layers() if name in trained and name not in heads]
        share = factor * shares["layer_share"]
        found = {n: max(share * weight_norm(start[n], norm), LEAST_RADIUS) for n in others}
        if others and not heads & trained:
            return found
        fitted, radius = self.penalised_head(), UNFITTED_RADIUS
        if fitted is not None:
            weight = torch.from_numpy(fitted[1]).T
            radius = max(shares["head_share"] * weight_norm(weight, norm), LEAST_RADIUS)
        return {**found, "head": factor * BESIDE * radius if others else radius}


def prepare(
    config: FinetuneConfig, given: SourceObjects, kept: Path | None = None, errors: bool = True
) -> Prepared:
    """Load examples, labels and network, and check all that can be checked before anything is written.

    Args:
        config: The resolved configuration.
        given: Examples or network that replace those that the configuration names; the network is copied.
        kept: The file of an estimated noise matrix, which is used if it fits.
        errors: Whether to estimate the errors of an estimated noise matrix, too.
    """
    device = pick_device(config.device)
    if config.mixed_precision == "fp16" and device.type == "cpu":
        raise ConfigError("mixed precision fp16 needs a GPU; use bf16 or no")
    task = clean_task(config, config.seed, given.data)
    config = _for_parts(config, task)
    injected = injected_noise(task, config, config.seed)
    noise_matrix = _known_noise_matrix(config.noise_matrix or "", task, injected)
    config, loaded, notes = _load_network(config, given.model, task)
    to_channels_last(loaded.model, device)
    freeze(loaded.model, config.train, loaded.heads)
    radius = named_radii(config.radius, loaded)
    if radius is not None:
        resolve_radii(layer_names(loaded.model), radius)  # refuses a wrong pattern early
    few = np.arange(min(2, len(task.train)))
    probe = make_inputs(task.train.take(few), loaded, device, max_length=config.max_length).inputs(few)
    check_output(loaded.model, probe, task.k)
    check_learnable(loaded.model, loaded.heads, probe)
    task = noisy(task, injected, config, config.seed, config.limit is not None)
    prepared = Prepared(config, task, loaded, injected, noise_matrix, device, radius, given)
    if (size := prepared.adapter_size) is not None:
        layers, count = check_adapters(loaded.model, loaded.heads, size, probe)
        total = sum(p.numel() for p in loaded.model.parameters())
        notes.append(
            f"adapters of rank {size.rank} in {len(layers)} layers: {count} weights are trained, with those "
            f"of the head; the network has {total}"
        )
    if (config.noise_matrix or "").startswith("estimate"):
        prepared = _with_estimated_noise(prepared, kept, errors)
    assert task.train.labels is not None
    counts = np.bincount(task.train.labels, minlength=task.k)
    # Refuses what it cannot do.
    BatchOrder(config, config.seed, config.batch_norm == "adapt", counts, task.train.labels)
    notes += [*_option_notes(prepared, counts), *_seen_notes(task, loaded.seen)]
    return choose_from_examples(replace(prepared, notes=notes))


def _for_parts(config: FinetuneConfig, task: Task) -> FinetuneConfig:
    """Return the configuration without a method's default early stopping if nothing can be validated.

    Raises:
        ConfigError: If options need validation examples or votes that are not there, or one process.
    """
    asked = config.kind.solves_head or {"patience", "select"} & config.model_fields_set
    if not len(task.val) and config.kind.constrained and not asked:
        config = config.model_copy(update={"select": "last", "patience": None})
    if config.radius == "auto" and not len(task.val):
        raise ConfigError("--radius auto needs validation examples; there are none: give --radius NUMBER")
    if config.radius == "auto" and world() > 1:
        raise ConfigError("--radius auto runs in one process; choose first, then give --radius its result")
    if (config.patience or config.select == "best") and not len(task.val) and not config.kind.solves_head:
        raise ConfigError("early stopping and --select best need validation examples; there are none")
    if config.measure_every is not None and not len(task.val):
        raise ConfigError("--measure-every measures validation examples; there are none: leave it out")
    if config.kind.needs_votes and task.train.votes is None:
        raise ConfigError(
            f"method '{config.method}' needs votes, which {config.data} has not: give columns vote_… of csv "
            "data, or --vote-columns NAME,NAME"
        )
    return config


def _known_noise_matrix(wanted: str, task: Task, injected: NoiseMatrix | None) -> NoiseMatrix | None:
    """Return the noise matrix of the option `noise_matrix`; None if it is to be estimated."""
    if wanted == "true":
        return None if injected is None else injected.check_identifiable(task.classes)
    if not wanted or wanted.startswith("estimate"):
        return None
    return NoiseMatrix.parse(wanted, task.k, task.classes)


def _load_network(
    config: FinetuneConfig, given: ModelObject | None, task: Task
) -> tuple[FinetuneConfig, LoadedModel, list[str]]:
    """Load the network; return it with the options that its kind and the data's kind decide, and notes.

    Feature vectors have a linear head; texts have the network for texts if no other is given.
    """
    vectors, notes = task.train.vectors, list[str]()
    if vectors is not None:
        if given is not None:
            raise ConfigError("the data holds feature vectors, the input of a linear head: leave model out")
        config, notes = config.on_features(vectors.width)
    elif given is None and spec_parts(config.model)[0] == LINEAR:
        raise ModelError(
            f"model '{config.model}' is a linear head on feature vectors, and the data holds "
            f"{'texts' if task.is_text else 'images'}; name another model"
        )
    elif task.is_text:
        config, notes = config.on_texts()
    loaded = load_model(
        config.model if given is None else given,
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
    asked, config = config.train, as_trained(config, loaded)
    if asked != config.train:
        notes.insert(0, f"--train {asked} trains the head alone in this network, as --train head does")
    config.check_trained(task.is_text)
    return config, loaded, notes


def as_trained(
    config: FinetuneConfig, model: LoadedModel | ModelObject | str, k: int = 2, text: bool = False
) -> FinetuneConfig:
    """Return a resolved configuration whose `train` is `head` if it names the head's parameters alone.

    Defaults depend on which parameters are trained, and only the network tells which `train` names. It is
    given loaded, or as what `load_model` loads; its weights are not needed.
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


def named_radii(radius: Radius | str, loaded: LoadedModel) -> Radius:
    """Return the radii with the word `head` replaced by the head's layer name; None if they are not fixed."""
    if not isinstance(radius, dict):
        return None if isinstance(radius, str) else radius
    found: dict[str, float] = {}
    for name, value in radius.items():
        found |= dict.fromkeys(loaded.head_layers if name == "head" else [name], value)
    return found


def _with_estimated_noise(prepared: Prepared, kept: Path | None, errors: bool) -> Prepared:
    """Return the same with an estimated noise matrix; a resumed run reads it from its folder."""
    config, task, part = prepared.config, prepared.task, prepared.task.train
    digest = hashlib.sha256("\n".join(part.ids).encode())
    for array in (part.labels, part.given, part.clean, part.soft, part.votes and part.votes.table):
        digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
    made_from = {
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
    if kept is not None:
        with contextlib.suppress(RunError):  # a damaged record is made again
            record = read_record(kept, NoiseMatrixRecord)
            if record is not None and record.made_from == made_from:
                matrix = NoiseMatrix(record.matrix, record.origin or "estimated")
                return replace(prepared, noise_matrix=matrix, estimate=record)
    if len(part) < 2 * task.k:
        raise DataError(
            f"{len(part)} training examples are too few to estimate the noise of {task.k} classes"
        )
    material = estimates.gather(
        part,
        task.k,
        prepared.loaded,
        prepared.device,
        max_length=config.max_length,
        soft_labels=config.soft_labels,
        seed=config.seed,
    )
    found = estimates.estimated(parse_request(str(config.noise_matrix)), material, config.seed, errors)
    record = NoiseMatrixRecord(**found.to_dict(), classes=task.classes, made_from=made_from)
    return replace(prepared, noise_matrix=found.matrix, estimate=record)


# -- what is chosen from the training examples -------------------------------------------------


def choose_from_examples(prepared: Prepared) -> Prepared:
    """Return the same with what is chosen from its training examples: penalty, radii, and a solved head.

    Options that are chosen already stay.
    """
    config, kind = prepared.config, prepared.kind
    opened = {name for name in CHOSEN_FROM_EXAMPLES if getattr(config, name) is None}
    found = replace(prepared, chosen_options=sorted({*prepared.chosen_options, *opened}))
    if config.weight_decay is None:
        found = _with_head_penalty(found)
    if found.radius is None and kind.constrained and not kind.solves_head and config.radius is None:
        found = replace(found, radius=named_radii(found.default_radii(), found.loaded))
    return _with_solved_head(found) if kind.solves_head else found


def _with_head_penalty(prepared: Prepared) -> Prepared:
    """Return the same with the weight decay that cross-validation finds; 0 if no head can be fitted.

    It is a penalty of the loss, as the weight decay of adam; that of adamw is apart from the loss.
    """
    decay, notes, fitted = 0.0, list(prepared.notes), prepared.penalised_head()
    if fitted is not None:
        share = prepared.kind.head_penalty
        decay = share * fitted[0]
        part_of = "" if share == 1 else f"{share:g} times what was found for cross-entropy "
        notes.append(
            f"weight decay {decay:.2g}, {part_of}by cross-validation on the labels as given; --weight-decay "
            "0 trains the head without a penalty"
        )
    changes: dict[str, object] = {"weight_decay": decay}
    if decay and prepared.config.optimizer == "adamw":
        changes["optimizer"] = "adam"
        notes.append(
            "the optimizer is adam, not adamw: the weight decay found by cross-validation is a penalty of "
            "the loss, and adamw decays weights apart from the loss; to use adamw give --weight-decay"
        )
    return replace(prepared, config=prepared.config.model_copy(update=changes), notes=notes)


def _with_solved_head(prepared: Prepared) -> Prepared:
    """Return the same with the head that the run's method solves, and the noise that was found with it."""
    config, task = prepared.config, prepared.task
    solved = _solved_head(prepared)
    config, more = _with_validation_rule(config, task, solved)
    found = replace(prepared, config=config, notes=[*prepared.notes, *more], solved=solved)
    if solved is None or prepared.noise_matrix is not None:
        return found
    estimate = None
    if solved.noise_matrix is not None and config.noise_matrix is None:
        n = len(task.train)
        fit = Estimate(solved.noise_matrix, "em", n, notes=(f"found with the head: {solved.reason}",))
        made_from = {"estimate": "em", "model": config.model, "seed": config.seed, "examples": n}
        estimate = NoiseMatrixRecord(**fit.to_dict(), made_from=made_from)
    return replace(found, noise_matrix=solved.noise_matrix, estimate=estimate)


def _solved_head(prepared: Prepared) -> SolvedHead | None:
    """Return the head that the run's method solves, with the seconds it took once features were computed."""
    config, task, part, features = prepared.config, prepared.task, prepared.task.train, prepared.features()
    if features is None:
        return None
    assert part.labels is not None
    groups, weight = example_groups(features, part.copies), None
    if config.sampler == "balanced":  # without batches, each class counts the same
        share = 1.0 / np.bincount(groups)[groups]  # copies of an example count as one
        weight = balanced_rates(np.bincount(part.labels, share, task.k))[part.labels]
    material = HeadMaterial(
        features.astype(np.float64),
        part.labels if part.given is None else part.given,
        task.k,
        part.soft if config.soft_labels else estimates.votes_given(part, task.k),
        estimates.checked_rows(part),
        prepared.noise_matrix,
        weight,
        config.budget,
        config.seed,
        part.votes,
        groups,
    )
    started = time.monotonic()
    found = prepared.kind.solve_head(material)
    return replace(found, details={**found.details, "seconds": round(time.monotonic() - started, 3)})


def _with_validation_rule(
    config: FinetuneConfig, task: Task, solved: SolvedHead | None
) -> tuple[FinetuneConfig, list[str]]:
    """Return the configuration of a run from a solved head, and notes for the user."""
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
    unused = _changed(config, *OF_STEPS)
    usual = usual_lr(config.head_only, config.model, config.lora is not None)
    unused += ["lr"] if config.lr != usual else []
    if unused and not goes_on:
        notes.append(f"a head that is solved takes no steps: no effect of {_written(unused)}")
    if not len(task.val):
        config = config.model_copy(update={"select": "last", "patience": None})
    elif goes_on and config.patience is None and config.select == "best":
        if solved is None or solved.noise_matrix is not None:
            config = config.model_copy(update={"patience": PATIENCE})
        else:
            notes.append("no noise was found in the labels: deeper layers are trained to the last epoch")
    return config, notes


# -- notes on options --------------------------------------------------------------------------


def _option_notes(prepared: Prepared, counts: NDArray[np.int64]) -> list[str]:
    """Return what a user of these options should know; `counts` are of the training labels, (K,)."""
    config, kind, task, noise_matrix = prepared.config, prepared.kind, prepared.task, prepared.noise_matrix
    notes = list(prepared.loaded.notes)
    if prepared.injected is not None:
        weak = identifiability_notes(prepared.injected.array, task.classes)
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
    notes += _unused(prepared)
    if kind.constrained and not kind.solves_head:
        given = config.method_options or {}
        own = [n for n in unused_radius_options(config.radius, config.head_only) if n in kind.own_options]
        own = [n for n in own if given.get(n) not in (None, kind.own_options[n].default)]
        why = "the head alone is trained" if config.radius is None else "radii are given"
        if own:
            notes.append(f"{why}: no effect of the method options {', '.join(own)}")
    asked = not kind.solves_head and "patience" in config.model_fields_set
    if asked and config.patience is not None and config.patience >= config.epochs:
        notes.append(f"a patience of {config.patience} cannot end {config.epochs} epochs early")
    return notes


def _seen_notes(task: Task, seen: SeenExamples) -> list[str]:
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


def _written(names: list[str]) -> str:
    """Return options as the command line writes them."""
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def _changed(options: Options, *names: str) -> list[str]:
    """Return those of some options that are not at their defaults; 0, False and None count as the same."""
    fields = type(options).model_fields
    return [n for n in names if (getattr(options, n) or None) != (fields[n].default or None)]


def _unused(prepared: Prepared) -> Iterator[str]:
    """Yield a note for each reason why options that were changed have no effect."""
    config, kind, task = prepared.config, prepared.kind, prepared.task
    images = task.kind == "image"
    unshifted = images and (config.head_alone or config.augment in ("none", "flip"))
    norms = (isinstance(m, nn.modules.batchnorm._BatchNorm) for m in prepared.loaded.model.modules())
    method = f"method '{config.method}' has no"
    for applies, reason, names in (
        (not kind.constrained, f"{method} distance constraint", ("radius", "radius_scale", "norm")),
        (not kind.warms_up, f"{method} warm-up", ("warmup_epochs",)),
        (config.optimizer != "sgd", f"the optimizer is {config.optimizer}", ("momentum",)),
        (config.inject_noise is None, "no noise is injected", ("clean_val",)),
        (
            not images,
            f"the examples are {'texts' if task.is_text else 'feature vectors'}",
            ("augment", "augment_views", "mean", "std", "skip_bad_images"),
        ),
        (not task.is_text, f"the examples are {'images' if images else 'feature vectors'}", ("max_length",)),
        (unshifted, "images are not shifted", ("augment_views",)),
        (task.train.votes is None, "the labels come from no votes", ("label_model",)),
        (not any(norms), "the network has no batch norm", ("batch_norm",)),
    ):
        if applies and (changed := _changed(config, *names)):
            yield f"{reason}: no effect of {_written(changed)}"
