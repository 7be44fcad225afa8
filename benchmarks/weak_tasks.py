"""The programmatic-labels protocol: a target domain's images, labelled by labelers of other domains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hesstune.data.examples import Examples, Task
from hesstune.data.images import SUFFIXES, decode_all
from hesstune.errors import ConfigError, DataError, listed, unknown_name
from hesstune.noise.estimate import from_posterior
from hesstune.noise.linear_probe import LinearProbe, fit_probe
from hesstune.noise.matrix import NoiseMatrix
from hesstune.storage.atomic import write_csv
from hesstune.weak.label_models import label
from hesstune.weak.votes import Votes
from kept_features import image_features

__all__ = ["DOMAINNET", "PACS", "WeakPart", "WeakTask", "domainnet", "pacs", "weak_task"]

PACS = ("art_painting", "cartoon", "photo", "sketch")
DOMAINNET = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
PARTS = ("train", "val", "test")
TEST_SHARE = VAL_SHARE = 0.2
# The weak labelers' seeds differ from those of the target's split.
SPLIT_SEED = 0x9AC5


@dataclass(frozen=True)
class WeakPart:
    """The training, validation or test part of a target domain.

    Attributes:
        paths: Image files.
        ids: Their paths below the root.
        features: (N, D) float32 frozen features.
        true: (N,) int64 true labels: for the test and for reports, never for choosing.
        weak: (N,) int64 weak labels: argmax of the sum of the labelers' probabilities.
        votes: Every labeler's vote and probabilities.
    """

    paths: list[Path]
    ids: list[str]
    features: NDArray[np.float32]
    true: NDArray[np.int64]
    weak: NDArray[np.int64]
    votes: Votes

    def __len__(self) -> int:
        return len(self.true)

    @property
    def posterior(self) -> NDArray[np.float64]:
        """The mean of the labelers' probabilities, (N, K): the soft weak label."""
        return label(self.votes, "soft").posterior


