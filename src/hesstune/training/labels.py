"""The examples of a run and the labels it is trained on: as given, voted, corrupted, checked."""

from __future__ import annotations

from dataclasses import replace

from hesstune.data.clean import checked, read_clean_labels
from hesstune.data.examples import Task
from hesstune.data.load import load_task
from hesstune.data.sources import Voting
from hesstune.errors import ConfigError
from hesstune.noise.matrix import NoiseMatrix
from hesstune.training.config import FinetuneConfig

__all__ = ["clean_task", "noisy", "run_task"]


def clean_task(config: FinetuneConfig) -> Task:
    """Load the examples of a run with their labels as given, votes combined."""
    assert config.image_size is not None
    return load_task(
        config.data,
        size=config.image_size,
        seed=config.seed,
        split=config.split,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        limit=config.limit,
        skip_bad=config.skip_bad_images,
        cache_mib=config.cache_mib,
        voting=Voting(_names(config.vote_columns), config.label_model, config.seed),
    )


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip()) if text else ()


def run_task(config: FinetuneConfig) -> Task:
    """Load the examples of a run again, with the labels it was trained on (by seed the same)."""
    task = clean_task(config)
    injected = NoiseMatrix.parse(config.noise, task.k, task.classes) if config.noise else None
    return noisy(task, injected, config)


def noisy(task: Task, injected: NoiseMatrix | None, config: FinetuneConfig) -> Task:
    """Corrupt training and validation labels, each by a seed of its own; test labels stay true.

    Labels that a person has checked come last: they replace noisy ones.
    """
    if config.soft_labels and task.train.soft is None:
        raise ConfigError(
            f"--soft-labels needs soft labels, but {config.data} has neither columns p_CLASS nor votes"
        )
    task = task if injected is None else _corrupted(task, injected, config)
    if config.clean_labels is None:
        return task
    clean = read_clean_labels(config.clean_labels, task.classes)
    return checked(task, clean, partial=config.limit is not None)


def _corrupted(task: Task, injected: NoiseMatrix, config: FinetuneConfig) -> Task:
    assert task.train.labels is not None
    assert task.val.labels is not None
    train = task.train.relabelled(injected.corrupt(task.train.labels, seed=2 * config.seed))
    val = task.val
    if not config.clean_val:
        val = val.relabelled(injected.corrupt(task.val.labels, seed=2 * config.seed + 1))
    return replace(task, train=train, val=val)
