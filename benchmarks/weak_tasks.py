"""Programmatic labels: images of one domain, labelled by classifiers trained on the other domains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hesstune.data.images import SUFFIXES
from hesstune.errors import DataError, unknown_name
from hesstune.noise.probes import fit_probe
from hesstune.weak.label_models import label
from hesstune.weak.votes import Votes

PACS = ("art_painting", "cartoon", "photo", "sketch")
SHARE = 0.2  # of the test part, and of the validation part
SPLIT_SEED = 0x9AC5


@dataclass(frozen=True)
class WeakPart:
    """The training, validation or test part of a domain.

    Attributes:
        features: (N, D) float32 frozen features.
        true: (N,) int64 true labels: for the test and for reports only.
        weak: (N,) int64 weak labels: argmax of the sum of the annotators' probabilities.
        votes: Every annotator's vote and probabilities.
    """

    features: NDArray[np.float32]
    true: NDArray[np.int64]
    weak: NDArray[np.int64]
    votes: Votes


def listed_images(folder: Path, classes: list[str]) -> tuple[list[Path], NDArray[np.int64]]:
    """Return the image files of folder/CLASS and their labels.

    Raises:
        DataError: If a class has no image.
    """
    paths, labels = [], []
    for index, name in enumerate(classes):
        own = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not own:
            raise DataError(f"class '{name}' has no image in {folder / name}")
        paths += own
        labels += [index] * len(own)
    return paths, np.array(labels, dtype=np.int64)


def split(count: int, seed: list[int]) -> dict[str, NDArray[np.int64]]:
    """Return the rows of a random 60/20/20 split."""
    order, held = np.random.default_rng(seed).permutation(count), round(SHARE * count)
    cut = {"test": order[:held], "val": order[held : 2 * held], "train": order[2 * held :]}
    return {name: np.sort(rows) for name, rows in cut.items()}


def weak_domain(root: Path, target: str, seed: int, image_size: int = 96) -> dict[str, WeakPart]:
    """Return the parts of a domain of PACS, labelled by probes of the other three, from root/DOMAIN/CLASS/*.

    Raises:
        ConfigError: If the target is no domain.
        DataError: If a domain or a class is missing.
    """
    from sources import image_features

    if target not in PACS:
        raise unknown_name("domain", target, PACS)
    if not (root / target).is_dir():
        raise DataError(f"the folder {root / target} does not exist; give the folder with all domains")
    classes = sorted(p.name for p in (root / target).iterdir() if p.is_dir() and p.name[0] != ".")
    found, probes = {}, {}
    for number, domain in enumerate(PACS):
        paths, labels = listed_images(root / domain, classes)
        features = image_features(paths, image_size)
        parts = split(len(labels), [seed, number, SPLIT_SEED])
        found[domain] = features, labels, parts
        if domain != target:
            rows = parts["train"]
            probes[domain] = fit_probe(features[rows], labels[rows], len(classes))
    features, labels, parts = found[target]
    made = {}
    for name, rows in parts.items():
        own = features[rows]
        answers = np.stack([probe.probabilities(own) for probe in probes.values()], axis=1)
        votes = Votes.of_probabilities(answers, list(probes))
        made[name] = WeakPart(own, labels[rows], label(votes, "soft").labels, votes)
    return made