@dataclass(frozen=True)
class WeakTask:
    """A target domain with weak labels.

    Attributes:
        target: The target domain.
        labelers: The other domains, whose labelers vote.
        classes: Class names.
        train: Training part.
        val: Validation part: to be judged by its weak labels.
        test: Test part: its true labels count.
        seed: Of the split.
        image_size: Side of the images in pixels.
        model: Whose features the parts hold.
    """

    target: str
    labelers: tuple[str, ...]
    classes: list[str]
    train: WeakPart
    val: WeakPart
    test: WeakPart
    seed: int
    image_size: int
    model: str

    @property
    def k(self) -> int:
        """The number of classes."""
        return len(self.classes)

    @property
    def noise(self) -> NoiseMatrix:
        """The true F of the training part: the oracle that users do not have."""
        return from_posterior(np.eye(self.k)[self.train.true], self.train.weak, "true").matrix

    @property
    def realised_rate(self) -> float:
        """The share of training labels that are wrong."""
        return float((self.train.weak != self.train.true).mean())

    def images(self, image_size: int | None = None, cache_mib: int = 4096) -> Task:
        """Decode the images: a task for fine-tuning whole networks.

        Training and validation labels are weak, with the true ones beside them; test labels are true.
        """
        made = {}
        for name in PARTS:
            part = self.part(name)
            source, bad = decode_all(part.paths, image_size or self.image_size, cache_mib)
            if bad:
                raise DataError(next(iter(bad.values())))
            examples = Examples(source, np.arange(len(part)), part.ids, part.true)
            made[name] = examples if name == "test" else examples.relabelled(part.weak)
        return Task(self.classes, made["train"], made["val"], made["test"], split="uniform", flip=True)

    def part(self, name: str) -> WeakPart:
        """Return a part by name."""
        if name not in PARTS:
            raise unknown_name("part", name, PARTS)
        found: WeakPart = getattr(self, name)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return what the labels are like, JSON-ready: realised noise, the true F, noise by class."""
        noise = self.noise
        rows = []
        for index, name in enumerate(self.classes):
            own = self.train.true == index
            wrong = float((self.train.weak[own] != index).mean()) if own.any() else None
            rows.append({"class": name, "examples": int(own.sum()), "noise": wrong})
        return {
            "target": self.target,
            "labelers": self.train.votes.analysis(self.train.true),
            "model": self.model,
            "image_size": self.image_size,
            "seed": self.seed,
            "examples": {name: len(self.part(name)) for name in PARTS},
            "realised_rate": self.realised_rate,
            "classes": rows,
            **{key: value for key, value in noise.to_dict().items() if key != "rate"},
        }

    def save_csv(self, path: str | Path) -> None:
        """Write what `csv:PATH` reads: image, weak label (true for the test), split, votes, true label.

        Raises:
            ConfigError: If the file exists.
        """
        path = Path(path)
        if path.exists():
            raise ConfigError(f"{path} exists; give another path")
        rows = []
        for name in PARTS:
            part = self.part(name)
            shown = part.true if name == "test" else part.weak
            for at in range(len(part)):
                votes = [self.classes[v] for v in part.votes.table[at]]
                known = self.classes[part.true[at]]
                given = self.classes[shown[at]]
                rows.append([part.ids[at], str(part.paths[at].resolve()), given, name, known, *votes])
        header = ["id", "image", "label", "split", "true_label", *(f"vote_{n}" for n in self.labelers)]
        write_csv(path, header, rows)


def pacs(
    root: str | Path,
    target: str,
    *,
    model: str = "efficientnet_lite0",
    image_size: int = 96,
    seed: int = 0,
    cache: str | Path | None = None,
    device: str = "cpu",
) -> WeakTask:
    """Return a target domain of PACS with labels by the labelers of the other three.

    Each domain is split 60/20/20 uniformly at random. A labeler a domain, a linear probe on frozen
    features, is trained on its own domain's training part; the labelers of the other domains label the
    target by the argmax of the sum of their probabilities. Features are cached. Source: Mazzetto et
    al. 2021; the paper, section 4; PACS: Li et al. 2017.

    Args:
        root: Folder with art_painting/, cartoon/, photo/ and sketch/, one subfolder a class in each.
        target: A domain.
        model: Whose features the labelers are trained on.
        image_size: Side in pixels that images are brought to.
        seed: Seed of the splits.
        cache: Folder for features; None takes the user's cache folder.
        device: Where features are computed.

    Raises:
        ConfigError: If the target is no domain.
        DataError: If a domain or class is missing, or an image cannot be decoded.

    Example:
        >>> task = pacs("pacs", "sketch")                           # doctest: +SKIP
        >>> task.train.weak, task.train.votes, task.noise.condition  # doctest: +SKIP
    """
    return weak_task(
        root, target, PACS, model=model, image_size=image_size, seed=seed, cache=cache, device=device
    )


def domainnet(
    root: str | Path,
    target: str,
    *,
    classes: int | Sequence[str] = 5,
    class_seed: int = 0,
    model: str = "efficientnet_lite0",
    image_size: int = 96,
    seed: int = 0,
    cache: str | Path | None = None,
    device: str = "cpu",
) -> WeakTask:
    """Return a target domain of DomainNet, on sampled classes, labelled as in `pacs`.

    Args:
        root: Folder with clipart/, infograph/, painting/, quickdraw/, real/ and sketch/, one subfolder
            a class in each. The lists of the official split that lie beside them are not used.
        target: A domain.
        classes: Class names, or how many to sample from those that every domain has.
        class_seed: Seed of that sample.
        model: As in `pacs`, like the rest.
        image_size: As in `pacs`.
        seed: As in `pacs`.
        cache: As in `pacs`.
        device: As in `pacs`.

    Raises:
        ConfigError: If the target is no domain, or there are fewer classes than wanted.
        DataError: As `pacs`.
    """
    _check_target(target, DOMAINNET)
    if isinstance(classes, int):
        shared = sorted(set.intersection(*(set(_subfolders(Path(root) / name)) for name in DOMAINNET)))
        if not 2 <= classes <= len(shared):
            raise ConfigError(
                f"{classes} classes cannot be sampled: {root} has {len(shared)} that every domain has"
            )
        rng = np.random.default_rng([class_seed, 0xD0])
        classes = sorted(shared[i] for i in rng.permutation(len(shared))[:classes])
    return weak_task(
        root,
        target,
        DOMAINNET,
        classes=classes,
        model=model,
        image_size=image_size,
        seed=seed,
        cache=cache,
        device=device,
    )


@dataclass(frozen=True)
class _Domain:
    paths: list[Path]
    labels: NDArray[np.int64]
    features: NDArray[np.float32]
    parts: dict[str, NDArray[np.int64]]


def weak_task(
    root: str | Path,
    target: str,
    domains: Sequence[str],
    *,
    classes: Sequence[str] | None = None,
    model: str = "efficientnet_lite0",
    image_size: int = 96,
    seed: int = 0,
    cache: str | Path | None = None,
    device: str = "cpu",
) -> WeakTask:
    """Return a target domain labelled by the labelers of the other domains, from root/DOMAIN/CLASS/*.

    The protocol of `pacs` for any folder of that layout; classes are those of the target by default.
    """
    _check_target(target, domains)
    root = Path(root)
    names = _subfolders(root / target) if classes is None else list(classes)
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise DataError(f"two different classes or more are needed; got {listed(names) or 'none'}")
    found: dict[str, _Domain] = {}
    for number, domain in enumerate(domains):
        paths, labels = _listed_images(root / domain, names)
        features = image_features(paths, model=model, image_size=image_size, cache=cache, device=device)
        found[domain] = _Domain(paths, labels, features, _split(len(labels), [seed, number, SPLIT_SEED]))
    others = tuple(d for d in domains if d != target)
    labelers = {d: _labeler(found[d], len(names)) for d in others}
    parts = {name: _part(root, found[target], rows, labelers) for name, rows in found[target].parts.items()}
    return WeakTask(
        target, others, names, parts["train"], parts["val"], parts["test"], seed, image_size, model
    )


def _check_target(target: str, domains: Sequence[str]) -> None:
    if target not in domains:
        raise unknown_name("domain", target, domains)


def _subfolders(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(f"the domain's folder {folder} does not exist; give the folder with all domains")
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _listed_images(folder: Path, classes: Sequence[str]) -> tuple[list[Path], NDArray[np.int64]]:
    present = _subfolders(folder)
    paths: list[Path] = []
    labels: list[int] = []
    for index, name in enumerate(classes):
        if name not in present:
            raise unknown_name(f"class in {folder}", name, present, DataError)
        own = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not own:
            raise DataError(f"class '{name}' has no image in {folder / name}")
        paths += own
        labels += [index] * len(own)
    return paths, np.array(labels, dtype=np.int64)


def _split(count: int, seed: list[int]) -> dict[str, NDArray[np.int64]]:
    """Split 60/20/20 uniformly at random."""
    order = np.random.default_rng(seed).permutation(count)
    test, val = round(TEST_SHARE * count), round(VAL_SHARE * count)
    cut = {"test": order[:test], "val": order[test : test + val], "train": order[test + val :]}
    if not all(len(rows) for rows in cut.values()):
        raise DataError(f"a domain with {count} images cannot be split 60/20/20; it needs 5 at least")
    return {name: np.sort(rows) for name, rows in cut.items()}


def _labeler(domain: _Domain, k: int) -> LinearProbe:
    rows = domain.parts["train"]
    return fit_probe(domain.features[rows], domain.labels[rows], k)


def _part(root: Path, domain: _Domain, rows: NDArray[np.int64], labelers: dict[str, LinearProbe]) -> WeakPart:
    features = domain.features[rows]
    given = np.stack([probe.probabilities(features) for probe in labelers.values()], axis=1)
    votes = Votes.of_probabilities(given, list(labelers))
    paths = [domain.paths[i] for i in rows]
    return WeakPart(
        paths,
        [p.relative_to(root).as_posix() for p in paths],
        features,
        domain.labels[rows],
        label(votes, "soft").labels,
        votes,
    )
