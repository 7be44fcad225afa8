"""What a run trains and what that is fed: the network, its head on features, or the part behind a cut."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import nn

from hesstune.data.augment import Augmentation
from hesstune.inputs.activations import ActivationInputs, needed_bytes
from hesstune.inputs.batches import ModelInputs, make_inputs
from hesstune.inputs.feature_store import features_of
from hesstune.inputs.image_inputs import ImageInputs
from hesstune.inputs.text_inputs import TextInputs
from hesstune.methods import method_class
from hesstune.models.cut import AfterCut, Cut, find_cut
from hesstune.runtime.distributed import world
from hesstune.training.prepare import Prepared

__all__ = ["Fed", "fed_by"]


@dataclass(frozen=True)
class Fed:
    """What is trained and what it is fed.

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


def fed_by(prepared: Prepared, out: Path) -> Fed:
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
        return Fed(head, cached, (head, cached), cut_texts)
    whole = (loaded.model, inputs)
    cut = _cut(prepared, plain["train"])
    if cut is None:
        return Fed(*whole, whole, cut_texts)
    feeds, notes = _behind(prepared, plain, cut, out)
    return Fed(AfterCut(loaded.model, cut), feeds, whole, cut_texts, notes)


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
