"""Load a run's examples, labels and network again, from what its configuration names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

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
from hesstune.models.load import LoadedModel, ModelObject, load_model, set_parameters
from hesstune.noise.instance import average, instance_rate, instance_transitions
from hesstune.noise.matrix import NoiseMatrix, draw_classes, is_written_out
from hesstune.options import Options
from hesstune.resizing import Resize, Size
from hesstune.runs.options import ColumnOptions, ExampleOptions, ModelOptions, NoiseOptions, TaskOptions
from hesstune.runs.records import RunRecord

O = TypeVar("O", bound=Options)  # noqa: E741


def base_folder(model: str) -> str:
    """Return the absolute path of the folder that a network comes from, or ""."""
    kind, _, path = model.partition(":")
    return str(expanded(path).absolute()) if kind == "hf" and path and expanded(path).is_dir() else ""


def located(options: O, facts: RunRecord) -> O:
    """Return a run's options with its paths as they are to be found from here.

    A relative path that does not exist from this working folder, but exists from the one in which the run was
    made, is taken from there.
    """
    changes = {}
    for name in ("data", "model", "checked_labels", "inject_noise", "split"):
        value = getattr(options, name, None)
        if not isinstance(value, str) or not facts.working_folder:
            continue
        kind, sign, path = _split(name, value)
        there = Path(facts.working_folder) / path if path else None
        if there is not None and not expanded(path).exists() and there.exists():
            changes[name] = f"{kind}{sign}{there}"
    return options.model_copy(update=changes)


def _split(name: str, value: str) -> tuple[str, str, str]:
    if is_written_out(value):
        return "", "", ""
    kind, sign, path = value.partition(":")
    if kind in (WITH_PATH if name == "data" else ("hf",) if name == "model" else ("file",)):
        return kind, sign, path
    has_no_path = name == "model" or (name == "data" and kind in FORMATS)
    return "", "", "" if has_no_path else value


def missing_data(data: str, facts: RunRecord) -> str:
    """Return a hint to the run's data if its path does not exist; else an empty text."""
    path = _split("data", data)[2]
    if not path or expanded(path).exists() or not facts.working_folder:
        return ""
    there = Path(facts.working_folder) / expanded(path)
    return f"; the run's data was {there}: put it back, or say in Python where it is, Run.load(path, data=…)"


def network_of(
    options: ModelOptions,
    facts: RunRecord,
    weights: Mapping[str, torch.Tensor],
    source: str,
    model: ModelObject | None = None,
) -> LoadedModel:
    """Rebuild a fine-tuned network with its preprocessing, in eval mode, on the CPU.

    Args:
        options: The run's.
        facts: What its run.json holds.
        weights: All parameters and buffers by name.
        source: Their file, for messages.
        model: The network, if it was given in Python; a copy of it takes the weights.

    Raises:
        ModelError: If the weights do not fit the network, or it is needed and not given.
    """
    options = located(options, facts)
    if model is None and facts.base_folder and not base_folder(options.model):
        raise ModelError(
            f"the run's network comes from the folder {facts.base_folder}, which is not there now: put it "
            "back, or give the network in Python, Run.load(path, model=…)"
        )
    try:
        loaded = load_model(
            options.model if model is None else model,
            len(facts.classes),
            head_init="keep",
            text=facts.kind == "text",
            pretrained=False,
            head=[facts.head, *facts.other_heads],
            dtype=options.dtype,
        )
    except ModelError as error:
        if model is not None:
            raise ModelError(f"the model given does not fit the run in {source}: {error}") from error
        if not options.model.startswith("py:") or facts.working_folder in ("", str(Path.cwd())):
            raise
        raise ModelError(f"{error}; the run was made in {facts.working_folder}: use it from there") from error
    set_parameters(loaded.model, dict(weights), source)
    loaded.model.eval()
    shape = facts.normalisation
    return replace(loaded, mean=shape.mean, std=shape.std, bgr=shape.bgr)


