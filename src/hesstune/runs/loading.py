"""Load a run's examples, labels and network again, from what its configuration names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.checks import expanded
from hesstune.data.examples import Examples, Task, raw_features
from hesstune.data.formats import FORMATS, WITH_PATH
from hesstune.data.labels import checked, read_checked_labels
from hesstune.data.load import load_task
from hesstune.data.reading import ROLES, Columns, Reading, Voting, rgb_of
from hesstune.errors import ConfigError, ModelError
from hesstune.methods import method_class
from hesstune.models.load import LoadedModel, ModelObject, load_model, set_parameters
from hesstune.noise.instance import average, instance_rate, instance_transitions
from hesstune.noise.matrix import NoiseMatrix, draw_classes, is_written_out
from hesstune.resizing import Resize, Size
from hesstune.runs.config import FinetuneConfig
from hesstune.runs.options import ColumnOptions
from hesstune.runs.records import RunRecord


def base_folder(config: FinetuneConfig) -> str:
    """Return the absolute path of the folder that a run's network comes from, or ""."""
    kind, _, path = config.model.partition(":")
    return str(expanded(path).absolute()) if kind == "hf" and path and expanded(path).is_dir() else ""


def located(config: FinetuneConfig, facts: RunRecord) -> FinetuneConfig:
    """Return a run's configuration with its paths as they are to be found from here.

    A relative path that does not exist from this working folder, but exists from the one in which the run was
    made, is taken from there.
    """
    changes = {}
    for name in ("data", "model", "checked_labels", "inject_noise", "split"):
        value = getattr(config, name)
        if not isinstance(value, str) or not facts.working_folder:
            continue
        kind, sign, path = _split(name, value)
        there = Path(facts.working_folder) / path if path else None
        if there is not None and not expanded(path).exists() and there.exists():
            changes[name] = f"{kind}{sign}{there}"
    return config.model_copy(update=changes)


def _split(name: str, value: str) -> tuple[str, str, str]:
    if is_written_out(value):
        return "", "", ""
    kind, sign, path = value.partition(":")
    if kind in (WITH_PATH if name == "data" else ("hf",) if name == "model" else ("file",)):
        return kind, sign, path
    has_no_path = name == "model" or (name == "data" and kind in FORMATS)
    return "", "", "" if has_no_path else value


def missing_data(config: FinetuneConfig, facts: RunRecord) -> str:
    """Return a hint to the run's data if its path does not exist; else an empty text."""
    path = _split("data", config.data)[2]
    if not path or expanded(path).exists() or not facts.working_folder:
        return ""
    there = Path(facts.working_folder) / expanded(path)
    return f"; the run's data was {there}: put it back, or say in Python where it is, Run.load(path, data=…)"


def network_of(
    config: FinetuneConfig,
    facts: RunRecord,
    weights: Mapping[str, torch.Tensor],
    source: str,
    model: ModelObject | None = None,
) -> LoadedModel:
    """Rebuild a fine-tuned network with its preprocessing, in eval mode, on the CPU.

    Args:
        config: The run's.
        facts: What its run.json holds.
        weights: All parameters and buffers by name.
        source: Their file, for messages.
        model: The network, if it was given in Python; a copy of it takes the weights.

    Raises:
        ModelError: If the weights do not fit the network, or it is needed and not given.
    """
    config = located(config, facts)
    if model is None and facts.base_folder and not base_folder(config):
        raise ModelError(
            f"the run's network comes from the folder {facts.base_folder}, which is not there now: put it "
            "back, or give the network in Python, Run.load(path, model=…)"
        )
    try:
        loaded = load_model(
            config.model if model is None else model,
            len(facts.classes),
            head_init="keep",
            text=facts.kind == "text",
            pretrained=False,
            head=[facts.head, *facts.other_heads],
            dtype=config.dtype,
        )
    except ModelError as error:
        if model is not None:
            raise ModelError(f"the model given does not fit the run in {source}: {error}") from error
        if not config.model.startswith("py:") or facts.working_folder in ("", str(Path.cwd())):
            raise
        raise ModelError(f"{error}; the run was made in {facts.working_folder}: use it from there") from error
    set_parameters(loaded.model, dict(weights), source)
    loaded.model.eval()
    shape = facts.normalisation
    return replace(loaded, mean=shape.mean, std=shape.std, bgr=shape.bgr)


def clean_task(config: FinetuneConfig, data: Any = None) -> Task:
    """Load the examples of a run with their labels as given, votes combined.

    Args:
        config: The run's.
        data: A task, or what it is made of, in place of the configuration's data.
    """
    if isinstance(data, Task):
        return data
    return load_task(
        config.data if data is None else data,
        size=size_of(config),
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


def size_of(config: FinetuneConfig) -> Size:
    """Return the side of a run's images, or the rule by which they are resized and cropped."""
    assert config.image_size is not None  # resolved
    return Resize.parse(config.resize, config.image_size) if config.resize else config.image_size


def reading_of(config: FinetuneConfig, asked: ColumnOptions | None = None) -> Reading:
    """Return how a run's data is read.

    Args:
        config: The run's.
        asked: What is said of other data's columns: if it says nothing, the run's columns are taken if
            they are there.
    """
    own = {role: getattr(config, f"{role}_column") for role in ROLES}
    columns = Columns(**own)
    if asked is not None:
        other = {role: name for role in ROLES if (name := getattr(asked, f"{role}_column"))}
        columns = Columns(**own | other, needed=frozenset(other))
    names = tuple(name.strip() for name in (config.vote_columns or "").split(",") if name.strip())
    return Reading(
        columns,
        Voting(names, config.label_model, config.seed),
        rgb_of(config.background),
        several=(config if asked is None else asked).several_labels,
        # Of new data, the labels serve to be compared with alone.
        confidence=config.confidence_column if asked is None else None,
    )


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

    Labels that a person has checked replace noisy ones.
    """
    if method_class(config.method).needs_votes and task.train.votes is None:
        raise ConfigError(
            f"method '{config.method}' needs votes, which {config.data} has not: give columns vote_… of csv "
            "data, or --vote-columns NAME,NAME"
        )
    if config.soft_labels and task.train.soft is None:
        raise ConfigError(
            f"--soft-labels needs soft labels, but {config.data} has neither columns p_CLASS nor votes; a "
            "column of confidences is named by --confidence-column"
        )
    if injected is not None:
        rate, changed = instance_rate(config.inject_noise), {}
        for name, seed in (("train", 2 * config.seed), ("val", 2 * config.seed + 1)):
            part = getattr(task, name)
            if name == "val" and (config.clean_val or not len(part)):
                continue
            changed[name] = part.relabelled(
                injected.corrupt(_true(part), seed=seed)
                if rate is None
                else draw_classes(_transitions(part, task.k, rate, config.seed), seed)
            )
        task = replace(task, **changed)
    if config.checked_labels is None:
        return task
    clean = read_checked_labels(config.checked_labels, task.classes)
    return checked(task, clean, partial=config.limit is not None)
