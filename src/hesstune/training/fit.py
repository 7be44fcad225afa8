"""One run: its folder, its inputs, training, and the finished run folder."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hesstune._version import __version__
from hesstune.data.augment import Augmentation
from hesstune.data.examples import Task
from hesstune.errors import RunError
from hesstune.inputs.activations import ActivationInputs, needed_bytes
from hesstune.inputs.batches import ImageInputs, ModelInputs, TextInputs, make_inputs, predict_logits
from hesstune.inputs.features import features_of
from hesstune.methods import MethodSetup, method_class
from hesstune.models.cut import AfterCut, Cut, find_cut
from hesstune.models.load import LoadedModel
from hesstune.reference import Reference
from hesstune.runs.checkpoint import Checkpoints, discard, shard_, weights_of, write_model
from hesstune.runs.integrity import DataRecord, check_start, fingerprints, of_files
from hesstune.runs.loading import base_folder, noise_of_test
from hesstune.runs.model_card import model_card
from hesstune.runs.records import (
    BAD_IMAGES,
    CARD,
    CONFIG,
    DATA,
    FORMAT,
    LABELS,
    MODEL,
    NOISE_MATRIX,
    RECORD,
    REFERENCE,
    LabelNoise,
    Normalisation,
    Recipe,
    Result,
    RunRecord,
    Sizes,
)
from hesstune.runs.run import Run
from hesstune.runtime.distributed import on_main_process, rank, world
from hesstune.runtime.signals import Progress
from hesstune.storage.files import write_text
from hesstune.storage.stored import write_record
from hesstune.storage.tables import write_csv
from hesstune.training.metrics import final_metrics, tracked
from hesstune.training.prepare import Prepared
from hesstune.training.trainer import Trainer


@dataclass(frozen=True)
class TrainingInputs:
    """The network that is trained, and its inputs.

    Attributes:
        net: What is called on a batch: the whole network, its head on cached features, or what is behind
            the last frozen layer before the first trained one.
        feeds: Its inputs by part.
        observed: The same for who looks at the result: the head on features, or the whole network.
        texts_cut: How many texts were cut at the end.
        notes: What the user should know.
    """

    net: nn.Module
    feeds: dict[str, ModelInputs]
    observed: tuple[nn.Module, dict[str, ModelInputs]]
    texts_cut: int
    notes: list[str] = field(default_factory=list)


def _training_inputs(prepared: Prepared, out: Path) -> TrainingInputs:
    """Return what a run trains and its inputs; activations are kept in its folder while it lasts."""
    config, task, loaded = prepared.config, prepared.task, prepared.loaded
    views = config.augment_views
    augmentation = Augmentation(
        config.augment, flip=task.flip, n=len(task.train), seed=config.seed, views=views
    )
    parts = {"train": task.train, "val": task.val, "test": task.test}
    plain = {
        name: make_inputs(
            part, loaded, prepared.device, augmentation if name == "train" else None, config.max_length
        )
        for name, part in parts.items()
    }
    cut_texts = sum(feed.truncated for feed in plain.values() if isinstance(feed, TextInputs))
    inputs: dict[str, ModelInputs] = dict(plain)
    cached = features_of(loaded, parts, inputs, config.max_length) if config.head_alone else None
    if cached is not None:
        head = loaded.model.get_submodule(loaded.head)
        return TrainingInputs(head, cached, (head, cached), cut_texts)
    whole = (loaded.model, inputs)
    cut = _cut(prepared, plain["train"])
    if cut is None:
        return TrainingInputs(*whole, whole, cut_texts)
    feeds, notes = _behind(prepared, plain, cut, out)
    return TrainingInputs(AfterCut(loaded.model, cut), feeds, whole, cut_texts, notes)


def _cut(prepared: Prepared, feed: ImageInputs | TextInputs) -> Cut | None:
    """Return where the network is cut; None where frozen layers see or become something else meanwhile."""
    config = prepared.config
    if config.train == "all" or config.batch_norm != "frozen" or config.shard or world() > 1:
        return None
    if method_class(config.method).mixes_inputs:  # of inputs, not of activations
        return None
    return find_cut(prepared.loaded.model, feed.inputs(np.arange(min(2, len(feed)))))


def _behind(
    prepared: Prepared, plain: dict[str, ImageInputs | TextInputs], cut: Cut, out: Path
) -> tuple[dict[str, ModelInputs], list[str]]:
    """Return the activations of all parts, kept on disk where there is room, and what to say of it."""
    model, most = prepared.loaded.model, prepared.config.activations_mib
    need = needed_bytes(list(plain.values()), cut)
    notes = []
    folder: Path | None = out
    if not most:
        folder = None
    elif need > most * 2**20:
        folder = None
        notes.append(
            f"activations of the frozen layers take {need / 2**20:.0f} MiB, more than --activations-mib "
            f"{most}: these layers ran in every epoch"
        )
    try:
        return {n: ActivationInputs(feed, model, cut, folder) for n, feed in plain.items()}, notes
    except OSError as error:
        notes.append(f"activations of the frozen layers were not kept ({error}): they ran in every epoch")
    return {n: ActivationInputs(feed, model, cut, None) for n, feed in plain.items()}, notes


@dataclass(frozen=True)
class Trained:
    """What a run has in memory when training has ended: the whole network, and what was trained of it.

    `net` is the network or, on cached features, its head alone; `feeds` are its inputs by part.
    """

    loaded: LoadedModel
    reference: Reference
    net: torch.nn.Module
    feeds: dict[str, ModelInputs]
    task: Task


@dataclass(frozen=True)
class RunRequest:
    """How a run is trained and observed; see `hesstune.finetune` for the fields."""

    overwrite: bool = False
    resume: bool = False
    progress: Progress | None = None
    observe: Callable[[Trained], None] | None = None
    keep_weights: bool = True


def fit_prepared(prepared: Prepared, out: Path, request: RunRequest | None = None) -> Run:
    """Train what was prepared, into a folder whose lock, or that of a folder above it, is held.

    Raises:
        RunError: If training diverges, or something cannot be written.
    """
    request = request or RunRequest()
    run, trained = _train(prepared, out, request)
    if request.observe is not None:
        request.observe(trained)
    return _finish(run, prepared, request.keep_weights)


def _train(prepared: Prepared, out: Path, request: RunRequest) -> tuple[Run, Trained]:
    started = time.monotonic()
    config, task, loaded = prepared.config, prepared.task, prepared.loaded
    reference = weights_of(loaded.model) if config.shard else Reference.of(loaded.model)
    run = Run(out, config, _record(prepared), prepared.given)
    # Not kept: where the network is cut, its whole weights must go.
    _start(run, prepared, reference, request.resume)
    inputs_of_run = _training_inputs(prepared, out)
    net, feeds = inputs_of_run.net, inputs_of_run.feeds
    if config.shard:
        del reference  # the whole weights go as they are cut
        shard_(loaded.model, prepared.device)
        reference = Reference.of(loaded.model)  # each process keeps its own part
    run.add(texts_cut=inputs_of_run.texts_cut)
    method = method_class(config.method)(_setup(prepared, reference, net))
    run.add(notes=[*prepared.notes, *inputs_of_run.notes, *method.notes()])
    trainer = Trainer(
        config,
        net,
        method,
        feeds,
        {"train": task.train, "val": task.val},
        prepared.noise_matrix,
        prepared.device,
        Checkpoints(out, run.facts.checksums, config.shard),
        tracked(run) if rank() == 0 else lambda metrics: None,
        request.progress if rank() == 0 else None,
    )
    if request.resume:
        trainer.resume()
    trainer.fit()
    logits = {name: predict_logits(net, feeds[name]) for name in ("train", "test")}
    distances, posterior = reference.distances(loaded.model, warn=False), trainer.method.posterior()
    kept = trainer.method.picked()
    noise = noise_of_test(config, task, prepared.injected)
    result = {
        **final_metrics(task.train, logits["train"], task.test, logits["test"], noise),
        "distances": distances,
        "distance": float(np.sqrt(sum(d * d for d in distances.values()))),
        "radii": trainer.method.radii(),
        **({} if posterior is None else {"posterior": posterior}),
        **({} if kept is None else {"kept": [task.train.ids[at] for at in kept]}),
        "epochs": sum(record.epoch > 0 for record in trainer.metrics),
        "kept_epoch": trainer.kept_epoch,
        "seconds": round(time.monotonic() - started, 2),
    }
    run.add(result=Result.model_validate(result))
    return run, Trained(loaded, reference, *inputs_of_run.observed, task)


def _start(run: Run, prepared: Prepared, reference: Reference, resume: bool) -> None:
    """Write what a run starts from, or check that it is what the run to be resumed started from."""
    out, record = run.path, prepared.record()
    run.add(checksums=fingerprints(record, {name: reference[name] for name in reference.names()}))
    if not (resume and (out / RECORD).is_file()):
        on_main_process(lambda: _write_start(run, prepared, record, reference))
        return
    on_main_process(lambda: check_start(Run.load(out).records, record, reference, prepared.loaded.seen))
    if (estimate := prepared.estimate) is not None:  # made again where the one kept was damaged
        on_main_process(lambda: write_record(out / NOISE_MATRIX, estimate))


def _setup(prepared: Prepared, reference: Reference, net: torch.nn.Module) -> MethodSetup:
    """Return what the run's method is built from."""
    config, task, loaded = prepared.config, prepared.task, prepared.loaded
    assert task.train.labels is not None
    balance = "sampler" if config.sampler == "balanced" else "none"
    return MethodSetup(
        model=loaded.model,
        reference=reference,
        noise_matrix=prepared.noise_matrix,
        counts=np.bincount(task.train.labels, minlength=task.k),
        radius=prepared.radius,
        norm=config.norm,
        warmup_epochs=config.warmup_epochs,
        balance="weights" if config.class_weights == "balanced" else balance,
        net=net,
        head=loaded.head,
        other_heads=loaded.other_heads,
        epochs=config.epochs,
        options=config.method_options or {},
        radius_scale=config.radius_scale,
        labels=task.train.labels,
        batch_size=config.batch_size * config.accumulate,
        solved=prepared.solved,
        alone=config.budget == "fast" or not len(task.val),
    )