def clean_task(options: TaskOptions, seed: int, data: Any = None) -> Task:
    """Load the examples of a run with their labels as given, votes combined.

    Args:
        options: The run's.
        seed: The run's.
        data: A task, or what it is made of, in place of the data that the options name.
    """
    if isinstance(data, Task):
        return data
    return load_task(
        options.data if data is None else data,
        size=size_of(options),
        seed=seed,
        split=options.split,
        fold=options.fold,
        val_fraction=options.val_fraction,
        test_fraction=options.test_fraction,
        limit=options.limit,
        corrected_test=options.corrected_test_labels,
        skip_bad=options.skip_bad_images,
        cache_mib=options.cache_mib,
        how=reading_of(options, seed),
    )


def size_of(data: ExampleOptions) -> Size:
    """Return the side of a run's images, or the rule by which they are resized and cropped."""
    assert data.image_size is not None  # resolved
    return Resize.parse(data.resize, data.image_size) if data.resize else data.image_size


def reading_of(options: TaskOptions, seed: int, asked: ColumnOptions | None = None) -> Reading:
    """Return how a run's data is read.

    Args:
        options: The run's.
        seed: The run's; it breaks ties between votes.
        asked: Columns of other data; those that it does not name are the run's, if they are there.
    """
    own = {role: getattr(options, f"{role}_column") for role in ROLES}
    other = {role: name for role in ROLES if asked and (name := getattr(asked, f"{role}_column"))}
    names = tuple(name.strip() for name in (options.vote_columns or "").split(",") if name.strip())
    return Reading(
        Columns(**own | other, needed=frozenset(other)) if asked else Columns(**own),
        Voting(names, options.label_model, seed),
        rgb_of(options.background),
        several=(asked or options).several_labels,
        # Labels of new data are only compared with.
        confidence=None if asked else options.confidence_column,
    )


def run_task(options: TaskOptions, seed: int, data: Any = None) -> Task:
    """Load the examples of a run again, with the labels it was trained on (by seed the same)."""
    task = clean_task(options, seed, data)
    injected = injected_noise(task, options, seed)
    return noisy(task, injected, options, seed, options.limit is not None)


def injected_noise(task: Task, noise: NoiseOptions, seed: int) -> NoiseMatrix | None:
    """Return the noise matrix of what --inject-noise injects into true labels, or None.

    Of noise that depends on the example it is the mean over the training examples of each class.
    """
    if not noise.inject_noise:
        return None
    rate = instance_rate(noise.inject_noise)
    if rate is None:
        matrix = NoiseMatrix.parse(noise.inject_noise, task.k, task.classes, any_rate=True)
        return matrix.known_as("injected")
    return average(_transitions(task.train, task.k, rate, seed), _true(task.train), task.k)


def noise_of_test(
    task: Task, noise: NoiseOptions, seed: int, injected: NoiseMatrix | None
) -> NoiseMatrix | NDArray[np.float64] | None:
    """Return the noise that test labels would have: F, or P(noisy = j | example), (N, K), or None."""
    rate = instance_rate(noise.inject_noise)
    return injected if rate is None or not len(task.test) else _transitions(task.test, task.k, rate, seed)


def _transitions(part: Examples, k: int, rate: float, seed: int) -> NDArray[np.float64]:
    return instance_transitions(raw_features(part), _true(part), k, rate, seed)


def _true(part: Examples) -> NDArray[np.int64]:
    known = part.labels if part.true is None else part.true
    assert known is not None
    return known


def noisy(
    task: Task, injected: NoiseMatrix | None, noise: NoiseOptions, seed: int, partial: bool = False
) -> Task:
    """Corrupt training and validation labels, each by a seed of its own; test labels stay true.

    Labels that a person has checked replace noisy ones; `partial` says that a limit left out examples.
    """
    if noise.soft_labels and task.train.soft is None:
        raise ConfigError(
            "--soft-labels needs soft labels, but the data has neither columns p_CLASS nor votes; a column "
            "of confidences is named by --confidence-column"
        )
    if injected is not None:
        rate, changed = instance_rate(noise.inject_noise), {}
        for name, own in (("train", 2 * seed), ("val", 2 * seed + 1)):
            part = getattr(task, name)
            if name == "val" and (noise.clean_val or not len(part)):
                continue
            changed[name] = part.relabelled(
                injected.corrupt(_true(part), seed=own)
                if rate is None
                else draw_classes(_transitions(part, task.k, rate, seed), own)
            )
        task = replace(task, **changed)
    if noise.checked_labels is None:
        return task
    return checked(task, read_checked_labels(noise.checked_labels, task.classes), partial=partial)
