"""Annotators that are trained on other domains' data and vote on the target's examples."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.data.examples import Examples, Task
from hesstune.data.load import load_task
from hesstune.errors import ConfigError, DataError
from hesstune.inputs.batches import make_inputs, predict_logits, to_channels_last
from hesstune.inputs.features import frozen_features, sharing
from hesstune.labeling.options import LabelOptions, default_model, size_for
from hesstune.models.load import LoadedModel, load_model
from hesstune.noise.probes import fit_probe
from hesstune.runtime.device import pick_device
from hesstune.training.finetune import finetune
from hesstune.weak.vote_sources import WrittenVotes
from hesstune.weak.votes import Votes

# Share of an annotator's own domain that its accuracy is measured on.
HELD_OUT = 0.2


@dataclass(frozen=True)
class TrainedAnnotator:
    """The predictions of one trained annotator on the target."""

    name: str  # its name
    classes: list[str]  # the classes of its own domain
    probabilities: NDArray[np.float64]  # P(class), (N, K of its own)
    own_accuracy: float | None  # accuracy on held-out examples of its own domain; None if there are none


def written_votes(annotators: Sequence[TrainedAnnotator], threshold: float) -> WrittenVotes:
    """Return the votes for the most probable classes, abstentions if none has the threshold's probability."""

    def votes(classes: Sequence[str]) -> tuple[Votes, list[str]]:
        soft = np.zeros((len(annotators[0].probabilities), len(annotators), len(classes)))
        for j, own in enumerate(annotators):
            soft[:, j, [classes.index(name) for name in own.classes]] = own.probabilities
        return Votes.of_probabilities(soft, [own.name for own in annotators], threshold), []

    return WrittenVotes(None, set(), votes)


def named_domains(specs: Sequence[str]) -> list[tuple[str, str]]:
    """Split NAME=SPEC; a name that is not given is the last part of the path. Equal names raise ConfigError.

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
        raise ConfigError(f"two annotators have the same name ({', '.join(names)}); write NAME=folder:PATH")
    return found


def train_annotators(
    target: Examples, asked: LabelOptions, needs_features: bool
) -> tuple[list[TrainedAnnotator], NDArray[np.float32] | None]:
    """Train an annotator on each domain that `labelers` names, and predict the target's examples.

    A domain is split uniformly, 80/20, if it has no parts of its own. The annotator is trained on the first
    part, and its accuracy is measured on the second. The target's frozen features are returned, too, if an
    annotator or a label model needs them. DataError is raised if a domain holds texts and the target images.
    """
    domains, is_text = named_domains(asked.labelers), target.texts is not None
    device, found = pick_device(asked.device), list[TrainedAnnotator]()
    loaded: LoadedModel | None = None
    features: NDArray[np.float32] | None = None
    with sharing():
        if needs_features or asked.labeler == "probe":
            model = asked.model or default_model(is_text)
            loaded = load_model(model, 2, text=is_text, head=asked.head, image_size=asked.image_size)
            to_channels_last(loaded.model, device)
            features = frozen_features(loaded, target, device, asked.max_length)
        for name, spec in domains:
            task = load_task(
                spec,
                size=size_for(asked.model, asked, is_text),
                seed=asked.seed,
                val_fraction=0.0,
                test_fraction=HELD_OUT,
            )
            if task.is_text != is_text:
                kinds = ("texts", "images") if task.is_text else ("images", "texts")
                raise DataError(
                    f"the annotator {name} is trained on {kinds[0]}, but the target holds {kinds[1]}"
                )
            if asked.labeler == "probe":
                assert loaded is not None
                assert features is not None
                made = _probed(name, task, loaded, features, device, asked.max_length)
            else:
                made = _fine_tuned(spec, target, asked, device)
            found.append(TrainedAnnotator(name, task.classes, *made))
    return found, features


def _probed(
    name: str,
    task: Task,
    loaded: LoadedModel,
    features: NDArray[np.float32],
    device: torch.device,
    max_length: int,
) -> tuple[NDArray[np.float64], float | None]:
    """Return a linear probe's probabilities of the target, and its accuracy on the domain's test part."""
    own = frozen_features(loaded, task.train, device, max_length)
    assert task.train.labels is not None
    present = len(np.unique(task.train.labels))
    if present < 2:
        raise DataError(f"the annotator {name} needs examples of two classes at least; got {present}")
    made = fit_probe(own, task.train.labels, task.k)
    accuracy = None
    if len(task.test) and task.test.labels is not None:
        held = frozen_features(loaded, task.test, device, max_length)
        accuracy = float((made.probabilities(held).argmax(axis=1) == task.test.labels).mean())
    return made.probabilities(features), accuracy


def _fine_tuned(
    spec: str, target: Examples, asked: LabelOptions, device: torch.device
) -> tuple[NDArray[np.float64], float | None]:
    """Return a fine-tuned network's probabilities of the target, and its accuracy; see `_probed`."""
    with tempfile.TemporaryDirectory(prefix="hesstune-annotator-") as folder:
        run = finetune(
            data=spec,
            model=asked.model or default_model(target.texts is not None),
            head=asked.head,
            method="vanilla",
            epochs=asked.epochs,
            image_size=asked.image_size,
            max_length=asked.max_length,
            val_fraction=0.0,
            test_fraction=HELD_OUT,
            seed=asked.seed,
            device=str(device),
            out=str(Path(folder) / "run"),
        )
        loaded = run.loaded()
        to_channels_last(loaded.model, device)
        feed = make_inputs(target, loaded, device, max_length=asked.max_length)
        logits = predict_logits(loaded.model, feed)
        accuracy: float | None = run.result["test_accuracy"]
    return torch.softmax(logits.double(), dim=1).numpy(), accuracy
