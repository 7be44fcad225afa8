"""`hesstune.finetune`: from a configuration to a finished run folder."""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hesstune import __version__
from hesstune.data.augment import Augmentation
from hesstune.data.examples import Task
from hesstune.errors import ConfigError, RunError
from hesstune.methods import MethodSetup, method_class
from hesstune.models.load import LoadedModel, spec_parts
from hesstune.reference import Reference
from hesstune.training.card import model_card
from hesstune.training.checkpoint import Checkpoints, discard
from hesstune.training.config import RESUMABLE, FinetuneConfig, make_config, read_yaml
from hesstune.training.evaluate import final_metrics
from hesstune.training.feature_store import features_of
from hesstune.training.feeds import Feed, make_feed, predict_logits
from hesstune.training.files import replace_file, write_csv, write_json, write_text
from hesstune.training.fingerprint import check_start, fingerprints
from hesstune.training.folder import claim, entered
from hesstune.training.prepare import Prepared, prepare
from hesstune.training.radius import AUTOMATIC, choose_radius, named_radii
from hesstune.training.ranks import on_first, rank, refuse_adapting, start_ranks, world
from hesstune.training.run import (
    BAD_IMAGES,
    CARD,
    CONFIG,
    LABELS,
    MODEL,
    NOISE,
    RECORD,
    REFERENCE,
    Run,
)
from hesstune.training.sharded import ShardedCheckpoints, refuse_one, shard_, weights_of, write_model
from hesstune.training.texts import TextFeed
from hesstune.training.tracking import check_tracker, tracked
from hesstune.training.trainer import Progress, Trainer

__all__ = ["Trained", "finetune", "train_prepared"]


@dataclass(frozen=True)
class Trained:
    """What a run has in memory when training has ended: the whole network, and what was trained of it.

    `net` is the network or, on cached features, its head alone; `feeds` are its inputs by part.
    """

    loaded: LoadedModel
    reference: Reference
    net: torch.nn.Module
    feeds: dict[str, Feed]
    task: Task


def finetune(
    config: FinetuneConfig | Mapping[str, Any] | str | Path | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    observe: Callable[[Trained], None] | None = None,
    keep_weights: bool = True,
    **options: Any,
) -> Run:
    """Fine-tune a pretrained network on a small, perhaps noisily labelled data set.

    Args:
        config: A configuration, a mapping of options, or the path of a YAML file.
        overwrite: Replace the run in `out`; other files there are left alone.
        resume: Continue an interrupted run in `out`; start where there is none.
        progress: Called with (steps done, steps in all, text) after every step.
        observe: Called with the network and its inputs when training has ended.
        keep_weights: Keep the fine-tuned weights and the reference; else the records alone.
        **options: Options by name, over those of `config` (see `FinetuneConfig`). Without `out` the
            run goes to a temporary folder, `Run.path`.

    Returns:
        The finished run.

    Raises:
        HesstuneError: If an option or input is wrong, with what is needed; nothing is lost.

    Example:
        >>> import hesstune as ht
        >>> run = ht.finetune(data="digits", train="head", noise="symmetric:0.2", epochs=1, limit=64)
        >>> run.result["epochs"], round(run.record["noise"]["told_rate"], 3)
        (1, 0.2)
    """
    resolved = _build(config, options).resolved()
    spec_parts(resolved.model)
    check_tracker(resolved.track)
    start_ranks()
    refuse_adapting(resolved.batch_norm)
    refuse_one(resolved.shard)
    if resolved.out is None and world() > 1:
        raise ConfigError("several processes write one run: give --out, a folder that all of them see")
    out = Path(resolved.out) if resolved.out else Path(tempfile.mkdtemp(prefix="hesstune-"))
    if resolved.out:
        on_first(lambda: claim(out, overwrite, resume, create=False))
    if resume and (out / CONFIG).is_file():
        _check_same(make_config(read_yaml(out / CONFIG)), resolved, out)
        if (out / RECORD).is_file() and (run := Run.load(out)).finished:
            return run
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(resolved.seed)
        prepared = prepare(resolved, out / NOISE if resume else None)
        with entered(out, overwrite, resume):
            if resume and (out / RECORD).is_file() and (run := Run.load(out)).finished:
                return run  # by another process, while this one was loading
            if resolved.radius in AUTOMATIC:
                prepared = replace(
                    prepared, radius=named_radii(choose_radius(resolved, out), prepared.loaded)
                )
                torch.manual_seed(resolved.seed)
            run, trained = _train(prepared, out, resume, progress if rank() == 0 else None)
            if observe is not None:
                observe(trained)
            return _finish(run, trained.loaded, keep_weights)


