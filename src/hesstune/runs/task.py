"""The examples of a run and the labels it is trained on: as given, voted, corrupted, checked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hesstune.data.clean import checked, read_clean_labels
from hesstune.data.examples import Examples, Task
from hesstune.data.load import load_task
from hesstune.data.raw_features import raw_features
from hesstune.data.reading import ROLES, Columns, Reading, Voting, rgb_of
from hesstune.errors import ConfigError
from hesstune.methods import method_class
from hesstune.noise.instance import average, draw, instance_rate, instance_transitions
from hesstune.noise.matrix import NoiseMatrix
from hesstune.runs.config import FinetuneConfig
from hesstune.runs.options.data import ColumnOptions

__all__ = ["clean_task", "injected_noise", "noise_of_test", "noisy", "reading_of", "run_task"]


def clean_task(config: FinetuneConfig, data: Any = None) -> Task:
    """Load the examples of a run with their labels as given, votes combined.

    Args:
        config: The run's.
        data: What stands in for the configuration's data: a task that is made, or what it is made of.
    """
    if isinstance(data, Task):
        return data
    assert config.image_size is not None
    return load_task(
        config.data if data is None else data,
        size=config.image_size,
        seed=config.seed,
        split=config.split,
        fold=config.fold,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        limit=config.limit,
        corrected_test=config.corrected_test_labels,
        skip_bad=config.skip_bad_images,
        cache_mib=config.cache_mib,
        how=reading_of(config),
    )


def reading_of(config: FinetuneConfig, asked: ColumnOptions | None = None) -> Reading:
    """Return how a run's data is read.

    Args:
        config: The run's.
        asked: What is said of other data's columns: where it says nothing, the run's columns are taken if
            they are there.
    """
    own = {role: getattr(config, f"{role}_column") for role in ROLES}
    columns = Columns(**own)
    if asked is not None:
        other = {role: name for role in ROLES if (name := getattr(asked, f"{role}_column"))}
        columns = Columns(**own | other, needed=frozenset(other))
    voting = Voting(_names(config.vote_columns), config.label_model, config.seed)
    return Reading(columns, voting, rgb_of(config.background))


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip()) if text else ()


def run_task(config: FinetuneConfig, data: Any = None) -> Task:
    """Load the examples of a run again, with the labels it was trained on (by seed the same)."""
    task = clean_task(config, data)
    return noisy(task, injected_noise(config, task), config)


def injected_noise(config: FinetuneConfig, task: Task) -> NoiseMatrix | None:
    """Return the noise matrix of what --inject-noise injects into true labels, or None.

    Of noise that depends on the example it is the mean over the training examples of each class.
    """
    if not config.inject_noise:
        return None
    rate = instance_rate(config.inject_noise)
    if rate is None:
        matrix = NoiseMatrix.parse(config.inject_noise, task.k, task.classes, any_rate=True)
        return matrix.known_as("injected")
    return average(_transitions(task.train, task.k, rate, config.seed), _true(task.train), task.k)


def noise_of_test(
    config: FinetuneConfig, task: Task, injected: NoiseMatrix | None
) -> NoiseMatrix | NDArray[np.float64] | None:
    """Return the noise that test labels would have: F, or P(noisy = j | example), (N, K), or None."""
    rate = instance_rate(config.inject_noise)
    if rate is None or not len(task.test):
        return injected
    return _transitions(task.test, task.k, rate, config.seed)


def _transitions(part: Examples, k: int, rate: float, seed: int) -> NDArray[np.float64]:
    return instance_transitions(raw_features(part), _true(part), k, rate, seed)


def _true(part: Examples) -> NDArray[np.int64]:
    known = part.labels if part.true is None else part.true
    assert known is not None
    return known


def noisy(task: Task, injected: NoiseMatrix | None, config: FinetuneConfig) -> Task:
    """Corrupt training and validation labels, each by a seed of its own; test labels stay true.

    Labels that a person has checked come last: they replace noisy ones.
    """
    if method_class(config.method).needs_votes and task.train.votes is None:
        raise ConfigError(
            f"method '{config.method}' needs votes, which {config.data} has not: give columns vote_… of csv "
            "data, or --vote-columns NAME,NAME"
        )
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
    rate = instance_rate(config.inject_noise)

    def changed(part: Examples, seed: int) -> Examples:
        if rate is None:
            return part.relabelled(injected.corrupt(_true(part), seed=seed))
        return part.relabelled(draw(_transitions(part, task.k, rate, config.seed), seed))

    train = changed(task.train, 2 * config.seed)
    val = task.val
    if not config.clean_val and len(val):
        val = changed(val, 2 * config.seed + 1)
    return replace(task, train=train, val=val)
