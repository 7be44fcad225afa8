"""Train what was prepared: write the start of the run folder, train, and write the result."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
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
from hesstune.inputs.batches import ExampleInputs, ModelInputs, TextInputs, make_inputs, predict_logits
from hesstune.inputs.features import features_of
from hesstune.methods import Method, MethodSetup
from hesstune.models.adapters import Adapters
from hesstune.models.cut import AfterCut, Cut, find_cut
from hesstune.models.load import LoadedModel
from hesstune.noise.matrix import shown_noise
from hesstune.reference import Reference
from hesstune.runs import records as files
from hesstune.runs.checkpoint import Checkpoints, discard, shard_, weights_of, write_model
from hesstune.runs.integrity import DataRecord, check_start, fingerprints, of_files
from hesstune.runs.loading import base_folder, noise_of_test
from hesstune.runs.model_card import model_card
from hesstune.runs.run import Run
from hesstune.runtime.distributed import on_main_process, rank, world
from hesstune.runtime.signals import Progress
from hesstune.storage.files import write_text
from hesstune.storage.stored import write_record
from hesstune.storage.tables import write_csv
from hesstune.training.metrics import Validation, final_metrics, tracked
from hesstune.training.prepare import Prepared
from hesstune.training.trainer import Trainer, TrainingInputs


@dataclass(frozen=True)
class Trained:
    """What a run has in memory when training has ended.

    `net` is the network or, on cached features, its head alone; `feeds` are its inputs by part.
    """

    loaded: LoadedModel
    reference: Reference
    net: nn.Module
    feeds: Mapping[str, ModelInputs]
    task: Task


@dataclass(frozen=True)
class RunRequest:
    """How a run is trained and observed; see `hesstune.finetune` for the fields."""

    overwrite: bool = False
    resume: bool = False
    progress: Progress | None = None
    observe: Callable[[Trained], None] | None = None
    keep_weights: bool = True


def fit_prepared(prepared: Prepared, out: Path, request: RunRequest) -> Run:
    """Train what was prepared, into a folder; hold its lock, or that of a folder above it.

    Raises:
        RunError: If training diverges, or something cannot be written.
    """
    started = time.monotonic()
    config, loaded = prepared.config, prepared.loaded
    reference = weights_of(loaded.model) if config.shard else Reference.of(loaded.model)
    run = Run(out, config, _record(prepared), prepared.given)
    _start(run, prepared, reference, request.resume)
    inputs = _inputs(prepared, out)
    if config.shard:
        del reference  # the whole weights go as they are cut
        shard_(loaded.model, prepared.device)
        reference = Reference.of(loaded.model)  # each process keeps its own part
    size, adapters = prepared.adapter_size, None
    if size is not None:
        adapters = Adapters(loaded.model, loaded.heads, size, config.seed)
    method = prepared.kind(_setup(prepared, reference, inputs.net, adapters))
    run.add(texts_cut=inputs.texts_cut, notes=[*prepared.notes, *inputs.notes, *method.notes()])
    trainer = _trainer(prepared, run, inputs, method, request.progress)
    if request.resume:
        trainer.resume()
    trainer.fit()
    if adapters is not None:
        adapters.merge_()
    if (note := trainer.kept_note()) is not None:
        run.add(notes=[*run.facts.notes, note])
    result = _result(prepared, reference, inputs, trainer)
    run.add(result=result.replaced(seconds=round(time.monotonic() - started, 2)))
    if request.observe is not None:
        request.observe(Trained(loaded, reference, *inputs.observed, prepared.task))
    _save(run, prepared, request.keep_weights)
    return run


def _trainer(
    prepared: Prepared, run: Run, inputs: _Inputs, method: Method, progress: Progress | None
) -> Trainer:
    config, task = prepared.config, prepared.task
    training = TrainingInputs(
        net=inputs.net,
        feeds=inputs.feeds,
        train=task.train,
        val=task.val,
        soft=task.train.soft if config.soft_labels else None,
        validation=Validation(None if config.clean_val else prepared.noise_matrix, method.solves_head),
        device=prepared.device,
        batch_norm=config.batch_norm,
    )
    checkpoints = Checkpoints(run.path, run.facts.checksums, config.shard)
    on_epoch = tracked(run) if rank() == 0 else lambda metrics: None
    return Trainer(config, config, method, training, checkpoints, on_epoch, progress if rank() == 0 else None)


def _result(prepared: Prepared, reference: Reference, inputs: _Inputs, trainer: Trainer) -> files.Result:
    config, task, method = prepared.config, prepared.task, trainer.method
    logits = {name: predict_logits(inputs.net, inputs.feeds[name]) for name in ("train", "test")}
    distances, posterior = reference.distances(prepared.loaded.model, warn=False), method.posterior()
    kept = method.picked()
    noise = noise_of_test(task, config, config.seed, prepared.injected)
    return files.Result.model_validate(
        {
            **final_metrics(task.train, logits["train"], task.test, logits["test"], noise),
            "distances": distances,
            "distance": float(np.sqrt(sum(d * d for d in distances.values()))),
            "radii": method.radii(),
            **({} if posterior is None else {"posterior": posterior}),
            **({} if kept is None else {"kept": [task.train.ids[at] for at in kept]}),
            "epochs": sum(record.epoch > 0 for record in trainer.metrics),
            "kept_epoch": trainer.kept_epoch,
        }
    )


# -- what is trained ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Inputs:
    """The network that is trained, as in `TrainingInputs`, and its inputs by part."""

    net: nn.Module
    feeds: Mapping[str, ModelInputs]
    observed: tuple[nn.Module, Mapping[str, ModelInputs]]  # For `observe`: a head, or the whole network
    texts_cut: int
    notes: list[str] = field(default_factory=list)


def _inputs(prepared: Prepared, out: Path) -> _Inputs:
    """Return what a run trains and its inputs; activations are kept in its folder while it lasts."""
    config, task, loaded, device = prepared.config, prepared.task, prepared.loaded, prepared.device
    augmentation = Augmentation(
        config.augment, flip=task.flip, n=len(task.train), seed=config.seed, views=config.augment_views
    )
    parts = {"train": task.train, "val": task.val, "test": task.test}
    plain = {
        name: make_inputs(part, loaded, device, augmentation if name == "train" else None, config.max_length)
        for name, part in parts.items()
    }
    texts_cut = sum(feed.truncated for feed in plain.values() if isinstance(feed, TextInputs))
    cached = features_of(loaded, parts, dict(plain), config.max_length) if config.head_alone else None
    if cached is not None:
        head = loaded.model.get_submodule(loaded.head)
        return _Inputs(head, cached, (head, cached), texts_cut)
    whole = (loaded.model, plain)
    # Frozen layers run once, if neither they nor their inputs change meanwhile.
    fixed = config.batch_norm == "frozen" and not prepared.kind.mixes_inputs
    if config.train == "all" or not fixed or config.shard or world() > 1:
        return _Inputs(*whole, whole, texts_cut)
    cut = find_cut(loaded.model, plain["train"].inputs(np.arange(min(2, len(task.train)))))
    if cut is None:
        return _Inputs(*whole, whole, texts_cut)
    feeds, notes = _after_cut(loaded.model, plain, cut, out, config.activations_mib)
    return _Inputs(AfterCut(loaded.model, cut), feeds, whole, texts_cut, notes)


def _after_cut(
    model: nn.Module, plain: Mapping[str, ExampleInputs], cut: Cut, out: Path, most_mib: int
) -> tuple[dict[str, ModelInputs], list[str]]:
    """Return the activations of all parts, kept on disk if there is room, and notes if there is not."""
    need, notes = needed_bytes(list(plain.values()), cut) / 2**20, list[str]()
    if most_mib and need <= most_mib:
        try:
            return {n: ActivationInputs(feed, model, cut, out) for n, feed in plain.items()}, notes
        except OSError as error:
            notes.append(f"activations of the frozen layers were not kept ({error}): they ran in every epoch")
    elif most_mib:
        notes.append(
            f"activations of the frozen layers take {need:.0f} MiB, more than --activations-mib "
            f"{most_mib}: these layers ran in every epoch"
        )
    return {n: ActivationInputs(feed, model, cut, None) for n, feed in plain.items()}, notes


def _setup(
    prepared: Prepared, reference: Reference, net: nn.Module, adapters: Adapters | None
) -> MethodSetup:
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
        adapters=adapters,
    )


# -- the run folder ----------------------------------------------------------------------------


def _start(run: Run, prepared: Prepared, reference: Reference, resume: bool) -> None:
    """Write what a run starts from, or check that it is what the run to be resumed started from."""
    out, record = run.path, prepared.record()
    run.add(checksums=fingerprints(record, {name: reference[name] for name in reference.names()}))
    if not (resume and (out / files.RECORD).is_file()):
        on_main_process(lambda: _write_start(run, prepared, record, reference))
        return
    on_main_process(lambda: check_start(Run.load(out).records, record, reference, prepared.loaded.seen))
    if (estimate := prepared.estimate) is not None:  # made again if the one kept was damaged
        on_main_process(lambda: write_record(out / files.NOISE_MATRIX, estimate))


def _noise_text(prepared: Prepared) -> str:
    """Return which noise matrix the loss is given, for people."""
    noise_matrix = prepared.noise_matrix
    if noise_matrix is None:
        return "nothing"
    how = f"from {shown_noise(prepared.config.noise_matrix)}"
    if prepared.estimate is not None:
        how = f"estimated by {prepared.estimate.method}"
    elif prepared.config.noise_matrix == "true":
        how = "as injected"
    text = f"rate {noise_matrix.rate:.3g} ({how}), condition number {noise_matrix.condition:.3g}"
    return text if prepared.kind.uses_noise() else f"nothing; the validation loss alone: {text}"


def _record(prepared: Prepared) -> files.RunRecord:
    task, loaded, noise_matrix = prepared.task, prepared.loaded, prepared.noise_matrix
    injected = prepared.injected
    changed = None
    if injected is not None and task.train.true is not None and task.train.labels is not None:
        changed = float((task.train.labels != task.train.true).mean())
    return files.RunRecord(
        format=files.FORMAT,
        classes=task.classes,
        examples=files.Sizes(train=len(task.train), val=len(task.val), test=len(task.test)),
        split=task.split,
        flip=task.flip,
        kind=task.kind,
        skipped_images=len(task.skipped),
        unlabelled=len(task.unlabelled),
        data_notes=task.notes,
        possible_groups=task.possible_groups,
        working_folder=str(Path.cwd()),
        base_folder=base_folder(prepared.config.model) if prepared.given.model is None else "",
        checked_labels=0 if task.train.clean is None else int(task.train.clean.sum()),
        soft_labels=prepared.config.soft_labels,
        head=loaded.head,
        other_heads=list(loaded.other_heads),
        stored_dtype=loaded.stored_dtype,
        normalisation=files.Normalisation(mean=loaded.mean, std=loaded.std, bgr=loaded.bgr),
        noise=files.LabelNoise(
            injected=prepared.config.inject_noise,
            realised_rate=changed,
            loss_matrix=_noise_text(prepared),
            loss_matrix_rate=noise_matrix.rate if noise_matrix else None,
            estimate_notes=prepared.estimate.notes if prepared.estimate else [],
        ),
        recipe=None if prepared.solved is None else files.Recipe(**prepared.solved.record()),
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
    write_text(out / files.CONFIG, yaml.safe_dump(run.config.to_dict(), sort_keys=False, allow_unicode=True))
    reference.save(out / files.REFERENCE, prepared.loaded.seen.metadata())
    record.save(out / files.DATA)
    if prepared.estimate is not None:
        write_record(out / files.NOISE_MATRIX, prepared.estimate)
    elif (matrix := prepared.noise_matrix) is not None:
        matrix.save(out / files.NOISE_MATRIX, task.classes)
    rows = []
    for name, part in (("train", task.train), ("val", task.val), ("test", task.test)):
        assert part.labels is not None
        true = part.labels if part.true is None and prepared.injected is not None else part.true
        for at, example in enumerate(part.ids):
            known = "" if true is None else task.classes[true[at]]
            rows.append((example, name, task.classes[part.labels[at]], known))
    write_csv(out / files.LABELS, ("id", "part", "label", "true_label"), rows)
    if task.skipped:
        write_csv(out / files.BAD_IMAGES, ("id", "reason"), task.skipped)
    run.write_record()


def _save(run: Run, prepared: Prepared, keep_weights: bool) -> None:
    """Write the weights, the model card and, last, the record, which marks the run as finished."""
    if not np.isfinite(run.outcome.distance):
        raise RunError("the distance from the reference is not finite")
    if keep_weights:
        write_model(run.path / files.MODEL, prepared.loaded.model, prepared.seen().metadata())

    def close() -> None:
        if not keep_weights:
            (run.path / files.REFERENCE).unlink(missing_ok=True)
        write_text(run.path / files.CARD, model_card(run.config, run.facts))
        run.add(checksums={**run.facts.checksums, **of_files(run.path)})
        run.write_record()
        Checkpoints(run.path).clear()
        discard(run.path)

    on_main_process(close)