def _build(
    config: FinetuneConfig | Mapping[str, Any] | str | Path | None, options: dict[str, Any]
) -> FinetuneConfig:
    if isinstance(config, FinetuneConfig):
        values = config.model_dump(exclude_unset=True)
    elif isinstance(config, str | Path):
        values = read_yaml(config)
    else:
        values = dict(config or {})
    return make_config({**values, **options})


def _check_same(before: FinetuneConfig, now: FinetuneConfig, out: Path) -> None:
    """Raise ConfigError naming the first option that a resumed run would change."""
    old, new = before.to_dict(), now.to_dict()
    for name in old:
        if name not in RESUMABLE and old[name] != new[name]:
            raise ConfigError(
                f"the run in {out} was started with --{name.replace('_', '-')} {old[name]}, not {new[name]}; "
                "resume it with the same options, or use --overwrite"
            )


def _feeds(prepared: Prepared) -> tuple[torch.nn.Module, dict[str, Feed], int]:
    """Return what is trained, its inputs, and how many texts were cut.

    Trained is the network on images or texts, or the head on cached features.
    """
    config, task, loaded = prepared.config, prepared.task, prepared.loaded
    augmentation = Augmentation(config.augment, flip=task.flip, n=len(task.train), seed=config.seed)
    parts = {"train": task.train, "val": task.val, "test": task.test}
    images: dict[str, Feed] = {
        name: make_feed(
            part, loaded, prepared.device, augmentation if name == "train" else None, config.max_length
        )
        for name, part in parts.items()
    }
    cut = sum(feed.truncated for feed in images.values() if isinstance(feed, TextFeed))
    plain = config.augment in ("auto", "none") and config.batch_norm == "frozen"
    # A head alone cannot be called where its network is sharded.
    alone = config.train in ("head", "last:1") and plain and not config.shard
    cached = features_of(loaded, parts, images, config.max_length) if alone else None
    if cached is not None:
        return loaded.model.get_submodule(loaded.head), cached, cut
    return loaded.model, images, cut


def train_prepared(prepared: Prepared, out: Path, progress: Progress | None = None) -> Run:
    """Train what was prepared into a folder whose lock, or a folder above it, is held; see `finetune`."""
    run, trained = _train(prepared, out, False, progress)
    return _finish(run, trained.loaded, keep_weights=True)


def _train(prepared: Prepared, out: Path, resume: bool, progress: Progress | None) -> tuple[Run, Trained]:
    started = time.monotonic()
    config, task, loaded = prepared.config, prepared.task, prepared.loaded
    reference = weights_of(loaded.model) if config.shard else Reference.of(loaded.model)
    run = Run(out, config, _record(prepared))
    # Not kept: where the network is cut, its whole weights must go.
    run.record["checksums"] = fingerprints(task, {name: reference[name] for name in reference.names()})
    _start(run, prepared, reference, resume)
    net, feeds, cut = _feeds(prepared)
    if config.shard:
        del reference  # the whole weights go as they are cut
        shard_(loaded.model, prepared.device)
        reference = Reference.of(loaded.model)  # each process keeps its own part
    run.record["texts_cut"] = cut
    trainer = Trainer(
        config,
        net,
        method_class(config.method)(_setup(prepared, reference, net)),
        feeds,
        {"train": task.train, "val": task.val},
        prepared.believed,
        prepared.device,
        ShardedCheckpoints(out) if config.shard else Checkpoints(out),
        tracked(run) if rank() == 0 else lambda metrics: None,
        progress,
    )
    if resume:
        trainer.resume()
    trainer.fit()
    logits = {name: predict_logits(net, feeds[name]) for name in ("train", "test")}
    result = final_metrics(task.train, logits["train"], task.test, logits["test"], prepared.injected)
    result["distances"] = reference.distances(loaded.model)
    result["distance"] = float(np.sqrt(sum(d * d for d in result["distances"].values())))
    result["radii"] = trainer.method.radii()
    if (posterior := trainer.method.posterior()) is not None:
        result["posterior"] = posterior
    result["epochs"] = len(trainer.metrics)
    result["seconds"] = round(time.monotonic() - started, 2)
    run.record["result"] = result
    return run, Trained(loaded, reference, net, feeds, task)