def _noise_text(prepared: Prepared) -> str:
    """Return which noise matrix the loss is given, for people."""
    noise_matrix = prepared.noise_matrix
    text = "nothing"
    if noise_matrix is not None:
        how = (
            "as injected"
            if prepared.config.noise_matrix == "true"
            else f"from {prepared.config.noise_matrix}"
        )
        if prepared.estimate is not None:
            how = f"estimated by {prepared.estimate.method}"
        text = f"rate {noise_matrix.rate:.3g} ({how}), condition number {noise_matrix.condition:.3g}"
        if not method_class(prepared.config.method).uses_noise():
            text = f"nothing; the validation loss alone: {text}"
    return text


def _record(prepared: Prepared) -> RunRecord:
    task, loaded, noise_matrix = prepared.task, prepared.loaded, prepared.noise_matrix
    injected = prepared.injected
    changed = None
    if injected is not None and task.train.true is not None and task.train.labels is not None:
        changed = float((task.train.labels != task.train.true).mean())
    return RunRecord(
        format=FORMAT,
        classes=task.classes,
        examples=Sizes(train=len(task.train), val=len(task.val), test=len(task.test)),
        split=task.split,
        flip=task.flip,
        kind="text" if task.is_text else "image",
        skipped_images=len(task.skipped),
        unlabelled=len(task.unlabelled),
        data_notes=task.notes,
        possible_groups=task.possible_groups,
        working_folder=str(Path.cwd()),
        base_folder=base_folder(prepared.config) if prepared.given.model is None else "",
        checked_labels=0 if task.train.clean is None else int(task.train.clean.sum()),
        soft_labels=prepared.config.soft_labels,
        head=loaded.head,
        other_heads=list(loaded.other_heads),
        stored_dtype=loaded.stored_dtype,
        normalisation=Normalisation(mean=loaded.mean, std=loaded.std),
        noise=LabelNoise(
            injected=prepared.config.inject_noise,
            realised_rate=changed,
            loss_matrix=_noise_text(prepared),
            loss_matrix_rate=noise_matrix.rate if noise_matrix else None,
            estimate_notes=prepared.estimate.notes if prepared.estimate else [],
        ),
        recipe=None if prepared.solved is None else Recipe(**prepared.solved.record()),
        chosen_options=prepared.chosen_options,
        versions={
            "hesstune": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    )


def _write_start(run: Run, prepared: Prepared, record: DataRecord, reference: Reference) -> None:
    """Write what is known before training: configuration, reference, examples, labels and noise matrix."""
    import yaml

    out, task = run.path, prepared.task
    # The configuration first: it makes the folder a run's. The record last: it says that all is there.
    write_text(out / CONFIG, yaml.safe_dump(run.config.to_dict(), sort_keys=False, allow_unicode=True))
    reference.save(out / REFERENCE, prepared.loaded.seen.metadata())
    record.save(out / DATA)
    if prepared.estimate is not None:
        write_record(out / NOISE_MATRIX, prepared.estimate)
    elif (matrix := prepared.noise_matrix) is not None:
        matrix.save(out / NOISE_MATRIX, task.classes)
    rows = []
    for name, part in (("train", task.train), ("val", task.val), ("test", task.test)):
        assert part.labels is not None
        true = part.labels if part.true is None and prepared.injected is not None else part.true
        for at, example in enumerate(part.ids):
            known = "" if true is None else task.classes[true[at]]
            rows.append((example, name, task.classes[part.labels[at]], known))
    write_csv(out / LABELS, ("id", "part", "label", "true_label"), rows)
    if task.skipped:
        write_csv(out / BAD_IMAGES, ("id", "reason"), task.skipped)
    run.write_record()


def _finish(run: Run, prepared: Prepared, keep_weights: bool) -> Run:
    if not np.isfinite(run.outcome.distance):
        raise RunError("the distance from the reference is not finite")
    if keep_weights:
        write_model(run.path / MODEL, prepared.loaded.model, prepared.seen().metadata())
    on_main_process(lambda: _close(run, keep_weights))
    return run


def _close(run: Run, keep_weights: bool) -> None:
    if not keep_weights:
        (run.path / REFERENCE).unlink(missing_ok=True)
    write_text(run.path / CARD, model_card(run.config, run.facts))
    run.add(checksums={**run.facts.checksums, **of_files(run.path)})
    # The record goes last: it is what marks the run as finished.
    run.write_record()
    Checkpoints(run.path).clear()
    discard(run.path)
