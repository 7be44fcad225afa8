"""Weak labelers that are trained on other domains' data and vote on the target's examples."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.checks import one_of
from hesstune.data.examples import Examples, Task
from hesstune.data.load import load_task
from hesstune.errors import ConfigError, DataError
from hesstune.inputs.batches import make_inputs, predict_logits, to_channels_last
from hesstune.inputs.features import frozen_features, sharing
from hesstune.models.load import LoadedModel, load_model
from hesstune.noise.probes import fit_probe
from hesstune.training.finetune import finetune
from hesstune.weak.votes import Votes

KINDS = ("probe", "finetune")
# Share of a labeler's own domain that it is judged on.
HELD_OUT = 0.2


@dataclass(frozen=True)
class Training:
    """How weak labelers are trained.

    Attributes:
        kind: `probe`, a linear one on frozen features, or `finetune`, of the whole network.
        model: Whose features, or which network.
        image_size: Side of the images in pixels.
        epochs: Of a fine-tune.
        max_length: Tokens of a text at most.
        seed: Of splits and training.
        device: Where to compute.
        head: Modules of the network's classifier; default: found.
    """

    kind: str
    model: str
    image_size: int
    epochs: int
    max_length: int
    seed: int
    device: torch.device
    head: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainedLabelers:
    """What trained labelers say of the target.

    Attributes:
        names: The labelers' names.
        classes: Each labeler's classes.
        probabilities: Each labeler's P(class), (N, K of its own).
        own_accuracy: Accuracy on held-out examples of its own domain; None where it has none.
    """

    names: list[str]
    classes: list[list[str]]
    probabilities: list[NDArray[np.float64]]
    own_accuracy: list[float | None]

    def votes(self, classes: Sequence[str], threshold: float) -> Votes:
        """Return the labelers' votes: the most probable class, or none below a threshold."""
        soft = np.zeros((len(self.probabilities[0]), len(self.names), len(classes)))
        for j, (own, given) in enumerate(zip(self.classes, self.probabilities, strict=True)):
            soft[:, j, [classes.index(name) for name in own]] = given
        return Votes.of_probabilities(soft, self.names, threshold)


def named_domains(specs: Sequence[str]) -> list[tuple[str, str]]:
    """Split NAME=SPEC; a name not given is the last part of the path, made unique.

    Raises:
        ConfigError: If two labelers have the same name.

    Example:
        >>> named_domains(["folder:pacs/photo", "drawn=folder:pacs/sketch"])
        [('photo', 'folder:pacs/photo'), ('drawn', 'folder:pacs/sketch')]
    """
    found = []
    for spec in specs:
        name, sign, rest = spec.partition("=")
        given = bool(sign) and ":" not in name and "/" not in name
        path = rest if given else spec
        found.append((name.strip() if given else Path(path.partition(":")[2] or path).stem, path.strip()))
    names = [name for name, _ in found]
    if len(set(names)) < len(names):
        raise ConfigError(f"two labelers are called alike ({', '.join(names)}); write NAME=folder:PATH")
    return found


def train_labelers(
    domains: Sequence[tuple[str, str]], target: Examples, how: Training
) -> tuple[TrainedLabelers, NDArray[np.float32] | None]:
    """Train a labeler on each domain and let it look at the target's examples.

    A domain is split uniformly, 80/20, where it has no parts of its own; the labeler is trained on the
    first and judged on the second.

    Args:
        domains: (name, data specification) pairs.
        target: The target's examples.
        how: Kind of labeler, network and seed.

    Returns:
        What they say, and the target's frozen features where they were computed.

    Raises:
        DataError: If a domain cannot be used, or holds texts where the target holds images.
    """
    one_of("kind of labeler", how.kind, KINDS)
    loaded: LoadedModel | None = None
    features: NDArray[np.float32] | None = None
    found = TrainedLabelers([], [], [], [])
    with sharing():
        if how.kind == "probe":
            text = target.texts is not None
            loaded = load_model(how.model, 2, text=text, head=how.head, image_size=how.image_size)
            to_channels_last(loaded.model, how.device)
            features = frozen_features(loaded, target, how.device, how.max_length)
        for name, spec in domains:
            task = _domain(name, spec, target, how)
            if loaded is not None and features is not None:
                given, accuracy = _probed(name, task, loaded, features, how)
            else:
                given, accuracy = _fine_tuned(spec, target, how)
            found.names.append(name)
            found.classes.append(task.classes)
            found.probabilities.append(given)
            found.own_accuracy.append(accuracy)
    return found, features


def _domain(name: str, spec: str, target: Examples, how: Training) -> Task:
    """Load the examples of a labeler's own domain."""
    task = load_task(spec, size=how.image_size, seed=how.seed, val_fraction=0.0, test_fraction=HELD_OUT)
    if task.is_text != (target.texts is not None):
        raise DataError(
            f"the labeler {name} is trained on {'texts' if task.is_text else 'images'}, but the target "
            f"holds {'images' if task.is_text else 'texts'}"
        )
    return task


def _probed(
    name: str, task: Task, loaded: LoadedModel, features: NDArray[np.float32], how: Training
) -> tuple[NDArray[np.float64], float | None]:
    own = frozen_features(loaded, task.train, how.device, how.max_length)
    assert task.train.labels is not None
    present = len(np.unique(task.train.labels))
    if present < 2:
        raise DataError(f"the labeler {name} needs examples of two classes at least; got {present}")
    made = fit_probe(own, task.train.labels, task.k)
    accuracy = None
    if len(task.test) and task.test.labels is not None:
        held = frozen_features(loaded, task.test, how.device, how.max_length)
        accuracy = float((made.probabilities(held).argmax(axis=1) == task.test.labels).mean())
    return made.probabilities(features), accuracy


def _fine_tuned(spec: str, target: Examples, how: Training) -> tuple[NDArray[np.float64], float | None]:
    with tempfile.TemporaryDirectory(prefix="hesstune-labeler-") as folder:
        run = finetune(
            data=spec,
            model=how.model,
            head=how.head,
            method="vanilla",
            epochs=how.epochs,
            image_size=how.image_size,
            max_length=how.max_length,
            val_fraction=0.0,
            test_fraction=HELD_OUT,
            seed=how.seed,
            device=str(how.device),
            out=str(Path(folder) / "run"),
        )
        loaded = run.loaded()
        to_channels_last(loaded.model, how.device)
        feed = make_inputs(target, loaded, how.device, max_length=how.max_length)
        logits = predict_logits(loaded.model, feed)
        accuracy: float | None = run.result["test_accuracy"]
    return torch.softmax(logits.double(), dim=1).numpy(), accuracy
