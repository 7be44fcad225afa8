"""The way of every run: its folder claimed, its start prepared, trained there, and what is finished kept."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from hesstune.errors import ConfigError
from hesstune.inputs.feature_store import sharing
from hesstune.methods import method_class
from hesstune.runs.config import RESUMABLE, FinetuneConfig, read_config
from hesstune.runs.data_check import check_data
from hesstune.runs.folder import claim, entered
from hesstune.runs.records import CONFIG, NOISE_MATRIX, RECORD
from hesstune.runs.run import Given, Run
from hesstune.runs.sharded import refuse_one, weights_of
from hesstune.runs.start_check import check_weights
from hesstune.runtime.distributed import joined_ranks, on_main_process, refuse_adapting, world
from hesstune.storage.atomic import writing
from hesstune.storage.remembered import remembering
from hesstune.training.prepare import SETTLED, Prepared, prepare
from hesstune.training.tracking import check_tracker

__all__ = ["in_folder"]


@joined_ranks()
def in_folder(
    config: FinetuneConfig,
    given: Given,
    train: Callable[[Prepared, Path], Run],
    *,
    overwrite: bool = False,
    resume: bool = False,
    errors: bool = True,
) -> Run:
    """Prepare a run and train it in its folder, or return the finished run that a resumed one has there.

    Args:
        config: The resolved configuration; without `out` the folder is a temporary one, which stays.
        given: Data and model, where they are objects.
        train: Called with what was prepared and the folder, whose lock is held; the random state is the
            seed's.
        overwrite: Replace the run in the folder.
        resume: Continue it.
        errors: As of `prepare`.

    Raises:
        HesstuneError: If an option or input is wrong, or the folder cannot be used.
    """
    check_tracker(config.track)
    refuse_adapting(config.batch_norm)
    refuse_one(config.shard)
    if config.out is None and world() > 1:
        raise ConfigError("several processes write one run: give --out, a folder that all of them see")
    with _folder(config.out) as out:
        return _run(config, out, given, train, overwrite, resume, errors)


@contextlib.contextmanager
def _folder(out: str | None) -> Iterator[Path]:
    """Yield the run's folder; a temporary one goes again where an error comes before its first file."""
    if out:
        folder = Path(out)
    else:
        with writing(Path(tempfile.gettempdir())):
            folder = Path(tempfile.mkdtemp(prefix="hesstune-"))
    try:
        yield folder
    except BaseException:
        if not out:
            with contextlib.suppress(OSError):  # it holds files
                folder.rmdir()
        raise


def _run(
    config: FinetuneConfig,
    out: Path,
    given: Given,
    train: Callable[[Prepared, Path], Run],
    overwrite: bool,
    resume: bool,
    errors: bool,
) -> Run:
    if config.out:
        on_main_process(lambda: claim(out, overwrite, resume, create=False))
    open_options, before, undecided = _open_options(config, out, resume), None, False
    if resume and (out / CONFIG).is_file():
        before = read_config(out / CONFIG)
        config = _as_settled(config, before, out)
        # Only the network tells whether another spelling of --train names the head's parameters alone.
        undecided = before.head_only and not config.head_only
        if not undecided:
            _check_same(before, config, out)
        named = given.data is None and given.model is None  # the options told all that there is to compare
        if named and not undecided and (run := _finished(out, given)) is not None:
            run.task()  # refuses data that has changed
            return run
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    # Estimates of the noise, trials of radii and the run itself see the same features.
    with torch.random.fork_rng(devices=devices), sharing(), remembering():
        torch.manual_seed(config.seed)
        prepared = prepare(config, out / NOISE_MATRIX if resume else None, given, errors)
        prepared = replace(prepared, settled=sorted({*open_options, *prepared.settled}))
        if before is not None and undecided:
            kept = {name: getattr(before, name) for name in prepared.settled}
            prepared = replace(prepared, config=prepared.config.model_copy(update=kept))
            _check_same(before, prepared.config, out)
        with entered(out, overwrite, resume):
            if resume and (run := _finished(out, given)) is not None:
                start = weights_of(prepared.loaded.model)
                check_data(run.records, prepared.record())
                check_weights(run, {name: start[name] for name in start.names()})
                return run  # before, of objects, or by another process, while this one was loading
            return train(prepared, out)


def _open_options(config: FinetuneConfig, out: Path, resume: bool) -> list[str]:
    """Return the options that the examples settle, or have settled when the run began."""
    found = {name for name in SETTLED if getattr(config, name) is None}
    if resume and (out / CONFIG).is_file():  # asked for by the folder's own configuration, it may be
        told = Run.load(out).facts.settled if (out / RECORD).is_file() else None
        found |= set(SETTLED if told is None else told)
    return sorted(found)


def _as_settled(config: FinetuneConfig, before: FinetuneConfig, out: Path) -> FinetuneConfig:
    """Return the configuration with what the run settled by itself, from the same labels and examples."""
    solves = method_class(config.method).solves_head
    names = ("weight_decay", "patience") if solves else ("weight_decay",)
    settled = {name: getattr(before, name) for name in names if getattr(config, name) is None}
    if config.weight_decay is None and config.optimizer == "adamw":
        settled["optimizer"] = before.optimizer  # see `with_head_penalty`
    if solves and (out / RECORD).is_file() and not Run.load(out).facts.examples.val:
        settled["select"] = before.select  # nothing to select by
    return config.model_copy(update=settled)


def _finished(out: Path, given: Given) -> Run | None:
    if not (out / RECORD).is_file():
        return None
    run = Run.load(out, data=given.data, model=given.model)
    return run if run.finished else None


def _check_same(before: FinetuneConfig, now: FinetuneConfig, out: Path) -> None:
    """Raise ConfigError naming the first option that a resumed run would change."""
    old, new = before.to_dict(), now.to_dict()
    for name in old:
        if name not in RESUMABLE and old[name] != new[name]:
            raise ConfigError(
                f"the run in {out} was started with --{name.replace('_', '-')} {old[name]}, not {new[name]}; "
                "resume it with the same options, or use --overwrite"
            )