def _start(run: Run, prepared: Prepared, reference: Reference, resume: bool) -> None:
    """Write what a run starts from, or check that it is what the run to be resumed started from."""
    out = run.path
    if not (resume and (out / RECORD).is_file()):
        on_first(lambda: _write_start(run, prepared, reference))
        return
    on_first(lambda: check_start(Run.load(out), run, reference))
    if prepared.estimate is not None:  # made again where the one kept was damaged
        on_first(lambda: write_json(out / NOISE, prepared.estimate))


def _setup(prepared: Prepared, reference: Reference, net: torch.nn.Module) -> MethodSetup:
    """Return what the run's method is built from."""
    config, task, loaded = prepared.config, prepared.task, prepared.loaded
    assert task.train.labels is not None
    balance = "sampler" if config.sampler == "balanced" else "none"
    return MethodSetup(
        model=loaded.model,
        reference=reference,
        noise=prepared.believed,
        counts=np.bincount(task.train.labels, minlength=task.k),
        radius=prepared.radius,
        norm=config.norm,
        warmup_epochs=config.warmup_epochs,
        balance="weights" if config.class_weights == "balanced" else balance,
        net=net,
        head=loaded.head,
        epochs=config.epochs,
        options=config.method_options or {},
        radius_scale=config.radius_scale,
        labels=task.train.labels,
    )


def _record(prepared: Prepared) -> dict[str, Any]:
    task, loaded, believed = prepared.task, prepared.loaded, prepared.believed
    injected = prepared.injected
    changed = None
    if injected is not None and task.train.true is not None and task.train.labels is not None:
        changed = float((task.train.labels != task.train.true).mean())
    told = "nothing"
    if believed is not None:
        how = (
            "as injected"
            if prepared.config.noise_matrix == "true"
            else f"from {prepared.config.noise_matrix}"
        )
        if prepared.estimate is not None:
            how = f"estimated by {prepared.estimate['method']}"
        told = f"rate {believed.rate:.3g} ({how}), condition number {believed.condition:.3g}"
    return {
        "classes": task.classes,
        "examples": {"train": len(task.train), "val": len(task.val), "test": len(task.test)},
        "split": task.split,
        "flip": task.flip,
        "kind": "text" if task.is_text else "image",
        "skipped_images": len(task.skipped),
        "unlabelled": len(task.unlabelled),
        "checked_labels": 0 if task.train.clean is None else int(task.train.clean.sum()),
        "soft_labels": prepared.config.soft_labels,
        "head": loaded.head,
        "normalisation": {"mean": list(loaded.mean), "std": list(loaded.std)},
        "noise": {
            "injected": prepared.config.noise,
            "realised_rate": changed,
            "told": told,
            "told_rate": believed.rate if believed else None,
            "estimate_notes": prepared.estimate["notes"] if prepared.estimate else [],
        },
        "versions": {
            "hesstune": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def _write_start(run: Run, prepared: Prepared, reference: Reference) -> None:
    """Write what is known before training: configuration, reference, labels and noise matrix."""
    import yaml

    out, task = run.path, prepared.task
    # The configuration first: it makes the folder a run's. The record last: it says that all is there.
    write_text(out / CONFIG, yaml.safe_dump(run.config.to_dict(), sort_keys=False, allow_unicode=True))
    replace_file(out / REFERENCE, reference.save)
    if prepared.estimate is not None:
        write_json(out / NOISE, prepared.estimate)
    elif prepared.believed is not None:
        replace_file(out / NOISE, prepared.believed.save)
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


def _finish(run: Run, loaded: LoadedModel, keep_weights: bool) -> Run:
    if not np.isfinite(run.result["distance"]):
        raise RunError("the distance from the reference is not finite")
    if keep_weights:
        write_model(run.path / MODEL, loaded.model)
    on_first(lambda: _close(run, keep_weights))
    return run


def _close(run: Run, keep_weights: bool) -> None:
    if not keep_weights:
        (run.path / REFERENCE).unlink(missing_ok=True)
    write_text(run.path / CARD, model_card(run.config, run.record))
    # The record goes last: it is what marks the run as finished.
    run.write_record()
    Checkpoints(run.path).clear()
    discard(run.path)
